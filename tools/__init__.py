"""Programs beside the package; the only ones that may import torch."""
