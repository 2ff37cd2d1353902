import numpy as np
import pytest

from mouselift_jax.stages.multiview.watchdogs import (
    check_order,
    check_prompts,
    check_views,
    verdict,
    view_spread,
)


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    views = np.ones((2, 6, 16, 16, 3), np.float32)
    views[:, :, 4:12, 4:12] = rng.random((2, 6, 8, 8, 3))
    return views


def codes(alarms):
    return [a.code for a in alarms]


def test_view_spread_is_the_rms_over_pairs(truth):
    pairs = [
        np.mean((truth[0, i] - truth[0, j]) ** 2) for i in range(6) for j in range(6) if i != j
    ]
    assert view_spread(truth[:1]) == pytest.approx(np.sqrt(np.mean(pairs)), rel=1e-6)


def test_good_views_raise_no_alarm(truth):
    noisy = np.clip(truth + np.random.default_rng(1).normal(0, 0.05, truth.shape), 0, 1)
    alarms, metrics = check_views(noisy, truth)
    assert not alarms
    assert metrics["watch/view_spread"] == pytest.approx(1, abs=0.1)
    assert metrics["watch/copy_share"] == 0


def test_copies_of_the_reference_are_a_collapse(truth):
    copies = np.repeat(truth[:, :1], 6, axis=1)
    alarms, metrics = check_views(copies, truth)
    assert codes(alarms) == ["collapsed"] and metrics["watch/copy_share"] == 1
    assert "reference=fixed" in alarms[0].remedy


@pytest.mark.parametrize("colour", [1.0, 0.5])
def test_flat_views_are_blank(truth, colour):
    alarms, _ = check_views(np.full_like(truth, colour), truth)
    assert codes(alarms) == ["blank"] and f"{colour:.2f}" in alarms[0].what


def test_prompts():
    good = np.random.default_rng(0).normal(size=(6, 77, 1024)).astype(np.float32)
    assert not check_prompts(good, 6)
    alarm = check_prompts(good[..., :768], 6)[0]
    assert alarm.code == "prompts_shape" and "ViT-L" in alarm.cause
    assert codes(check_prompts(good[:4], 6)) == ["prompts_shape"]
    assert codes(check_prompts(np.zeros_like(good), 6)) == ["prompts_zero"]
    assert codes(check_prompts(np.repeat(good[:1], 6, 0), 6)) == ["prompts_alike"]
    good[2, 3, 4] = np.nan
    assert codes(check_prompts(good, 6)) == ["prompts_not_finite"]


def test_order_of_slots():
    canonical = [270, 225, 180, 90, 0, 315]
    turns = [0, 45, 90, 180, 270, 315]
    assert not check_order(canonical, turns)
    assert codes(check_order([270, 180, 225, 90, 0, 315])) == ["views_order"]
    assert "prompts_register" in codes(check_order(canonical, [0, 315, 270, 180, 90, 45]))


def row(step, psnr, ssim=0.8):
    return {"step": step, "val/psnr": psnr, "val/ssim": ssim}


def test_verdicts(truth):
    even = [20.0] * 6
    collapsed, _ = check_views(np.repeat(truth[:, :1], 6, axis=1), truth)
    assert verdict([row(100, 12)], even, []).kind == "too_early"
    assert verdict([row(1, 26, 0.93)], [26] * 6, []).kind == "converged"
    assert verdict([row(1, 26, 0.93)], [26] * 6, collapsed).kind == "too_early"
    rising = [row(i, 12 + i) for i in range(5)]
    assert verdict(rising, even, collapsed).kind == "slow"
    stuck = [row(i, 12.0) for i in range(5)]
    assert verdict(stuck, even, collapsed).kind == "failed"
    assert verdict(stuck, even, []).kind == "slow"
    # a toy run: PSNR falls while the views part from one another, and then no more
    parting = [(50, 24.0, 0.33), (100, 23.8, 0.34), (150, 23.2, 0.53), (200, 22.5, 0.69)]
    parting = [row(i, p) | {"watch/view_spread": s} for i, p, s in parting]
    found = verdict(parting, even, collapsed)
    assert found.kind == "slow" and "69%" in found.reason and "34%" in found.reason
    assert "train.steps" in found.next
    last = row(250, 22.4) | {"watch/view_spread": 0.70}
    assert verdict([*parting[2:], last, last, last], even, collapsed).kind == "failed"
    some = verdict(stuck, [20, 20, 20, 20, 12, 20], [])
    assert some.kind == "some_views" and "[4]" in some.reason


def test_every_verdict_names_a_command(truth):
    even, stuck = [20.0] * 6, [row(i, 12.0) for i in range(5)]
    copies, flat = np.repeat(truth[:, :1], 6, axis=1), np.ones_like(truth)
    found = [
        verdict([row(1, 26, 0.93)], [26] * 6, []),
        verdict([row(100, 12)], even, []),
        verdict([row(i, 12 + i) for i in range(5)], even, []),
        verdict(stuck, even, []),
        verdict(stuck, [20, 20, 20, 20, 12, 20], []),
        *[verdict(stuck, even, check_views(bad, truth)[0]) for bad in (copies, flat)],
    ]
    words = {"command": "python launch.py X", "run": "R", "samples": "S", "lr": 1e-5, "steps": 9}
    commands = [v.next.format(**words) for v in found]
    assert all(c.startswith("python ") for c in commands)
    assert "configs/synth.py" in commands[0] and "--config.mvdiff=R" in commands[0]
    assert "--config.train.steps=9" in commands[1]
    assert "--config.reference=fixed" in commands[5] and "lr=1e-05" in commands[6]
