"""A recording, found, assessed and decoded; nothing is judged by its pictures here."""
