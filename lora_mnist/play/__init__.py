"""The playground: a local page to draw digits, compare the base with its adapters, and teach it how you write."""
