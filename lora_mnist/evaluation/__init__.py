"""What is true of a network, or of two on the same images. Knows no disk."""
