"""What infer and fit turn into Gaussians: items from samples or from photos, and their films."""
