"""The field's evaluation metrics, as pure functions."""
