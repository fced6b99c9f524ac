"""The pipeline as a KFP pipeline: what happens, in which order."""
