"""A run → a page, its plots and its numbers. Knows no torch."""
