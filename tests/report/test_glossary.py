import pytest

from mouselift_jax.report.glossary import GLOSSARY, explained


@pytest.mark.parametrize(
    "said, words",
    [
        ("hull_cover/mean", ["hull cover"]),
        ("size_px/mean", ["size_px"]),
        ("sequence/volume_wobble", ["wobble"]),
        ("interior PSNR (dB)", ["PSNR", "interior PSNR"]),
        ("heldout/iou", ["silhouette IoU", "hidden (held out)"]),
        ("0.9 [0.8, 1.0] 95 % interval", ["[low, high]"]),
        ("specks (%)", ["specks"]),
        ("the visual hull", ["visual hull"]),
        ("frame 3", []),
    ],
)
def test_a_word_on_a_page_is_explained(said, words):
    assert [line.split(": ")[0] for line in explained(said)] == words


def test_each_explanation_is_one_line_that_names_its_word():
    assert all(": " in line and len(line) < 230 for line in GLOSSARY.values())
