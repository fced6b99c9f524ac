"""The networks: images and texts in, features and logits out. They know no labels and no losses."""
