"""Values only: one file per stage; nothing here imports the package or jax."""
