"""MNIST and its 5,000 embedded images as verified tensors."""
