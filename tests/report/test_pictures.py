import numpy as np
import pytest

from mouselift_jax.errors import ShapeError
from mouselift_jax.report import pictures


def test_to_uint8_takes_every_kind_of_picture():
    half = np.full((2, 3, 1), 0.5, np.float32)
    assert pictures.to_uint8(half).tolist() == np.full((2, 3, 3), 128).tolist()
    clear_red = np.zeros((1, 1, 4), np.uint8)
    clear_red[..., 0] = 255
    assert pictures.to_uint8(clear_red).tolist() == [[[255, 255, 255]]]
    assert pictures.to_uint8(np.array([[np.nan, np.inf]]))[0, :, 0].tolist() == [0, 255]
    assert pictures.to_uint8(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]
    with pytest.raises(ShapeError, match="wrong shape"):
        pictures.to_uint8(np.zeros((2, 2, 2)))


def test_contact_sheet_holds_every_picture_unscaled_and_labelled():
    tiles = [np.full((20, 30, 3), i * 20, np.uint8) for i in range(5)]
    sheet = pictures.contact_sheet(tiles, columns=3)
    assert sheet.shape == (2 * 24 + 4, 3 * 34 + 4, 3)
    for i in range(5):
        y, x = 4 + i // 3 * 24, 4 + i % 3 * 34
        assert (sheet.pixels[y : y + 20, x : x + 30] == i * 20).all()
    assert pictures.contact_sheet(tiles, labels=list("abcde"), columns=3).shape[0] > sheet.shape[0]
    with pytest.raises(ShapeError):
        pictures.contact_sheet([])
    with pytest.raises(ShapeError):
        pictures.contact_sheet(tiles, labels=["one"])


def test_mask_agreement_colours():
    truth, render = np.array([[1, 1, 0, 0.0]]), np.array([[1, 0, 1, 0.0]])
    picture = pictures.mask_agreement(truth, render[..., None])
    wanted = [pictures.AGREE, pictures.MISSING, pictures.EXTRA, (255, 255, 255)]
    assert [tuple(p) for p in picture[0].tolist()] == wanted


def test_error_map_grows_with_the_error_and_saturates():
    truth = np.zeros((1, 4, 3), np.float32)
    render = truth + np.array([0, 0.1, pictures.ERROR_TOP, 0.9])[None, :, None]
    bright = pictures.error_map(truth, render).astype(int).sum(-1)[0]
    assert bright[0] < 20 and bright[0] < bright[1] < bright[2]
    assert abs(bright[2] - bright[3]) < 20  # 8-bit rounding of the error


def test_comparison_rows_have_one_band_a_question():
    views = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)
    masks = np.ones((3, 16, 16, 1), np.float32)
    short = pictures.comparison_rows(views, views, size=16)
    full = pictures.comparison_rows(views, views, masks, masks, size=16, labels=["a"] * 3)
    band = short.shape[0] // 3
    assert short.shape[0] == 3 * band and full.shape[0] > 6 * band
    with pytest.raises(ShapeError):
        pictures.comparison_rows(views, views[:2])


@pytest.mark.parametrize("title", [None, "a title"])
def test_a_sheet_knows_its_columns_also_as_a_file(tmp_path, title):
    tiles = [np.full((20, 30, 3), i * 20, np.uint8) for i in range(5)]
    sheet = pictures.contact_sheet(tiles, labels=list("abcde"), columns=3, title=title)
    read = pictures.sheet_of(pictures.save_png(tmp_path / "a.png", sheet))
    assert list(read.labels) == list("abcde")
    for column, tile in zip(read.columns(), tiles, strict=True):
        np.testing.assert_array_equal(column, tile)
    assert pictures.sheet_of(pictures.save_png(tmp_path / "b.png", tiles[0])) is None


def test_compared_views_are_cut_to_the_animal_at_one_zoom():
    masks = np.zeros((2, 64, 64, 1), np.float32)
    masks[0, 2:18, 40:60], masks[1, 30:34, 0:4] = 1, 1  # one at the border
    views = np.where(masks > 0, [0.9, 0.1, 0.1], 1.0).astype(np.float32)
    sheet = pictures.comparison_rows(views, views, masks, masks, labels=["a", "b"], size=32)
    assert sheet.rows[0] == "truth (23 of 64 px)" and len(sheet.rows) == 6
    first, second = (c[:32] for c in sheet.columns())
    red = (first == np.round(np.array([0.9, 0.1, 0.1]) * 255)).all(-1)
    assert red.sum() > 0.6 * 32 * 32  # a speck of 320 px in 4096 before
    assert 0 < (second[..., 1] < 128).sum() < 64  # the smaller one stays smaller
    assert (sheet.columns()[1][-32:] == 255).mean() > 0.9  # beyond the border there is no mask


def test_save_png_is_whole_or_absent(tmp_path, monkeypatch):
    path = pictures.save_png(tmp_path / "new" / "a.png", np.zeros((4, 4, 3)))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError):
        pictures.save_png(path, np.ones((4, 4, 3)))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("side", [24, 128, 640])
def test_a_films_labels_are_whole_and_grow_with_the_picture(side):
    """Shown 320 px wide, letters are as high as those of a page's small print."""
    pair = np.full((side, 2 * side, 3), 200, np.uint8)
    line = "camera 10: truth | render"
    frame = pictures.film_frame(pair, [line, "frame 17999, 599.97 s"])
    ink = (frame < 128).all(-1)
    rows = np.flatnonzero(ink.any(1))
    shown = 320 / frame.shape[1]
    assert frame.shape[1] >= 320 and (rows[-1] - rows[0]) * shown > 24  # two lines
    assert frame.shape == pictures.film_frame(pair, ["camera 1", "frame 9"]).shape
    columns = np.flatnonzero(ink.any(0))
    assert columns[-1] < frame.shape[1] - 3
    size = max(16, round(frame.shape[1] / pictures.FILM_LETTERS * 1.7))
    font = pictures._font(size)
    assert pictures._fitted(line, font, frame.shape[1] - 6) == line  # not cut


def test_a_close_up_says_its_zoom():
    rgba = [np.zeros((64, 64, 4), np.uint8) for _ in range(2)]
    rgba[0][10:30, 40:50], rgba[1][50:60, 0:20] = 255, 255
    tiles, zoom = pictures.close_up(rgba)
    assert zoom == "23 of 64 px" and {t.shape for t in tiles} == {(23, 23, 4)}
    assert all((t[..., 3] > 0).sum() == 200 for t in tiles)
    rgba[0][:] = 255
    assert pictures.close_up(rgba) == (rgba, "64 px, whole")
