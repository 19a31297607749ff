"""A run on disk: where everything lies, what is stored, and how it is read and saved."""
