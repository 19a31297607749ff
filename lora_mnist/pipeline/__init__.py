"""The stages, a file each, in the order in which they run. Each reads the run, does one thing and writes the run."""
