"""Drawn scenes with exact masks, which `tiny` is pre-trained on."""
