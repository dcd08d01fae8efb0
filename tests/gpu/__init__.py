"""What only a CUDA device shows. ``tests/gpu/run.sh`` runs these tests and the benchmark on a bare machine."""
