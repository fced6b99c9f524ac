"""What the model should have seen: tensors in, losses out."""
