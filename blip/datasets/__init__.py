"""Data sets that are generated or converted to samples."""
