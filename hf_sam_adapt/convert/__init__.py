"""What others made, as this package uses it: checkpoints of official code, and annotations."""
