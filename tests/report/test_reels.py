"""What a page gets of a film, and the page itself: film.js under node, the viewer in Chromium."""

import base64
import dataclasses
import json
import shutil
import subprocess
import time
from importlib.resources import files

import numpy as np
import pytest

from mouselift_jax.geometry.rig import turntable
from mouselift_jax.render import render
from mouselift_jax.report import colours, viewer
from mouselift_jax.report.reels import payload, rainbow
from mouselift_jax.splats.film_file import save_film_file
from mouselift_jax.splats.gaussians import Gaussians
from mouselift_jax.splats.reel import Reel, spread, tracks
from mouselift_jax.splats.sh import C0
from tests.report.chromium import browser, needs_chromium
from tests.report.test_viewer import ball

N = 400


def rolling(frames=6, cut=6, clock=True):
    """A coloured ball that walks 0.2 units a frame and turns."""
    rest = ball(N)

    def gaussians(i):
        a = 0.3 * i
        R = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        turned = rest.turned(R)
        means = np.asarray(turned.means) + np.float32([0.2 * i, 0.0, 0.0])
        sizes = np.asarray(turned.log_scales) + np.float32(0.1 * (i >= cut))
        return dataclasses.replace(turned, means=means.astype(np.float32), log_scales=sizes)

    at = np.arange(frames)
    times = at / 10 if clock else np.full(frames, np.nan)
    seen = np.linspace(0, 6, N)
    return Reel(3 * at, (at >= cut).astype(int), times, gaussians, lambda s: seen, 0.01)


def test_tracks_are_spread_over_the_skin_and_end_with_their_set():
    reel = rolling(frames=5, cut=3)
    found = tracks(reel, 20)
    assert [list(t.at) for t in found] == [[0, 1, 2], [3, 4]]
    for t in found:
        for k, i in enumerate(t.at):
            np.testing.assert_array_equal(t.paths[k], reel.gaussians(int(i)).means[t.index])
    means = np.asarray(reel.gaussians(0).means)
    index = spread(reel.gaussians(0), 20)
    away = np.linalg.norm(means[index][:, None] - means[index], axis=-1)
    assert len(set(index)) == 20 and (away + np.eye(20)).min() > 0.25  # of a ball of radius 0.5
    assert (reel.gaussians(0).activate().opacities[index] >= 0.5).all()
    haze = dataclasses.replace(reel.gaussians(0), opacity_logits=np.full(N, -5, np.float32))
    assert len(spread(haze, 20)) == 20
    assert rainbow(found[0]).shape == (20, 3)


def test_speed_is_in_mm_a_second_and_stays_within_a_segment():
    reel = rolling(frames=5, cut=3)
    still = dataclasses.replace(reel, gaussians=lambda i: rolling_on(reel, i))
    for i in range(5):  # 0.2 units = 20 mm in 0.1 s
        np.testing.assert_allclose(colours.speeds(still, i), 200, rtol=1e-4)
    assert colours.speeds(dataclasses.replace(reel, segment=np.arange(5)), 2) is None
    blind = dataclasses.replace(still, times=np.full(5, np.nan), scene_scale=None)
    np.testing.assert_allclose(colours.speeds(blind, 1), 0.2 / 3, rtol=1e-4)  # a frame
    assert "200 mm/s" in colours.speed_painter(still).legend
    assert "units a frame" in colours.speed_painter(blind).legend


def rolling_on(reel, i):
    """The same without turning."""
    first = reel.gaussians(0)
    return dataclasses.replace(first, means=first.means + np.float32([0.2 * i, 0, 0]))


def test_error_is_told_where_a_gaussian_shows_and_nowhere_else():
    g, size = ball(3000), 96
    g = dataclasses.replace(
        g, log_scales=np.full_like(g.log_scales, np.log(0.03)),
        opacity_logits=np.full_like(g.opacity_logits, 4.0),
    )  # fmt: skip
    camera = turntable(1, radius=3.0, elevation_deg=0.0, start_azimuth_deg=0.0, size=size)
    drawn = render(g, camera)
    truth = np.round(np.clip(np.asarray(drawn.rgb[0]), 0, 1) * 255).astype(np.uint8)
    same = colours.errors(g, camera, drawn, [truth])
    upper = truth.copy()
    upper[: size // 2] = 255 - upper[: size // 2]
    found = colours.errors(g, camera, drawn, [upper])
    towards = np.asarray(g.means) @ np.asarray(camera.c2w[0][:3, 3]) / 3.0
    assert np.isnan(found[towards < -0.3]).mean() > 0.95  # behind the ball
    front = towards > 0.2
    assert np.nanmax(same[front]) < 0.01
    z = np.asarray(g.means)[:, 2]
    assert np.nanmedian(found[front & (z > 0.1)]) > 0.1 > np.nanmax(found[front & (z < -0.1)])


def test_painters_say_what_is_not_known():
    painter = colours.Painter("speed", 10.0, "")
    assert list(painter.bytes(np.array([0, 5, 10, 99, np.nan]), 5)) == [0, 127, 254, 254, 255]
    assert list(painter.bytes(None, 2)) == [255, 255]
    rgb = 0.5 + C0 * painter.paint(ball(2), None).sh[:, 0]
    np.testing.assert_allclose(rgb, colours.GREY * np.ones((2, 1)), atol=0.003)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_pages_reader_reads_what_was_written(tmp_path):
    reel = rolling(frames=20, cut=18)
    save_film_file(tmp_path / "a.film", reel)
    script = (files("mouselift_jax.report") / "static" / "film.js").read_text()
    (tmp_path / "read.js").write_text(
        script
        + """
    const film = mouseliftFilm(new Uint8Array(require("fs").readFileSync(process.argv[2])));
    (async () => {
      const { parts } = await film.about(), out = [];
      for (let p = 0; p < parts.length; p++) for (const f of await film.part(p)) {
        out.push({ at: f.at, means: [...f.means], quats: [...f.quats], rgb: [...f.rgb],
                   scales: [...f.scales], alpha: [...f.alpha] });
      }
      console.log(JSON.stringify(out));
    })();"""
    )
    command = ["node", str(tmp_path / "read.js"), str(tmp_path / "a.film")]
    frames = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert [f["at"] for f in frames] == list(range(20))
    for i in (0, 7, 19):
        g, found = reel.gaussians(i).activate(), frames[i]
        off = np.reshape(found["means"], (N, 3)) - g.means
        assert np.linalg.norm(off, axis=1).max() < 0.001  # 0.1 mm
        cosine = np.abs((np.reshape(found["quats"], (N, 4)) * g.quats).sum(-1))
        np.testing.assert_allclose(cosine, 1, atol=1e-5)
        np.testing.assert_allclose(np.reshape(found["scales"], (N, 3)), g.scales, rtol=3e-3)
        np.testing.assert_allclose(found["alpha"], g.opacities, atol=2e-3)
        rgb = np.clip(0.5 + C0 * g.sh[:, 0], 0, 1) * 255
        assert np.abs(np.reshape(found["rgb"], (N, 3)) - rgb).max() <= 1.01


def test_a_page_knows_its_tracks_and_colours():
    reel = rolling(frames=5, cut=3)
    errors = [np.full(N, 0.1), None, np.full(7, 0.1), None, None]  # one of another set: left out
    data = payload(reel, errors, "speed")
    assert data["labels"][1] == "frame 3, 0.10 s" and data["colour"] == "speed"
    assert set(data["colours"]) == {"cameras", "speed", "error"}
    assert [bool(v) for v in data["colours"]["error"]["values"]] == [True] + [False] * 4
    assert [t["at"] for t in data["tracks"]] == [[0, 1, 2], [3, 4]]
    first = np.frombuffer(base64.b64decode(data["tracks"][0]["paths"]), "<f4").reshape(3, 50, 3)
    np.testing.assert_allclose(first, tracks(reel)[0].paths)
    bare = dataclasses.replace(reel, seen=lambda s: None)
    assert set(payload(bare)["colours"]) == {"speed"}


@needs_chromium
def test_the_page_plays_a_film_draws_its_tracks_and_colours_it(tmp_path):
    reel = rolling()
    path = viewer.export_film_html(tmp_path / "f.html", reel, [np.full(N, 0.3)] * 6)
    azimuth, elevation = viewer.START_DEG

    def drawn(i, width, height, radius, target):
        camera = turntable(1, radius=radius, elevation_deg=elevation, start_azimuth_deg=azimuth,
                           size=min(width, height))  # fmt: skip
        shift = np.eye(4)
        shift[:3, 3] = target
        K = camera.K + np.array([[0, 0, (width - min(width, height)) / 2]] + [[0, 0, 0]] * 2)
        camera = type(camera)(K, shift @ camera.c2w, width, height)
        return np.asarray(render(reel.gaussians(i), camera).rgb)[0] * 255

    with browser() as page:
        page.open(path.as_uri(), 500, 500)
        page.wait("document.querySelector('.mouselift-splats').dataset.state")
        x, y, width, height = page.box("canvas")
        data = payload(reel)

        def seen(script=""):
            page.evaluate(f"(async () => {{ {script} }})()")
            time.sleep(0.6)
            picture = page.screenshot()[y : y + height, x : x + width].astype(float)
            return picture[2:-40, 60:-2]

        at = "const at = (q) => document.querySelector(q);"
        slide = at + "const s = at('input[type=range]'); s.value = 4; s.oninput();"
        boxes = "const [tracks] = document.querySelectorAll('input[type=checkbox]');"
        lines = seen(slide)
        plain = seen(boxes + "tracks.click();")
        target = np.array(data["target"]) + data["centres"][4] - data["centres"][0]
        truth = drawn(4, width, height, data["radius"], target)[2:-40, 60:-2]
        assert np.abs(plain - truth).mean() < 1.5
        assert (np.abs(lines - plain).max(-1) > 40).sum() > 300  # the tracks
        choose = at + "const s = at('select'); s.value = '{}'; s.onchange();"
        for kind in ("speed", "cameras", "error", "own"):
            last = seen(choose.format(kind))
            assert (np.abs(last - plain).mean() > 3) == (kind != "own"), kind
            if kind == "error":  # all of it at the top of the scale
                inside = last[truth.min(-1) < 100]
                np.testing.assert_allclose(np.median(inside, 0), (252, 255, 164), atol=25)
            legend = page.evaluate("document.querySelector('.legend').textContent")
            assert bool(legend) == (kind != "own")
        assert np.abs(last - plain).mean() < 0.1
        page.open(path.as_uri(), 390, 800)
        page.wait("document.querySelector('.mouselift-splats').dataset.state === 'ready'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.errors == []


def test_types_stay_as_they_are():
    assert isinstance(rolling().every(2).gaussians(1), Gaussians)
    assert list(rolling().every(2).frames) == [0, 6, 12]
