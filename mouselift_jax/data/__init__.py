"""Data: recordings, preparation, sample sets, batches."""
