"""Verbs of `python -m mouselift_jax`: one file each, with `add_arguments(parser)` and `run(args)`.

The module's docstring is the verb's help: its first line goes into the list of verbs. Files whose
name begins with an underscore are no verbs.
"""
