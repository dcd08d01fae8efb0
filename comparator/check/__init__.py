"""What one run shows to be wrong by itself, before it is compared with another."""
