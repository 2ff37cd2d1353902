"""The folder of a run: its owner, configuration, rows, progress, and what it wrote of itself."""
