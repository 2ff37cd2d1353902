"""`launch.py` as a user runs it: commands, exit codes, messages, kill and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sample_sets import write_samples

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--config.data.size=32",
    "--config.model.animal_share=0.8",  # patches are large
    "--config.train.batch_size=2",
    "--config.model.width=32",
    "--config.model.n_layers=2",
    "--config.train.steps=8",
    "--config.train.log_every=1",
    "--config.train.save_every=2",
    "--config.eval_samples=2",
)


def start(*flags):
    command = [sys.executable, "launch.py", "--progress=plain", *map(str, flags)]
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def launch(*flags, code=0):
    process = start(*flags)
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, f"exit {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return out + err


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"), n=4, size=32, n_val=2)


def gslrm(samples, workdir, *flags):
    return ("--config=configs/gslrm.py:tiny", f"--config.samples={samples}", f"--workdir={workdir}",
            *SMALL, *flags)  # fmt: skip


def weights(workdir, step=8):
    from mouselift_jax.training.checkpoint import checksum
    from mouselift_jax.training.run_params import load_run_params

    params, found, *_ = load_run_params(workdir / "checkpoints", "newest")
    assert found == step
    return int(checksum(params))


@pytest.fixture(scope="module")
def trained(samples, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "gslrm"
    launch(*gslrm(samples, workdir))
    return workdir


def test_a_training_run_leaves_what_the_contract_says(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["finished"] and summary["stage"] == "gslrm" and summary["steps"] == 8
    assert {"heldout/psnr", "heldout/ssim", "heldout/iou", "train/loss"} <= set(summary["metrics"])
    for key, path in summary["artefacts"].items():
        assert (trained / path).exists(), key
    assert json.loads((trained / "config.json").read_text())["model"]["width"] == 32
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "train/loss" in r] == list(range(1, 9))
    page = (trained / "report.html").read_text()
    assert "sample_000002, frame 2" in page and "sample_000000, frame 0" in page  # captions
    said = [s for s in (trained / "log.txt").read_text().splitlines() if "attention: " in s]
    assert len(said) == 1 and "3 x 3 tokens" not in said[0]  # of initialising on one patch
    assert list(trained.glob("events.out.tfevents*"))


def test_the_same_command_again_has_nothing_to_do(trained, samples):
    assert "nothing left to do" in launch(*gslrm(samples, trained))


def test_another_config_stops_with_the_difference(trained, samples):
    text = launch(*gslrm(samples, trained, "--config.train.optim.lr=0.1"), code=2)
    assert "train.optim.lr: 0.001 -> 0.1" in text and "Traceback" not in text


def test_killed_and_resumed_is_the_same_run(trained, samples, tmp_path):
    process = start(*gslrm(samples, tmp_path / "cut"))
    while process.poll() is None and not list((tmp_path / "cut/checkpoints").glob("4")):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    text = launch(*gslrm(samples, tmp_path / "cut"))
    assert "resuming at step" in text
    assert weights(tmp_path / "cut") == weights(trained)


def test_sigterm_says_run_me_again(trained, samples, tmp_path):
    process = start(*gslrm(samples, tmp_path / "cut"))
    metrics = tmp_path / "cut/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err[-2000:]
    assert "stopped on request: saved at step" in err and "Resume: python launch.py" in err


def test_infer_on_samples(trained, samples, tmp_path):
    flags = ("--config=configs/infer.py:tiny", f"--config.samples={samples}", "--config.limit=1",
             f"--config.gslrm={trained}", "--config.turntable.frames=2",
             "--config.turntable.size=32", f"--workdir={tmp_path / 'i'}")  # fmt: skip
    launch(*flags)
    summary = json.loads((tmp_path / "i/summary.json").read_text())
    assert {"ply", "views", "turntable", "report"} <= set(summary["artefacts"])
    from mouselift_jax.splats import load_ply

    assert len(load_ply(tmp_path / "i/splats.ply").means) > 0
    before = (tmp_path / "i/report.html").stat().st_mtime_ns
    assert "nothing left to do" in launch(*flags)
    assert (tmp_path / "i/report.html").stat().st_mtime_ns == before  # nor is anything drawn again
    (tmp_path / "i/report.html").unlink()
    launch(*flags)
    assert (tmp_path / "i/report.html").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--config=configs/gslrm.py:tinny", "--workdir=x"), "did you mean 'tiny'"),
        (("--config=configs/gslrmm.py", "--workdir=x"), "configs/gslrm.py"),
        (("--config=configs/gslrm.py", "--config.train.stepz=1", "--workdir=x"), "train.steps"),
        (
            ("--config=configs/gslrm.py", "--config.recording=r", "--workdir=x"),
            "configs/prepare.py",
        ),
        (("--config=configs/infer.py", "--workdir={tmp}/x"), "give exactly one input"),
        (("--config=configs/infer.py", "--workdir=/dev/null/x"), "the folder cannot be made"),
    ],
)
def test_mistakes_are_one_error_and_exit_2(tmp_path, flags, said):
    text = launch(*(f.format(tmp=tmp_path) for f in flags), code=2)
    assert said in text and "Traceback" not in text


def test_plan_says_what_would_happen_and_touches_nothing(samples, tmp_path):
    text = launch(*gslrm(samples, tmp_path / "p"), "--plan=quick")
    assert "8 updates of 2 samples" in text and not (tmp_path / "p").exists()


@pytest.mark.slow
def test_plan_reads_the_compiled_step(samples, tmp_path):
    text = launch(*gslrm(samples, tmp_path / "p"), "--plan")
    assert "activations" in text and "FLOPs" in text and not (tmp_path / "p").exists()
