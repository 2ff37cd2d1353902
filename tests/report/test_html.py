import json
import re

import numpy as np
import pytest

from mouselift_jax.errors import LayoutError
from mouselift_jax.report.curves import read_metrics
from mouselift_jax.report.html import Finding, Picture, Section, Table, Text, Video, write_report
from mouselift_jax.report.turntable import write_mp4
from tests.report.chromium import browser, needs_chromium


@pytest.fixture
def run(tmp_path):
    rows = [
        {"step": s, "train/loss": 1 / (s + 1), **({"heldout/psnr": 10 + s} if s % 5 == 0 else {})}
        for s in range(20)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "config.json").write_text(json.dumps({"stage": "gslrm", "train": {"lr": 1e-4}}))
    summary = {
        "stage": "gslrm",
        "finished": True,
        "steps": 20,
        "wall_s": 3725.0,
        "metrics": {"heldout/psnr": 25.12345},
        "artefacts": {"ply": "splats.ply"},
        "warnings": ["<script>alert(1)</script>", {"what": "odd", "cause": "c", "remedy": "r"}],
        "inputs": {"samples": {"path": "runs/prepare"}},
        "versions": {"jax": "0.10.2"},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_mp4(tmp_path / "t.mp4", [np.zeros((16, 16, 3))] * 4)
    return tmp_path


def sections():
    picture = np.random.default_rng(0).random((20, 2400, 3))
    return [
        Section("Held-out views", [Picture(picture, "wide <b>"), Text("a & b " + "d" * 90)]),
        Section("Table", [Table(["view", "psnr"], [[np.int64(3), np.float32(21.98765)]])]),
        Section("Film", [Video("t.mp4"), Finding("blurred", "few views", "add views", "error")]),
    ]


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(run):
    html = write_report(run, intro="Twenty steps.", sections=sections()).read_text()
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address.startswith(("data:", "#")), address
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert "wide &lt;b&gt;" in html
    for text in ("25.12", "1 h 02 min", "21.99", "train.lr", "runs/prepare", "Twenty steps."):
        assert text in html, text
    assert html.count("<svg") == 2  # loss, psnr


def test_sections_are_kept_so_that_the_page_can_be_drawn_again(run):
    first = write_report(run, title="T", intro="I", sections=sections()).read_text()
    assert (run / "report" / "01_held_out_views.png").is_file()
    (run / "report.html").unlink()
    assert write_report(run).read_text() == first


def test_a_saved_section_cannot_show_files_outside_its_run(run):
    with pytest.raises(LayoutError, match="own run"):
        write_report(run, sections=[Section("x", [Picture("/etc/hostname")])])
    write_report(run, sections=sections())
    saved = json.loads((run / "report" / "sections.json").read_text())
    saved["sections"][0]["blocks"][0]["image"] = "../../etc/passwd"
    (run / "report" / "sections.json").write_text(json.dumps(saved))
    with pytest.raises(LayoutError, match="own run"):
        write_report(run)


def test_missing_and_damaged_files_are_named(run, tmp_path):
    with pytest.raises(LayoutError, match="no such run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(LayoutError, match="not there"):
        write_report(run, sections=[Section("x", [Video("gone.mp4")])])
    (run / "summary.json").write_text("{")
    with pytest.raises(LayoutError, match="not a JSON file"):
        write_report(run)
    (run / "summary.json").write_text("[1]")
    with pytest.raises(LayoutError, match="no object"):
        write_report(run)


def test_metrics_survive_a_killed_writer_and_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a')
    steps, values = read_metrics(path)["a"]
    assert steps.tolist() == [1, 2] and values.tolist() == [1, 3]
    path.write_text('nonsense\n{"step": 2, "a": 2}\n')
    with pytest.raises(LayoutError, match="metrics.jsonl:1"):
        read_metrics(path)
    assert read_metrics(tmp_path / "none") == {}


@needs_chromium
def test_the_page_is_readable_on_a_desk_and_on_a_phone(run):
    path = write_report(run, sections=sections())
    with browser() as page:
        for width in (1200, 390):
            page.open(path.as_uri(), width, 800)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            broken = "[...document.images].filter(i => !i.naturalWidth).length"
            assert page.evaluate(broken) == 0
            assert page.evaluate("document.querySelectorAll('.curves svg').length") == 2
            small = "Math.min(...[...document.querySelectorAll('p,td,li b,h1,h2')].map(e =>"
            assert page.evaluate(small + " parseFloat(getComputedStyle(e).fontSize)))") >= 12
            picture = page.screenshot(full=True)
            assert picture.std() > 10
            assert page.errors == []
