"""From names to models, from images to masks."""
