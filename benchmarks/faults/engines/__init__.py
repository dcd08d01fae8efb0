"""What is recorded: Transformers in this process, a tensor-parallel Transformer of our own, real servers."""
