"""Masks as tools write them are read as silhouettes, or refused with the reason."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mouselift_jax.data.check.recording import check_recording
from mouselift_jax.data.preparation.placement import SceneSettings
from mouselift_jax.data.preparation.preparer import Preparer, PrepareSettings
from mouselift_jax.data.recordings.inspection import open_recording
from mouselift_jax.data.recordings.mask_levels import MaskFacts, find_levels, judge_masks, to_bytes
from mouselift_jax.data.recordings.video import FrameStream, read_instants
from mouselift_jax.data.samples.writer import SampleWriter
from mouselift_jax.data.synthetic.recording import lossless, write_recording
from mouselift_jax.errors import LayoutError
from tests.benchmarks.fault_injection import link_copy

FRAMES, SIZE = 4, (144, 128)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("levels") / "mouse"
    return write_recording(path, frames=FRAMES, size=SIZE, n_heldout=0, workers=1, seed=2)


@pytest.fixture(scope="module")
def truth(clean):
    """Masks [F][V], bool."""
    recording = open_recording(clean)
    instants = read_instants(recording.masks, None, range(FRAMES))
    return [[p[..., 0] > 127 for p in instant.pictures] for instant in instants]


def _palette(path, mask):
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    image.save(path)


def _in_colour(path, mask):
    cv2.imwrite(str(path), mask[..., None] * np.array([0, 0, 190], np.uint8))


def _cutout(path, mask):
    rgba = np.full((*mask.shape, 4), 40, np.uint8)
    rgba[..., 3] = mask * 255
    cv2.imwrite(str(path), rgba)


def _levels(value, dtype):
    return lambda path, mask: cv2.imwrite(str(path), mask.astype(dtype) * dtype(value))


FORMS = {
    "palette": _palette,
    "red": _in_colour,
    "cut-outs with alpha": _cutout,
    "labels of 1": _levels(1, np.uint8),
    "labels of 38": _levels(38, np.uint8),
    "8 bits in 16": _levels(255, np.uint16),
    "labels of 1 in 16 bits": _levels(1, np.uint16),
    "16 bits": _levels(65535, np.uint16),
    "12 bits in 16": _levels(4095, np.uint16),
}


def with_masks(clean, truth, path, write):
    link_copy(clean, path)
    for file in (path / "simpleclick_undist").iterdir():
        file.unlink()
    (path / "simpleclick_undist").rmdir()
    for t, masks in enumerate(truth):
        for v, mask in enumerate(masks):
            folder = path / "masks" / str(v)
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{t}.png", mask)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_masks(clean, truth, tmp_path, form):
    path = with_masks(clean, truth, tmp_path / "r", FORMS[form])
    recording = open_recording(path)
    for v, frames in enumerate(recording.masks):
        stream = FrameStream(frames, grey=True)
        for t in range(FRAMES):
            np.testing.assert_array_equal(stream.read() > 127, truth[t][v])
    assert check_recording(path).clean


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 200), (128, 0, 0)])
def test_videos_of_colours(truth, tmp_path, colour):
    from mouselift_jax.data.mp4 import mp4_writer
    from mouselift_jax.data.recordings.probe import probe_masks

    path = tmp_path / "m.mp4"
    with mp4_writer(path, 30) as write:
        write(np.zeros((*truth[0][0].shape, 3), np.uint8))  # the animal comes a frame later
        for masks in truth:
            write(masks[0][..., None] * np.array(colour, np.uint8))
    frames, levels = probe_masks(path)
    assert not levels.problem and frames.channel == "brightest"
    stream = FrameStream(frames, grey=True)
    stream.skip()
    for masks in truth:
        wrong = (stream.read() > 127) != masks[0]
        assert wrong.sum() < 0.15 * masks[0].sum()  # 4:2:0 colour: the outline is a pixel coarse


def rewritten(clean, path, change):
    """The masks' videos with every frame changed."""
    recording = open_recording(link_copy(clean, path))
    for v, frames in enumerate(recording.masks):
        stream = FrameStream(frames, grey=True)
        masks = [stream.read() for _ in range(FRAMES)]
        stream.close()
        frames.path.unlink()
        with lossless(frames.path, 30) as write:
            for t, mask in enumerate(masks):
                write(np.repeat(change(mask, v, t)[..., None], 3, 2))
    return path


def _second(mask, v, t):
    return np.maximum(mask, np.roll(mask, (mask.shape[0] // 2, mask.shape[1] // 2), (0, 1)))


_COAT = np.random.default_rng(0).integers(10, 90, (SIZE[1], SIZE[0]), dtype=np.uint8)
FAULTS = {
    "mask_inverted": lambda mask, v, t: 255 - mask,
    "mask_not_animal": lambda mask, v, t: np.full_like(mask, 255),
    "mask_levels": lambda mask, v, t: np.where(mask > 127, _COAT[: mask.shape[0]], 0),
    "mask_levels, cut out on white": lambda mask, v, t: np.where(mask > 127, 40 + _COAT, 255),
    "several_animals": _second,
}


@pytest.mark.parametrize("code", FAULTS)
def test_masks_that_are_not_of_one_animal(clean, tmp_path, code):
    path = rewritten(clean, tmp_path / "r", FAULTS[code])
    code = code.split(",")[0]
    first = check_recording(path).findings[0]
    assert first.code == code and first.evidence["expected"] and first.evidence["found"]
    told = []

    def prepare():
        recording = open_recording(path)
        settings = PrepareSettings(scene=SceneSettings(size=64))
        preparer = Preparer(recording, settings, range(FRAMES))
        with SampleWriter(tmp_path / "out", {}) as writer:
            preparer.run(writer, threads=1, on_finding=told.append)

    if code != "several_animals":
        with pytest.raises(LayoutError) as error:
            prepare()
        assert error.value.what.split(":", 1)[-1][:30] in first.message
        assert not list((tmp_path / "out").glob("sample_*"))
    else:
        try:
            prepare()
        except LayoutError:
            pass  # two bodies have no common centre: the hulls miss
        assert told and told[0].code == code


def test_soft_masks_are_masks():
    """Antialiased edges, lossy ringing and small animals are no shades and no labels."""
    y, x = np.mgrid[:60, :80]
    for radius in (4, 7, 15):
        soft = np.clip((radius - np.hypot(x - 40, y - 30)) * 127 + 127, 0, 255).astype(np.uint8)
        for lossless_ in (True, False):
            found = find_levels([soft], lossless=lossless_)
            assert (found.problem, found.white, found.colours) == ("", 0, 1)


def test_two_labels_are_told():
    mask = np.zeros((40, 40), np.uint8)
    mask[5:15, 5:15], mask[25:35, 25:35] = 1, 2
    found = find_levels([mask], lossless=True)
    assert found.colours == 2 and found.white == 1
    assert to_bytes(mask, found.white)[30, 30] == 255


def test_an_animal_at_the_border_or_of_two_parts_in_one_view_is_fine():
    facts = [MaskFacts() for _ in range(6)]
    mask = np.zeros((100, 120), bool)
    mask[60:, 20:60] = True
    for f in facts:
        f.add(mask)
    facts[2] = MaskFacts()
    mask[10:40, 80:110] = True
    facts[2].add(mask)
    assert judge_masks(facts, range(6)) == []
