"""Samples as batches for training: loader, views, pictures."""
