"""Networks: one a file, a config dataclass on top. They know no loss, no data and no files."""
