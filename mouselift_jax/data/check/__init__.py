"""Is a recording, or a sample set, what it claims to be? Root causes first."""

from mouselift_jax.data.check.recording import CheckResult, check_recording
from mouselift_jax.data.check.samples import check_samples

__all__ = ["CheckResult", "check_recording", "check_samples"]
