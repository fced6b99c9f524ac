"""What images and texts look like, alone and together."""
