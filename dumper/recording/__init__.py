"""What runs on the model's threads: taps, steps, and copies of values as they are now."""
