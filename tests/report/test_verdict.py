import numpy as np
import pytest

from mouselift_jax.report.verdict import verdict


def rows(n, iou=0.9, hull=0.8, inside=25.0, flat=23.0, spread=0.02):
    wave = spread * np.sin(np.arange(n))
    return [
        {"iou": iou + w, "hull_iou": hull, "interior_psnr": inside + 10 * w,
         "mean_color_psnr": flat}
        for w in wave
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changed, outcome, said",
    [
        ({}, "better", "better than the visual hull in shape (silhouette IoU 0.9"),
        ({"iou": 0.7}, "worse", "worse than the visual hull"),
        ({"inside": 22.0}, "worse", "worse than painting the animal in its mean colour (22."),
        ({"hull": 0.9}, "unsure", "not surely better than the visual hull"),
    ],
)
def test_the_worse_of_both_comparisons_decides(changed, outcome, said):
    out = verdict(rows(12, **changed), who="it", where="camera 3, 64 px", instead="throw it away")
    assert out.outcome == outcome and said in out.text
    assert ("throw it away" in out.text) == (outcome == "worse")
    assert "camera 3, 64 px; 12 frames" in out.text and "[" in out.text


def test_few_frames_have_no_interval_and_a_hull_in_some_frames_is_counted():
    assert "[" not in verdict(rows(2), who="it", where="x").text
    some = rows(6)
    for row in some[3:]:
        del row["hull_iou"]
    assert "the hull was drawn in 3 frames" in verdict(some, who="it", where="x").text


def test_without_hidden_views_nothing_is_said():
    assert verdict([], who="it", where="x").outcome == "unknown"
    lost = [{"iou": 0.0, "interior_psnr": np.nan, "mean_color_psnr": np.nan, "hull_iou": 0.8}] * 4
    assert verdict(lost, who="it", where="x").outcome == "worse"  # it shows no animal at all
