"""A run → one HTML page, its plots, images and tables. Imports no torch."""
