import json

import numpy as np
import pytest

from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.errors import ConfigError
from mouselift_jax.geometry.rig import turntable
from mouselift_jax.report.html import Table
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import save_ply
from mouselift_jax.stages.harness.selection import frame_range, frame_times, select
from mouselift_jax.stages.items import sequence


@pytest.fixture(params=[True])
def film(tmp_path, request):
    """Four frames of a sample set and their splats, walking along x; param: whether timed."""
    writer = SampleWriter(tmp_path / "set", {"source": {}, "scene_scale": 0.01})
    cameras = turntable(2, size=32)
    world = {"scale": 0.01, "R": np.eye(3).tolist()}
    picture = np.full((32, 32, 4), 120, np.uint8)
    for i in range(4):
        writer.write(
            i, [picture, picture], cameras, [0, 1], frame=10 * i,
            row={"recording": "a"} | ({"time_s": i / 3} if request.param else {}),
            scene_scale=0.01, scene_from_recording={**world, "t": [-0.1 * i, 0, 0]},
        )  # fmt: skip
    writer.finish(lambda rows: ["train"] * len(rows))
    samples = SampleSet.open(tmp_path / "set")
    rng = np.random.default_rng(0)
    with Workdir(tmp_path / "run", {"stage": "infer"}):
        pass
    places = {}
    for name in samples.ids():
        places[name] = tmp_path / "run" / "items" / name
        splats = Gaussians(
            rng.normal(0, 0.1, (60, 3)).astype(np.float32),
            np.tile(np.array([1, 0, 0, 0], np.float32), (60, 1)),
            np.full((60, 3), -4, np.float32),
            np.full(60, 3, np.float32),
            np.zeros((60, 1, 3), np.float32),
        )
        save_ply(places[name] / "splats.ply", splats, scene_scale=0.01)
    return samples, places, tmp_path / "run"


def test_frames_become_a_film_and_are_measured_once(film, monkeypatch):
    samples, places, run = film
    assert sequence.is_film(samples, samples.ids()) and not sequence.is_film(
        samples, samples.ids()[:1]
    )
    with Workdir(run, {"stage": "infer"}) as workdir:
        metrics, artefacts, sections = sequence.write(workdir, samples, places, 32)
    for name in artefacts.values():
        assert (run / name).exists()
    lines = (run / "motion.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[2].startswith("10,0.3333,1")  # 10 mm on, a third of a second
    assert metrics["sequence/median_speed_mm_s"] == pytest.approx(30, rel=0.2)
    with np.load(run / "descriptor.npz") as kept:
        assert kept["descriptor"].shape == (4, len(kept["names"]))
        assert np.isfinite(kept["descriptor"]).all() and list(kept["frame"]) == [0, 10, 20, 30]
    assert sections[0].title == "The film"
    tables = [b for b in sections[0].blocks if isinstance(b, Table)]
    assert [row[0] for row in tables[0].rows][-1] == "speed, mm/s"
    monkeypatch.setattr(sequence.measures, "measure", lambda *a: 1 / 0)
    with Workdir(run, {"stage": "infer"}) as workdir:
        sequence.write(workdir, samples, places, 32)
    assert json.loads((places[samples.ids()[0]] / "motion.json").read_text())["frame"] == 0


@pytest.mark.parametrize("film", [False], indirect=True)
def test_a_film_of_pictures_without_a_clock_is_told_by_frames(film):
    samples, places, run = film
    with Workdir(run, {"stage": "infer"}) as workdir:
        metrics, _, _ = sequence.write(workdir, samples, places, 32)
    page = (run / "sequence.html").read_text()
    assert '"frame 0", "frame 10"' in page and "nan s" not in page
    assert "sequence/median_speed_mm_s" not in metrics
    line = (run / "motion.csv").read_text().splitlines()[2].split(",")
    row = dict(zip((run / "motion.csv").read_text().splitlines()[0].split(","), line, strict=True))
    assert row["frame"] == "10" and row["time_s"] == row["speed_mm_s"] == ""


def test_ranges_of_frames(film):
    samples, _, _ = film
    assert [frame_times(samples)[i][0] for i in select(samples, "all", "0:40:20")] == [0, 20]
    assert list(frame_range("5", 99)) == [5] and list(frame_range("2::3", 9)) == [2, 5, 8]
    for wrong in ("a:b", "1:2:3:4", "::", "1:9:0", "-3"):
        with pytest.raises(ConfigError):
            frame_range(wrong, 9)
    with pytest.raises(ConfigError, match="no sample is of these frames"):
        select(samples, "all", "1:9")
    with pytest.raises(ConfigError, match="no such split"):
        select(samples, "tset", "")
