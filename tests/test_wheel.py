"""The wheel, installed outside the checkout: the verbs work without launch.py and configs/."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mouselift_jax.data.synthetic.recording import write_recording
from mouselift_jax.splats import save_ply
from mouselift_jax.splats.gaussians import Gaussians

ROOT = Path(__file__).resolve().parents[1]
RENDER = """
import numpy as np
import mouselift_jax
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.render import render
from mouselift_jax.splats.ply import load_ply
alpha = np.asarray(render(load_ply("a.ply"), turntable(1, size=64)).alpha)
print(mouselift_jax.__file__, float(alpha.max()))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's contents, built from a copy: a checkout may hold an old build/."""
    place = tmp_path_factory.mktemp("wheel")
    names = ("pyproject.toml", "requirements-lab.txt", "README.md", "LICENSE", "NOTICE")
    for name in names:
        shutil.copy(ROOT / name, place / name)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mouselift_jax", place / "mouselift_jax", ignore=leave)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place / "dist"]
    subprocess.run([*map(str, build), str(place)], check=True, capture_output=True)
    (wheel,) = (place / "dist").glob("*.whl")
    site = place / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*map(str, install), str(wheel)], check=True, capture_output=True)
    return site


@pytest.mark.slow
def test_the_verbs_work_from_a_wheel(installed, tmp_path):
    recording = write_recording(tmp_path / "mouse", frames=6, n_heldout=0, workers=1)
    n, rng = 50, np.random.default_rng(0)
    splats = Gaussians(
        rng.normal(0, 0.2, (n, 3)).astype(np.float32), np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.full((n, 3), -3, np.float32), np.full(n, 3, np.float32), np.zeros((n, 1, 3), np.float32),
    )  # fmt: skip
    save_ply(tmp_path / "a.ply", splats, scene_scale=0.01)

    def python(*words):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    verb = ("-m", "mouselift_jax")
    where, alpha = python("-c", RENDER).split()
    assert Path(where).is_relative_to(installed) and float(alpha) > 0.5
    assert "need a clone of the repository" in python(*verb, "doctor")
    assert "in a clone of the repository" in python(*verb, "check", recording)
    python(*verb, "export", "--to=splat", "a.ply", "a.splat")
    python(*verb, "view", "a.ply", "--export-html", "a.html")
    assert "mouselift" in (tmp_path / "a.html").read_text()
    assert "verbs:" in python(*verb, "--help")
