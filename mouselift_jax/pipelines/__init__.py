"""Networks composed, as pure functions of arrays: no files, no loop, no configs."""
