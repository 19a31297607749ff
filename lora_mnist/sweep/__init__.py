"""Grids of fine-tunings, the engines that run them, and what they come to. Knows nothing of the command line."""
