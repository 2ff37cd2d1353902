"""What mvdiff, synth and infer share: frozen networks, batches, the generator, its judge."""
