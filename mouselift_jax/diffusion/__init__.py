"""Noise schedules, noising and sampling: pure functions, no network inside, float32 throughout."""
