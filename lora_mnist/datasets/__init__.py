"""MNIST and the embedded digits as verified tensors."""
