"""What is done to a SAM as such: its inputs, sizes, channels and attention."""
