"""Videos whose headers count other frames than they show: as many are counted as decode."""

import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from mouselift_jax.data.recordings.counts import shown_frames
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.video import read_instants
from mouselift_jax.data.synthetic.recording import write_recording

FRAMES = 24


def ffmpeg(*words):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """24 frames, a key frame every 12, pictures stored in another order than shown."""
    folder = tmp_path_factory.mktemp("counts")
    for t in range(FRAMES):
        cv2.imwrite(str(folder / f"{t:03d}.png"), np.full((48, 64, 3), 8 * t, np.uint8))
    path = folder / "whole.mp4"
    ffmpeg("-r", 30, "-i", folder / "%03d.png", "-c:v", "libx264", "-g", 12, "-bf", 2,
           "-pix_fmt", "yuv420p", path)  # fmt: skip
    return path


def cut(whole, path):
    ffmpeg("-ss", 0.25, "-i", whole, "-c", "copy", path)


def cut_both_ends(whole, path):
    ffmpeg("-ss", 0.25, "-i", whole, "-t", 0.2, "-c", "copy", path)


def with_longer_sound(whole, path):
    ffmpeg("-i", whole, "-f", "lavfi", "-i", "sine=duration=3", "-c:v", "copy", "-c:a", "aac", path)


def never_closed(whole, path):
    path.write_bytes(ffmpeg("-i", whole, "-c", "copy", "-f", "matroska", "-"))


FORMS = [
    ("cut.mp4", cut), ("both.mov", cut_both_ends), ("sound.mkv", with_longer_sound),
    ("live.mkv", never_closed), ("whole.ts", lambda w, p: ffmpeg("-i", w, "-c", "copy", p)),
]  # fmt: skip


@pytest.mark.parametrize("name, make", FORMS, ids=[n for n, _ in FORMS])
def test_what_is_shown_counts(whole, tmp_path, name, make):
    path = tmp_path / name
    make(whole, path)
    capture, decoded = cv2.VideoCapture(str(path)), 0
    declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    while capture.grab():
        decoded += 1
    assert declared != decoded or name == "whole.ts"
    assert shown_frames(path, declared) == decoded


def test_damaged_tables_are_left_to_the_header(whole, tmp_path):
    cut(whole, tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    rng = np.random.default_rng(0)
    at = data.index(b"moov")
    for k in range(60):
        broken = bytearray(data)
        broken[int(rng.integers(at, len(data)))] = int(rng.integers(256))
        file = tmp_path / f"{k}.mp4"
        file.write_bytes(broken)
        assert 0 <= shown_frames(file, FRAMES) <= 64 << 20


def test_a_recording_cut_without_encoding_is_used_as_it_is(tmp_path):
    path = write_recording(tmp_path / "r", frames=16, size=(72, 64), n_heldout=0, workers=1)
    for folder in ("videos_undist", "simpleclick_undist"):
        for file in sorted((path / folder).glob("*.mp4")):
            cut = file.with_name("cut.mp4")
            ffmpeg("-ss", 0.21, "-i", file, "-c", "copy", cut)
            cut.replace(file)
    recording = open_recording(path)
    (told,) = [f for f in recording.findings if f.code == "frame_header"]
    assert told.severity == "info" and f"{recording.n_frames} shown" in told.message
    assert recording.n_frames < 16
    frames = range(recording.n_frames)
    instants = list(read_instants(recording.videos, recording.masks, frames))
    assert len(instants) == recording.n_frames
