"""One verb, one function: the only place where all parts meet."""
