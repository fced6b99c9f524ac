"""Losses as functions of features, logits and targets. They know no networks."""
