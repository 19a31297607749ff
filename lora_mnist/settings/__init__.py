"""What was asked for: config files and options → validated, frozen settings."""
