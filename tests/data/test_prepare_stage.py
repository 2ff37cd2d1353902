"""The stage `prepare`: plan, run, resume, and what it tells before the work."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import ConfigError, MouseLiftError
from tests.benchmarks.fault_injection import calibration, link_copy

FRAMES = 6
ONE_PIXEL = np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0]])


def test_stage_plans_runs_and_resumes(recording_dir, tmp_path):
    from configs.prepare import get_config
    from mouselift_jax.data.inputs import resolve_samples
    from mouselift_jax.runs.folder import Options, Workdir
    from mouselift_jax.stages import prepare as stage

    config = get_config("tiny")
    config.recording = str(recording_dir)
    config.prepare.size = 64
    config.prepare.min_mask_px = 20.0
    config.split.gap_s = 0.02
    text = stage.plan(config, tmp_path / "run").describe()
    assert "6 samples x 6 views" in text and not (tmp_path / "run").exists()
    with Workdir(tmp_path / "run", config, Options(progress="none")) as workdir:
        stage.run(config, workdir)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["finished"] and summary["metrics"]["samples"] == FRAMES
    assert summary["metrics"]["warp_error_px/max"] <= 0.05
    samples = SampleSet.open(resolve_samples(tmp_path / "run"))
    assert samples.frames("all") == list(range(FRAMES)) and len(samples.ids("val")) == 1
    assert samples.manifest["source"]["rec"]["hashes"]
    assert (tmp_path / "run/report.html").exists() and (tmp_path / "run/views.png").exists()
    before = (tmp_path / "run/samples/sample_000000/opencv_cameras.json").stat().st_mtime_ns
    with Workdir(tmp_path / "run", config, Options(progress="none")) as workdir:
        stage.run(config, workdir)
    after = (tmp_path / "run/samples/sample_000000/opencv_cameras.json").stat().st_mtime_ns
    assert before == after
    again = json.loads((tmp_path / "run/summary.json").read_text())["metrics"]
    assert again == summary["metrics"] and again["samples_per_s"] > 0


def test_two_recordings_split_by_recording(recording_dir, tmp_path):
    from configs.prepare import get_config
    from mouselift_jax.runs.folder import Options, Workdir
    from mouselift_jax.stages import prepare as stage

    other = tmp_path / "other"
    shutil.copytree(recording_dir, other)
    config = get_config("tiny")
    config.recording = f"{recording_dir},{other}"
    config.prepare.size, config.prepare.min_mask_px, config.prepare.n_samples = 64, 20.0, 2
    config.split.by, config.split.val_recordings = "recording", ("other",)
    with Workdir(tmp_path / "run", config, Options(progress="none")) as workdir:
        stage.run(config, workdir)
    samples = SampleSet.open(tmp_path / "run/samples")
    assert len(samples.ids("train")) == 2 and len(samples.ids("val")) == 2


def test_stage_names_a_missing_recording(tmp_path):
    from configs.prepare import get_config
    from mouselift_jax.stages import prepare as stage

    config = get_config()
    with pytest.raises(ConfigError, match="--config.recording=PATH"):
        stage.plan(config, tmp_path)
    config.recording = str(tmp_path / "nothing")
    with pytest.raises(MouseLiftError, match="no such file or folder"):
        stage.plan(config, tmp_path)


def test_an_impossible_split_is_told_before_the_work(recording_dir, tmp_path):
    from configs.prepare import get_config
    from mouselift_jax.runs.folder import Options, Workdir
    from mouselift_jax.stages import prepare as stage

    config = get_config("tiny")
    config.recording = str(recording_dir)
    config.split.gap_s = 100.0
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        stage.plan(config, tmp_path)
    with (
        Workdir(tmp_path / "run", config, Options(progress="none")) as workdir,
        pytest.raises(ConfigError, match="leaves nothing to train on"),
    ):
        stage.run(config, workdir)
    assert not (tmp_path / "run/samples").exists()


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("prepare.threads", -1, "fewer than no threads"),
        ("prepare.mask_animal", "drak", "did you mean 'dark'"),
        ("prepare.animal", "bigest", "did you mean .largest."),
        ("split.val_recordings", ("b",), "by=recording"),
        ("split.by", "recording", "some, not all"),
    ],
)
def test_keys_that_would_do_nothing_or_fail_late_are_told_by_the_plan(
    recording_dir, tmp_path, key, value, said
):
    from configs.prepare import get_config
    from mouselift_jax.stages import prepare as stage

    config = get_config("tiny")
    config.recording = str(recording_dir)
    config.update_from_flattened_dict({key: value, "split.gap_s": 0.02})
    with pytest.raises(ConfigError, match=said):
        stage.plan(config, tmp_path)


def test_what_was_guessed_of_a_recording_is_said(recording_dir, tmp_path):
    """Videos numbered from 1 on may be those of the calibration's cameras, in order, or not."""
    from configs.prepare import get_config
    from mouselift_jax.stages import prepare as stage

    shutil.copytree(recording_dir, tmp_path / "rec")
    for folder in ("videos_undist", "simpleclick_undist"):
        for k in range(6, 0, -1):
            (tmp_path / "rec" / folder / f"{k - 1}.mp4").rename(
                tmp_path / "rec" / folder / f"{k}.mp4"
            )
    shutil.rmtree(tmp_path / "rec/keypoints2d_undist")
    config = get_config("tiny")
    config.recording, config.split.gap_s = str(tmp_path / "rec"), 0.02
    assert (
        "file names do not tell the cameras; matched by order: 1 -> 0, 2 -> 1, 3 -> 2, 4 -> 3, "
        "5 -> 4, 6 -> 5" in stage.plan(config, tmp_path).notes
    )


def test_a_plan_tells_what_the_recording_makes_one_doubt(recording_dir, tmp_path):
    from configs.prepare import get_config
    from mouselift_jax.stages import prepare as stage

    path = link_copy(recording_dir, tmp_path / "rec")
    calibration(path, lambda rows: rows[2]["K"].__setitem__((0, 2), 9999.0))
    config = get_config("tiny")
    config.recording, config.split.gap_s = str(path), 0.02
    notes = "\n".join(stage.plan(config, tmp_path / "run").notes)
    assert "camera 2: the principal point (10000, " in notes


def test_a_pixel_that_the_hulls_do_not_show_is_told(recording_dir, tmp_path):
    """All principal points counted from another origin: outlines say it, an option helps."""
    from configs.prepare import get_config
    from mouselift_jax.runs.folder import Options, Workdir
    from mouselift_jax.stages import prepare as stage

    path = link_copy(recording_dir, tmp_path / "rec")
    calibration(path, lambda rows: [r.update(K=r["K"] + ONE_PIXEL) for r in rows])
    warnings = {}
    for origin in ("", "1"):
        config = get_config("tiny")
        config.recording, config.prepare.size = str(path), 64
        config.prepare.min_mask_px, config.split.gap_s = 20.0, 0.02
        config.prepare.pixel_origin = origin
        with Workdir(tmp_path / f"run{origin}", config, Options(progress="none")) as workdir:
            stage.run(config, workdir)
        summary = json.loads((tmp_path / f"run{origin}/summary.json").read_text())
        warnings[origin] = " ".join(summary["warnings"])
    assert "principal points of all cameras are off" in warnings[""]
    assert "--config.prepare.pixel_origin=1" in warnings[""]
    assert "principal points" not in warnings["1"]


@pytest.mark.slow
def test_killed_run_is_completed_by_the_same_command(recording_dir, tmp_path):
    """SIGKILL in the middle; the second run ends with what one run would have written."""
    import time

    command = [
        sys.executable, "launch.py", "--progress=none", "--config=configs/prepare.py:tiny",
        f"--config.recording={recording_dir}", "--config.prepare.min_mask_px=20",
        "--config.prepare.size=512", "--config.split.gap_s=0.02",
    ]  # fmt: skip
    once = subprocess.run(
        [*command, f"--workdir={tmp_path / 'once'}"], capture_output=True, text=True
    )
    assert once.returncode == 0, once.stderr
    process = subprocess.Popen([*command, f"--workdir={tmp_path / 'run'}"])
    journal = tmp_path / "run/samples/journal.jsonl"
    for _ in range(3000):
        if journal.exists() and journal.read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    a, b = (SampleSet.open(tmp_path / f"{name}/samples") for name in ("once", "run"))
    assert a.manifest["samples"] == b.manifest["samples"]
    for name in a.ids("all"):
        assert np.array_equal(a.load(name).images_rgba, b.load(name).images_rgba)
