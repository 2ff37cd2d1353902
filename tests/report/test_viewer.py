import json
import re
import time

import numpy as np
import pytest

from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.report import viewer
from mouselift_jax.report.html import Section, Splats, write_report
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.ply import save_ply
from tests.report.chromium import browser, needs_chromium


def ball(n=600, shift=0.0):
    """A brown ball with a red front (-y), a green top (+z) and a blue side (+x)."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=(n, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    rgb = np.full((n, 3), (0.5, 0.4, 0.3))
    rgb[d[:, 1] < -0.7], rgb[d[:, 2] > 0.7], rgb[d[:, 0] > 0.7] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    return Gaussians(
        (0.5 * d + np.array([shift, 0, 0])).astype(np.float32),
        rng.normal(size=(n, 4)).astype(np.float32),
        np.log(rng.uniform(0.02, 0.06, (n, 3))).astype(np.float32),
        rng.normal(1, 2, n).astype(np.float32),
        ((rgb[:, None] - 0.5) / 0.28209479177387814).astype(np.float32),
    )


def payload(html):
    return json.loads(re.search(r'application/json">(.*?)</script>', html, re.S).group(1))


def test_the_page_says_what_it_leaves_out(tmp_path):
    save_ply(tmp_path / "a.ply", ball(), scene_scale=0.01)
    data = payload(viewer.viewer_fragment([tmp_path / "a.ply"], max_gaussians=100))
    assert "100 most visible" in data["labels"][0] and "a.ply" in data["labels"][0]
    assert data["scene_scale"] == 0.01 and np.abs(data["target"]).max() < 0.1


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(LayoutError, match="nothing to view"):
        viewer.viewer_fragment([])
    with pytest.raises(ConfigError, match="not a file of Gaussians"):
        viewer.viewer_fragment([tmp_path / "a.obj"])


@needs_chromium
def test_the_viewer_draws_what_the_rasterizer_draws_and_turns_when_dragged(tmp_path):
    from mouselift_jax.geometry.rig import turntable
    from mouselift_jax.render import render

    splats = ball()
    path = viewer.export_html(tmp_path / "v.html", [splats, ball(shift=0.4)], scene_scale=0.01)
    data = payload(path.read_text())
    azimuth, elevation = viewer.START_DEG
    with browser() as page:
        page.open(path.as_uri(), 500, 500)
        page.wait("document.querySelector('.mouselift-splats').dataset.state")
        time.sleep(0.5)
        assert page.errors == []
        x, y, width, height = page.box("canvas")
        seen = page.screenshot()[y : y + height, x : x + width]
        camera = turntable(
            1,
            radius=data["radius"],
            elevation_deg=elevation,
            start_azimuth_deg=azimuth,
            size=min(width, height),
        )
        shift = np.eye(4)
        shift[:3, 3] = data["target"]
        camera = type(camera)(
            camera.K + np.array([[0, 0, (width - min(width, height)) / 2]] + [[0, 0, 0]] * 2),
            shift @ camera.c2w,
            width,
            height,
        )
        drawn = np.asarray(render(splats, camera).rgb)[0] * 255
        inner = np.s_[2:-40, 60:-2]  # without the border and the length bar
        difference = np.abs(seen[inner].astype(float) - drawn[inner])
        assert seen[inner].std() > 20 and difference.mean() < 1.5, difference.mean()

        page.drag((x + width / 2, y + height / 2), (x + width / 2 + 120, y + height / 2))
        time.sleep(0.5)
        turned = page.screenshot()[y : y + height, x : x + width]
        assert np.abs(turned[inner].astype(float) - seen[inner]).mean() > 3
        page.evaluate(
            "(() => { const s = document.querySelector('input'); s.value = 1; s.oninput(); })()"
        )
        time.sleep(0.5)
        later = page.screenshot()[y : y + height, x : x + width]
        assert np.abs(later[inner].astype(float) - turned[inner]).mean() > 3
        assert page.errors == []


@needs_chromium
def test_the_viewer_runs_inside_a_report(tmp_path):
    save_ply(tmp_path / "splats.ply", ball(), scene_scale=0.01)
    path = write_report(tmp_path, sections=[Section("3D", [Splats("splats.ply", "turn me")])])
    with browser() as page:
        page.open(path.as_uri(), 390, 800)
        page.wait("document.querySelector('.mouselift-splats').dataset.state === 'ready'")
        time.sleep(0.5)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        x, y, width, height = page.box("canvas")
        assert page.screenshot()[y : y + height, x : x + width].std() > 10
        bar = "document.querySelector('.scale').offsetWidth"
        assert page.evaluate(bar) > 20
        page.open(viewer.export_html(tmp_path / "v.html", [ball()]).as_uri(), 390, 800)
        page.wait("document.querySelector('.mouselift-splats').dataset.state === 'ready'")
        assert page.evaluate(bar) == 0  # a length in an unknown unit says nothing
        assert page.errors == []
