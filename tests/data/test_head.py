import json

import numpy as np
import pytest

from mouselift_jax.data.photos import face
from mouselift_jax.errors import ConfigError, LayoutError


def photo(width=700, height=900, box=(300, 200, 400, 330)):
    """A grey head with one red pixel block as its face."""
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[100:600, 150:550] = (90, 90, 90, 255)
    x0, y0, x1, y1 = box
    rgba[y0:y1, x0:x1] = (255, 0, 0, 255)
    return rgba, box


@pytest.mark.parametrize("box", [(300, 200, 400, 330), (20, 10, 400, 500), (500, 700, 560, 760)])
def test_the_face_lands_where_the_weights_expect_it(box):
    rgba, box = photo(box=box)
    picture, M = face.face_square(rgba, box)
    assert picture.shape == (512, 512, 4)
    red = (picture[..., 0].astype(int) - picture[..., 1] > 128) & (picture[..., 3] > 128)
    y, x = np.nonzero(red)
    size = (np.ptp(x) + np.ptp(y) + 2) / 2
    assert size == pytest.approx(face.FACE_SIZE, abs=2)
    centre = (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2
    np.testing.assert_allclose(centre, face.FACE_CENTRE, atol=2)
    corners = M @ np.array([[box[0], box[2]], [box[1], box[3]], [1, 1]])
    np.testing.assert_allclose(corners[:2].mean(1), centre, atol=1.5)


def test_what_is_not_the_head_is_white():
    picture, _ = face.face_square(*photo())
    clear = picture[..., 3] == 0
    assert clear.any() and (picture[clear][:, :3] == 255).all()


def test_boxes_are_read_from_text_and_files(tmp_path):
    assert face.face_box("1,2,3.5,4", "a.png") == (1, 2, 3.5, 4)
    file = tmp_path / "faces.json"
    file.write_text(json.dumps({"a.png": [1, 2, 3, 4], "b": [5, 6, 7, 8]}))
    assert face.face_box(str(file), "b.jpg") == (5, 6, 7, 8)
    for text in ("", "1,2,3", "a,b,c,d", str(tmp_path / "no.json")):
        with pytest.raises(ConfigError):
            face.face_box(text, "a.png")
    for content in ("{bad", "[1, 2, 3, 4]", "7"):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ConfigError, match="not a file of face boxes"):
            face.face_box(str(tmp_path / "broken.json"), "a.png")
    with pytest.raises(ConfigError, match="did you mean"):
        face.face_box(str(file), "a.jpg.png")
    with pytest.raises(LayoutError, match="outside the photo"):
        face.face_square(photo()[0], (800, 0, 900, 100))
