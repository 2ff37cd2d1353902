"""The stages: the only place where disk, data, pipelines and training meet."""
