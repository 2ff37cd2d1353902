"""Names of files that labs use: each video is given its own camera."""

import numpy as np
import pytest

from mouselift_jax.data.recordings.pairing import pair_names

LAB = [(str(i), i) for i in range(6)]
SERIAL = ["18475996", "18475997", "19061101", "19061600", "19061602", "19061605"]
WORDS = ["front", "right", "left", "back", "top", "bottom"]


def cameras(names):
    return [(n, i) for i, n in enumerate(names)]


CASES = {
    "numbers": (["0", "1", "2", "3", "4", "5"], LAB, "name"),
    "serials, then seconds": (
        [f"s1_{n}_2024_02_13_20_30_{25 + 4 * i % 6}" for i, n in enumerate(SERIAL)],
        cameras(SERIAL), "word"),
    "words": ([f"mouse1_{n}" for n in WORDS], cameras(WORDS), "word"),
    "camera, then a time": ([f"cam{i}_20240501_12305{5 - i}" for i in range(6)], LAB, "number"),
    "a time, then camera": (
        [f"2024-05-01T12.30.0{5 - i}_Camera{i}" for i in range(6)], LAB, "number"),
    "a trial before": ([f"trial3_{i}" for i in range(6)], LAB, "number"),
    "a resolution behind": ([f"view_{i}_1280x1024" for i in range(6)], LAB, "number"),
    "from 1": ([f"Camera{i + 1}" for i in range(6)], LAB, "order"),
    "from 1, with a time": ([f"cam_{i + 1}_12-30-5{5 - i}" for i in range(6)], LAB, "order"),
    "letters": (list("abcdef"), LAB, "order"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_video_gets_its_camera(case):
    names, known, how = CASES[case]
    shuffled = [names[i] for i in (3, 0, 5, 1, 4, 2)]
    found, told = pair_names(shuffled, known)
    assert [found[n] for n in names] == [0, 1, 2, 3, 4, 5]
    assert told == how


def test_some_of_the_cameras():
    assert pair_names(["cam4", "cam0", "cam2"], LAB)[0] == {"cam4": 4, "cam0": 0, "cam2": 2}
    assert pair_names(["m_left", "m_top"], cameras(WORDS))[0] == {"m_left": 2, "m_top": 4}


def test_chunks_of_a_camera_are_joined_and_folders_near_are_named(tmp_path, tmp_path_factory):
    """DANNCE's recorders begin a new file every 3,500 frames: videos/Camera1/0.mp4, 3500.mp4 ..."""
    from mouselift_jax.data.mp4 import mp4_writer
    from mouselift_jax.data.recordings.inspection import inspect_recording, open_recording
    from mouselift_jax.data.recordings.video import FrameStream
    from mouselift_jax.data.synthetic import write_recording

    path = write_recording(tmp_path / "r", frames=2, size=(64, 64), n_heldout=0, workers=1)
    for folder in ("videos_undist", "simpleclick_undist"):
        for file in sorted((path / folder).glob("*.mp4")):
            place = path / folder / f"Camera{file.stem}"
            place.mkdir()
            file.unlink()
            for start in (0, 2, 10):
                with mp4_writer(place / f"{start}.mp4", 30) as write:
                    for k in range(start, start + 2):
                        write(np.full((64, 64, 3), 20 * k, np.uint8))
    recording = open_recording(path)
    assert recording.n_frames == 6 and recording.camera_ids == tuple(range(6))
    stream = FrameStream(recording.videos[3])
    levels = [float(stream.read().mean()) for _ in range(6)]
    np.testing.assert_allclose(levels, [0, 20, 40, 60, 200, 220], atol=3)
    flat = tmp_path_factory.mktemp("flat")
    (flat / "videos").mkdir(parents=True)
    (flat / "new_cam.pkl").symlink_to(path / "new_cam.pkl")
    for file in path.glob("videos_undist/*/*.mp4"):  # cam3_002.mp4 beside one another
        name = f"cam{file.parent.name[-1]}_{int(file.stem):03d}.mp4"
        (flat / "videos" / name).symlink_to(file)
    recording = open_recording(flat)
    assert recording.n_frames == 6 and recording.camera_ids == tuple(range(6))
    stream = FrameStream(recording.videos[3])
    np.testing.assert_allclose([stream.read().mean() for _ in range(6)], levels, atol=1e-9)
    for other in (tmp_path, path / "videos_undist"):
        _, findings = inspect_recording(other)
        assert any(str(path.resolve()) in f.fix or str(path) in f.fix for f in findings)
