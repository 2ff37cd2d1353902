"""The sample set: its format, reading, writing, splitting and grading."""

from mouselift_jax.data.samples.sample_set import Sample, SampleSet, is_sample_set

__all__ = ["Sample", "SampleSet", "is_sample_set"]
