"""Names and shapes: from torch state dicts to our parameter trees and back.

`rules` is the engine; one module per network holds its table. Nothing here imports torch.
"""
