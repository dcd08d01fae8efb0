"""What is recorded, as text that people write: expressions, filters, levels, steps."""
