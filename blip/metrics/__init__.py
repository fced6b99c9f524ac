"""The field's scores, as pure functions."""
