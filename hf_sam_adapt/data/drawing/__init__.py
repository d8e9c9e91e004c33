"""Drawn surfaces and shapes: what the images of `synthetic:` domains are made of."""
