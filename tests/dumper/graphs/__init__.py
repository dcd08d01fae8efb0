"""What taps in CUDA graphs are made of."""
