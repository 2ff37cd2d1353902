"""The procedural recording: an animal, its skin, its rig, filmed; for demos and tests."""

from mouselift_jax.data.synthetic.recording import write_recording

__all__ = ["write_recording"]
