"""Models of any origin: where they come from, what they are, and how they caption and score images."""
