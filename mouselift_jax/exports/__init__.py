"""One file for each foreign format that results are written to."""
