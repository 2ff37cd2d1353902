"""How to train, not what: loop, state, optimiser, checkpoints, losses, metrics."""
