"""What recording costs a model on a CUDA device, beside what else copies tensors to files there."""
