"""Keys: recipes, the arguments of commands, presets, and the paths in them."""
