"""The bootstrap as a stream over pairs."""
