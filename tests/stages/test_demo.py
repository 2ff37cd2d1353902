"""What the demo's stages hand to each other."""

import pytest

from configs import demo as configs
from mouselift_jax.data.samples.split import split_blocks
from mouselift_jax.stages import demo
from mouselift_jax.stages.harness.selection import frame_range


@pytest.mark.parametrize("variant", ["base", "quick"])
def test_what_learns_from_the_films_fits_gets_frames_of_both_splits(variant, tmp_path):
    config = configs.get_config(variant)
    wired = demo.wired(config, tmp_path)
    assert wired["one_rig"].fits == str(tmp_path / "film")
    assert wired["mvdiff"].samples == wired["synth"].samples == str(tmp_path / "one_rig")
    n = config.recording.frames
    split = config.prepare.split
    labels = split_blocks(
        [i / 30 for i in range(n)], val_fraction=split.val_fraction, gap=split.gap_s
    )
    seen = [labels[i] for i in frame_range(config.film.frames, n)]
    assert seen.count("train") >= config.mvdiff.train.batch_size
    assert "val" in seen


def test_every_stage_that_is_wired_is_in_the_config_and_known():
    config = configs.get_config()
    for name, wires in demo.WIRES.items():
        assert config[name].stage in demo.STAGES
        assert set(wires) <= set(config[name])
        sources = [w for w in wires.values() if w not in ("recording", "photo.png")]
        before = list(demo.WIRES)[: list(demo.WIRES).index(name)]
        assert set(sources) <= set(before)  # what it reads is made by then
