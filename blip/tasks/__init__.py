"""What we train for, one file each: losses, predict, score."""
