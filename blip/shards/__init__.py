"""Shards: from the bytes of tars to samples."""
