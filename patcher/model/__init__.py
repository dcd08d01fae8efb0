"""What the source of a model tells of it: parts, loops over layers, layer numbers, dimensions. Nothing is imported."""
