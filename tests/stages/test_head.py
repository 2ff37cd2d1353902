"""The published recipe for heads, from a photo to splats, on networks as small as it gets."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from configs import infer as configs
from mouselift_jax.data.photos.face import face_square
from mouselift_jax.errors import ConfigError, MissingExtraError
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.splats.ply import load_ply
from mouselift_jax.stages import infer
from mouselift_jax.stages.items import from_photos
from mouselift_jax.weights.networks import param_shapes
from mouselift_jax.weights.pretrained import save_component
from tests import torch_sources as fake
from tests.pipelines.tiny_views import random_like, save_pipeline, tiny_models
from tests.sample_sets import write_samples

BOX = (20.0, 10.0, 44.0, 40.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Networks of three views of 16 px with random weights, their cameras, two photos."""
    folder = tmp_path_factory.mktemp("head")
    weights = save_pipeline(tiny_models(), folder / "weights")
    prompts = np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)
    save_component(weights, "prompt_embeds", {"shape": [3, 5, 12]}, {"prompt_embeds": prompts})
    save_component(weights, "gslrm", fake.GSLRM, random_like(param_shapes("gslrm", fake.GSLRM)))
    write_samples(folder / "set", n=1, n_val=0, size=16, views=3)
    photo = np.random.default_rng(1).integers(0, 255, (48, 64, 4), np.uint8)
    photo[..., 3] = 0
    photo[8:46, 16:50, 3] = 255
    (folder / "photos").mkdir()
    for name in ("a", "b"):
        Image.fromarray(photo).save(folder / "photos" / f"{name}.png")
    return folder, photo


def head(folder, **changes):
    config = configs.get_config("head")
    config.update_from_flattened_dict(
        {
            "image": str(folder / "photos"), "gslrm": str(folder / "weights"),
            "mvdiff": str(folder / "weights"), "size": 16,
            "cameras": str(folder / "set/sample_000000/opencv_cameras.json"),
            "generate.background": "alpha", "generate.steps": 2, "filter": "none",
            "turntable.frames": 2, "turntable.size": 16, "face_box": ",".join(map(str, BOX)),
            **changes,
        }
    )  # fmt: skip
    return config


def test_photos_become_splats_with_the_published_placing(place, tmp_path):
    folder, photo = place
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a.png": BOX, "b": BOX}))
    config = head(folder, face_box=str(boxes))
    with Workdir(tmp_path / "run", config, Options(progress="none")) as workdir:
        infer.run(config, workdir)
    _, expected = face_square(photo, BOX)
    for name in ("a", "b"):
        item = tmp_path / "run/items" / name
        about = json.loads((item / "item.json").read_text())
        to_side = np.diag([16 / 512, 16 / 512, 1.0])
        np.testing.assert_allclose(about["picture_from_photo"], to_side @ expected)
        assert about["photo"] == f"{name}.png" and about["background"] == "alpha"
        assert load_ply(item / "splats.ply").n_gaussians == 2 + 3 * 16 * 16
        assert (item / "turntable.mp4").exists() and (item / "views.png").exists()
    assert json.loads((tmp_path / "run/summary.json").read_text())["finished"]


def test_what_is_missing_is_told_before_any_network_is_loaded(place, tmp_path, monkeypatch):
    folder, _ = place
    for box, said in (("", "where the face is"), ("1,2,3", "not a face box")):
        with pytest.raises(ConfigError, match=said):
            infer.plan(head(folder, face_box=box), tmp_path / "run")
    (tmp_path / "boxes.json").write_text(json.dumps({"a": BOX}))
    with pytest.raises(ConfigError, match=r"no face box for this photo[\s\S]*b.png"):
        infer.plan(head(folder, face_box=str(tmp_path / "boxes.json")), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no such background[\s\S]*did you mean 'rembg'"):
        infer.plan(head(folder, **{"generate.background": "rmbg"}), tmp_path / "run")
    monkeypatch.setattr(from_photos, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\[matte\]"):
        infer.plan(head(folder, **{"generate.background": "rembg"}), tmp_path / "run")
    assert infer.plan(head(folder), tmp_path / "run").steps == "2 item(s)"


@pytest.mark.parametrize("side", [512, 16, 640])
def test_soft_edges_of_a_face_are_laid_on_white_once(place, tmp_path, side):
    """The published recipe composes on white before it scales; hair must not fade twice."""
    folder, photo = place
    soft = photo.copy()
    soft[..., 3] = soft[..., 3] // 2 + 40
    Image.fromarray(soft).save(tmp_path / "a.png")
    asked = []
    made = types.SimpleNamespace(
        side=side, note="", rig=types.SimpleNamespace(cameras=None),
        views=lambda picture, key: asked.append(picture) or np.ones((3, side, side, 3), "f4"),
    )  # fmt: skip
    config = head(folder, image=str(tmp_path / "a.png"), size=side)
    config.generate.keep_reference = True
    item = from_photos.FromImages(config, made).load("a")
    square, _ = face_square(soft, BOX)
    if side == 512:
        np.testing.assert_array_equal(asked[0], square[..., :3])
    else:
        assert abs(asked[0].mean() - square[..., :3].mean()) < 1.5
    # The photo kept as slot 0 is the same picture, but for what bicubic scaling of noise clips.
    off = item.images[0] * 255 - asked[0]
    assert abs(off.mean()) < 0.5 and np.mean(np.abs(off) > 1) < 0.05
