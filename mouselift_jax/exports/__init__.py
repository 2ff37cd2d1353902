"""Foreign formats that results are written to; `cli/export.py` (`FORMATS`) lists them."""
