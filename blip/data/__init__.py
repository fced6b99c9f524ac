"""Data: from tars of encoded samples to batches."""
