"""A small procedural recording for the tests of this folder."""

import pytest

from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.synthetic.recording import write_recording

FRAMES = 6


@pytest.fixture(scope="session")
def recording_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("rec") / "rec"
    return write_recording(path, frames=FRAMES, size=(288, 256), n_heldout=0, workers=2)


@pytest.fixture(scope="session")
def recording(recording_dir):
    return open_recording(recording_dir)
