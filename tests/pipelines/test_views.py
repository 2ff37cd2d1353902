"""The sampling run and the training step against the reference's, with its own random draws."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ConfigError, MouseLiftError, TrainingError
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.models import clip, mvunet, vae
from mouselift_jax.models.clip_pixels import ClipPixels, clip_pixels
from mouselift_jax.pipelines import views, views_training
from mouselift_jax.weights.tables import clip as clip_table
from mouselift_jax.weights.tables import mvunet as unet_table
from mouselift_jax.weights.tables import vae as vae_table
from tests.models.oracle import l2, load, metadata, nhwc, peak, tensors
from tests.pipelines.tiny_views import save_pipeline, tiny_models


@pytest.fixture(scope="module")
def golden_models(shared):
    goldens = shared / "goldens"
    path = goldens / "golden_pipeline.safetensors"
    configs = {k: json.loads(v) for k, v in metadata(path).items()}
    unet_json = json.loads(metadata(goldens / "golden_mvunet.safetensors")["config"])
    unet = mvunet.MVUNet(mvunet.MVUNetConfig(**unet_table.config_from_source(unet_json)))
    coder = vae.VAE(vae.VAEConfig(**vae_table.config_from_source(configs["vae"])))
    encoder = clip.ImageEncoder(
        clip.VisionConfig(**clip_table.image_encoder_config(configs["clip"]))
    )
    networks = views.Networks(
        unet,
        coder,
        encoder,
        clip.ImageNormalizer(embedding_dim=24),
        ClipPixels(size=28),
    )
    struct = jax.ShapeDtypeStruct
    args = (
        struct((1, 6, 8, 8, 8), jnp.float32),
        struct((1,), jnp.int32),
        struct((1, 6, 7, 40), jnp.float32),
        struct((1, 6, 48), jnp.float32),
    )
    params = {
        "unet": load(
            unet_table.RULES,
            tensors(goldens / "golden_mvunet.safetensors", "params."),
            unet,
            *args,
        ),
        "vae": load(
            vae_table.RULES, tensors(path, "vae."), coder, struct((1, 64, 64, 3), jnp.float32)
        ),
        "image_encoder": load(
            clip_table.IMAGE_ENCODER_RULES,
            tensors(path, "clip."),
            encoder,
            struct((1, 28, 28, 3), jnp.float32),
        ),
        "image_normalizer": {k: jnp.asarray(v) for k, v in tensors(path, "norm.").items()},
    }
    return path, views.Models(networks, params)


def infer_draws(a):
    return {
        "clip_noise": a["clip_noise"],
        "x_T": nhwc(a["x_T"]),
        "z": nhwc(a["step_noise"]),
    }


def test_golden_sampling_run(golden_models):
    path, models = golden_models
    a = tensors(path, "infer.")
    found = views.sample_views(
        models,
        a["image_u8"],
        a["prompt"],
        steps=4,
        guidance=3.0,
        eta=1.0,
        draws=infer_draws(a),
        vae_input_dtype=jnp.float16,
    )
    expected = nhwc(a["images"])
    assert found.dtype == np.float32
    assert l2(found, expected) < 2e-4
    assert peak(found, expected) < 1e-3


@pytest.mark.slow
def test_golden_sampling_intermediates(golden_models):
    path, models = golden_models
    a = tensors(path, "infer.")
    pixels = clip_pixels(a["image_u8"], models.networks.clip)
    np.testing.assert_allclose(pixels, nhwc(a["clip_pixels"])[0], atol=1e-5)
    picture = (a["image_u8"].astype(np.float32) / 255 * 2 - 1).astype(np.float16)
    draws = {k: jnp.asarray(v) for k, v in infer_draws(a).items()}
    labels, latents = views.condition(
        models.networks,
        models.params,
        jnp.asarray(pixels),
        jnp.asarray(picture, jnp.float32),
        draws["clip_noise"],
    )
    # the reference keeps the unconditional half, zeros, in front
    assert l2(labels, a["class_labels"][6:]) < 1e-5
    assert np.abs(a["class_labels"][:6]).max() == 0
    assert l2(latents, nhwc(a["image_latents"])[6]) < 1e-5
    plan = views.sampling_steps(4)
    np.testing.assert_array_equal(plan.t, a["timesteps"])
    trail = views.sample_latents(
        models.networks,
        models.params,
        views.Conditions(labels, latents, jnp.asarray(a["prompt"])),
        draws,
        views.Settings(jax.tree.map(jnp.asarray, plan), jnp.float32(3.0), jnp.float32(1.0)),
        guided=True,
        trace=True,
    )
    for i in range(4):
        assert l2(trail[i], nhwc(a["latents_per_step"])[i]) < 2e-4


def training_case(golden_models):
    path, models = golden_models
    a = tensors(path, "train.")
    draws = views_training.Draws(
        jnp.asarray(a["clip_noise"].reshape(4, 6, -1)),
        jnp.asarray(nhwc(a["vae_sample_noise"]).reshape(4, 6, 8, 8, 4)),
        jnp.asarray(nhwc(a["latent_noise"]).reshape(4, 6, 8, 8, 4)),
        jnp.asarray(a["t_per_object"], jnp.int32),
        jnp.asarray(a["random_p"]),
    )
    targets = jnp.asarray(nhwc(a["imgs_out"]))
    reference = jnp.asarray(nhwc(a["imgs_in"])[:, 0])
    return a, models, draws, targets, reference


def golden_loss(golden_models):
    """The reference's training step as a function of the UNet's weights and the frozen ones."""
    a, models, draws, targets, reference = training_case(golden_models)
    networks = models.networks

    def loss(unet_params, frozen):
        encoded = views_training.encode(networks, frozen, targets, reference)
        return views_training.diffusion_loss(
            unet_params,
            encoded,
            jnp.asarray(a["prompt"]),
            draws,
            networks=networks,
            normalizer=frozen["image_normalizer"],
        )[0]

    return a, models.params, loss


def test_golden_training_loss(golden_models):
    a, params, loss = golden_loss(golden_models)
    value = jax.jit(loss)(params["unet"], params)
    assert float(value) == pytest.approx(float(a["loss"][0]), rel=1e-5)


@pytest.mark.slow
def test_golden_training_gradients(golden_models):
    a, params, loss = golden_loss(golden_models)
    gradient = jax.jit(jax.grad(loss))(params["unet"], params)
    block = gradient["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_k"]
    for found, name in (
        (gradient["class_embedding"]["linear_1"]["kernel"].T, "class_embedding.linear_1.weight"),
        (jnp.transpose(gradient["conv_in"]["kernel"], (3, 2, 0, 1)), "conv_in.weight"),
        (block["kernel"].T, "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"),
    ):
        assert peak(found, a[f"grad.{name}"]) < 1e-3, name


# --- without the goldens -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return tiny_models()


@pytest.mark.parametrize("pose_features", [0, 4])
def test_load_models_of_a_folder(tmp_path, pose_features):
    made = tiny_models(pose_features)
    folder = save_pipeline(made, tmp_path / "dir")
    loaded = views.load_models(folder)
    assert loaded.networks == made.networks
    same = jax.tree.map(lambda a, b: bool((a == b).all()), loaded.params, dict(made.params))
    assert jax.tree.all(same)
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(MouseLiftError, match="scheduler_config.json"):
        views.load_models(folder)


def picture(seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def prompts(n_views=3):
    return np.random.default_rng(9).normal(size=(n_views, 5, 12)).astype(np.float32)


def test_a_picture_has_the_same_views_alone_and_in_company(tiny):
    keys = jax.random.split(jax.random.key(3), 2)
    both = views.sample_views(
        tiny, np.stack([picture(0), picture(1)]), prompts(), steps=2, rng=keys
    )
    assert both.shape == (2, 3, 16, 16, 3)
    for i in range(2):
        same = views.sample_views(tiny, picture(i)[None], prompts(), steps=2, rng=keys[i : i + 1])
        np.testing.assert_array_equal(same[0], both[i])
    one_key = views.sample_views(tiny, np.stack([picture(0)] * 2), prompts(), steps=2, rng=5)
    np.testing.assert_array_equal(
        one_key[0], views.sample_views(tiny, picture(0), prompts(), steps=2, rng=5)
    )
    assert np.abs(one_key[0] - one_key[1]).max() > 0


def test_one_program_for_every_picture_guidance_and_eta(tiny):
    views.sample_views(tiny, picture(0), prompts(), steps=2, guidance=3.0)
    before = views.sample_latents._cache_size()
    views.sample_views(tiny, picture(1), 2 * prompts(), steps=2, guidance=2.5, eta=0.5, rng=7)
    assert views.sample_latents._cache_size() == before


def test_float_pictures_equal_their_bytes(tiny):
    x = picture(2)
    a = views.sample_views(tiny, x, prompts(), steps=2)
    b = views.sample_views(tiny, x / np.float32(255), prompts(), steps=2)
    np.testing.assert_array_equal(a, b)


def test_posed_networks_need_poses():
    models = tiny_models(pose_features=4)
    with pytest.raises(ConfigError, match="needs the poses"):
        views.sample_views(models, picture(), prompts(), steps=1)
    rig = rig_from_angles([270, 180, 90], 0.0, 2.7, 15.0, 16)
    poses = views.camera_poses(rig)
    np.testing.assert_allclose(np.rad2deg(poses[:, 0]) % 360, [0, 270, 180], atol=1e-3)
    given = views.sample_views(models, picture(), prompts(), steps=1, poses=poses)
    stored = views.sample_views(
        views.Models(models.networks, models.params, rig), picture(), prompts(), steps=1
    )
    np.testing.assert_array_equal(given, stored)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": np.zeros((16, 12, 3), np.uint8)}, "not square"),
        ({"image": np.full((16, 16, 3), 2.0)}, "outside"),
        ({"prompt_embeds": np.zeros((4, 5, 12))}, "another number of views"),
        ({"prompt_embeds": np.zeros((3, 5, 7))}, "wrong width"),
        ({"draws": {"x_T": np.zeros((3, 8, 8, 4))}}, "does not fit"),
        ({"eta": 1.5}, "eta is out of range"),
        ({"eta": -0.1}, "eta is out of range"),
        ({"eta": float("nan")}, "eta is out of range"),
        ({"guidance": -1.0}, "guidance is out of range"),
        ({"guidance": float("inf")}, "guidance is out of range"),
    ],
)
def test_messages(tiny, change, words):
    args = {"image": picture(), "prompt_embeds": prompts(), "steps": 1} | change
    with pytest.raises(MouseLiftError, match=words):
        views.sample_views(tiny, **args)


def test_views_that_are_not_finite_are_an_error(tiny):
    broken = jax.tree.map(lambda x: x.at[:].set(jnp.nan), tiny.params["unet"])
    models = views.Models(tiny.networks, {**tiny.params, "unet": broken})
    with pytest.raises(TrainingError, match="latents are not finite"):
        views.sample_views(models, picture(), prompts(), steps=2)


def test_dropout_shares():
    u = jnp.array([0.01, 0.07, 0.12, 0.5])
    label, reference = views_training.dropout_masks(u, 0.05)
    assert label.tolist() == [0, 0, 1, 1]
    assert reference.tolist() == [1, 0, 0, 1]


def test_reference_in_slot_0_is_not_encoded_twice(tiny):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 16, 16, 3)), jnp.float32)
    run = jax.jit(lambda r: views_training.encode(tiny.networks, tiny.params, images, r))
    once, twice = run(None), run(images[:, 0])
    np.testing.assert_allclose(once.reference, twice.reference, atol=1e-5)
    np.testing.assert_array_equal(once.image_embeds, twice.image_embeds)


def test_clip_preprocessing_against_transformers():
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(**ClipPixels(size=28).to_source())
    for shape in ((64, 64, 3), (50, 71, 3), (90, 33, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(
            clip_pixels(image, ClipPixels(size=28)), np.moveaxis(expected, 0, -1), atol=1e-5
        )
