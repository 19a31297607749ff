"""Repair one digit of a trained MNIST network with LoRA, and prove that nothing else was touched."""

__version__ = "0.1.0"
SCHEMA = 7  # of the documents in a run; raised when they change
