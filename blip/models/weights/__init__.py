"""Weights: names, files, loading into a model, initialisation from pre-trained parts, and export."""
