"""Every loss against its slow twin, an outside oracle, or measured values."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mouselift_jax.errors import ConfigError, ShapeError
from mouselift_jax.training import losses
from mouselift_jax.training.losses import LossConfig, image_loss


def pair(shape=(2, 24, 20, 3), seed=0):
    rng = np.random.default_rng(seed)
    a = rng.random(shape).astype(np.float32)
    return a, np.clip(a + rng.normal(0, 0.1, shape), 0, 1).astype(np.float32)


def slow_ssim(a, b):
    """Windows one by one, in float64."""
    w = np.outer(losses.gaussian_window(), losses.gaussian_window())[..., None]
    a, b, values = a.astype(np.float64), b.astype(np.float64), []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (w * p).sum((0, 1)), (w * q).sum((0, 1))
            vp, vq = (w * (p - mp) ** 2).sum((0, 1)), (w * (q - mq) ** 2).sum((0, 1))
            cov = (w * (p - mp) * (q - mq)).sum((0, 1))
            c1, c2 = 1e-4, 9e-4
            values.append(
                (2 * mp * mq + c1) / (mp**2 + mq**2 + c1) * (2 * cov + c2) / (vp + vq + c2)
            )
    return np.mean(values)


def test_ssim_equals_its_slow_twin_and_dm_pix():
    a, b = pair()
    got = losses.ssim(a, b)
    np.testing.assert_allclose(got, [slow_ssim(*x) for x in zip(a, b, strict=True)], atol=1e-5)
    # dm-pix clips variances from below and is otherwise the same.
    np.testing.assert_allclose(got, dm_pix.ssim(a, b), atol=1e-5)


def test_masked_losses_ignore_what_is_outside():
    a, b = pair()
    rng = np.random.default_rng(1)
    mask = np.float32(rng.random((2, 24, 20, 1)) > 0.6)
    noise = rng.random(a.shape).astype(np.float32)
    c = np.where(mask > 0.5, a, noise)
    want = np.mean(
        [np.square(a - b)[n, y, x] for n, y, x in zip(*np.nonzero(mask[..., 0]), strict=True)]
    )
    assert float(losses.masked_l2(a, b, mask)) == pytest.approx(want, rel=1e-5)
    assert float(losses.masked_l2(c, b, mask)) == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(
        losses.masked_ssim(c, b, mask), losses.masked_ssim(a, b, mask), atol=1e-6
    )
    grey = [np.where(mask > 0.5, x, 0.5) for x in (a, b)]
    np.testing.assert_allclose(losses.masked_ssim(a, b, mask), dm_pix.ssim(*grey), atol=1e-5)
    assert float(losses.masked_l2(a, b, np.zeros_like(mask))) == 0.0


def test_gradients_equal_finite_differences():
    a, b = pair((1, 12, 13, 3))
    mask = np.float32(np.random.default_rng(2).random((1, 12, 13, 1)) > 0.5)
    direction = np.random.default_rng(3).normal(size=a.shape).astype(np.float32)
    config = LossConfig(l2=1.0, ssim=0.3, alpha=0.5, background=0.2, masked=True)

    @jax.jit
    def f(x):
        args = (x[None], b[None], config)
        return image_loss(*args, masks=mask[None], alphas=x[None, ..., :1])[0]

    slope = float((jax.grad(f)(a) * direction).sum())
    eps = 1e-2
    numeric = float(f(a + eps * direction) - f(a - eps * direction)) / (2 * eps)
    assert slope == pytest.approx(numeric, rel=2e-2)


def test_points_losses_equal_their_definitions():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1, 2, 5, 4, 3)).astype(np.float32)
    ray_o = np.broadcast_to(rng.normal(size=(1, 2, 1, 1, 3)), points.shape).astype(np.float32)
    d = rng.normal(size=points.shape)
    ray_d = (d / np.linalg.norm(d, axis=-1, keepdims=True)).astype(np.float32)
    r = points - ray_o
    off = r - (r * ray_d).sum(-1, keepdims=True) * ray_d
    got = losses.pixelalign(points, ray_o, ray_d)
    assert float(got) == pytest.approx(np.linalg.norm(off, axis=-1).mean(), rel=1e-5)
    dist = np.linalg.norm(r, axis=-1)
    m, s = dist.mean((2, 3), keepdims=True), dist.std((2, 3), ddof=1, keepdims=True)
    target = (dist - m) / (s + 1e-8) * 0.5 + np.linalg.norm(ray_o, axis=-1)
    got = losses.pointsdist(points, ray_o)
    assert float(got) == pytest.approx(np.square(dist - target).mean(), rel=1e-5)
    on_ray = ray_o + 2 * ray_d
    assert np.isfinite(jax.grad(losses.pixelalign)(on_ray, ray_o, ray_d)).all()


def test_warm_ups_switch_terms_by_step():
    a, b = (x[None] for x in pair((2, 16, 16, 3)))
    points = tuple(np.ones((1, 2, 4, 4, 3), np.float32) * i for i in (1, 2, 3))
    config = LossConfig(l2=1.0, perceptual=2.0, l2_warmup_steps=10, points_warmup_steps=5)
    nets = {"perceptual": lambda x, y: jnp.full(x.shape[0], 0.25)}

    @jax.jit
    def total(step):
        return image_loss(a, b, config, points=points, networks=nets, step=step)

    loss, terms = total(3)
    assert float(loss) == pytest.approx(0.1 * float(terms["pointsdist"]))
    assert float(total(7)[0]) == pytest.approx(float(terms["l2"]))
    assert float(total(10)[0]) == pytest.approx(float(terms["l2"]) + 0.5)


def test_a_missing_network_or_mask_is_an_error_and_not_a_zero():
    a, b = (x[None] for x in pair((2, 16, 16, 3)))
    with pytest.raises(ConfigError, match="perceptual.*missing"):
        image_loss(a, b, LossConfig(perceptual=0.5))
    with pytest.raises(ConfigError, match="lpips.*missing"):
        image_loss(a, b, LossConfig(lpips=0.5), networks={"perceptual": None})
    with pytest.raises(ConfigError, match="needs masks"):
        image_loss(a, b, LossConfig(masked=True))
    with pytest.raises(ShapeError, match=">= 11 px"):
        losses.ssim(a[..., :8, :, :], b[..., :8, :, :])


# --- measured on the public implementation --------------------------------------------------------


@pytest.fixture(scope="module")
def measured(shared):
    folder = shared / "goldens" / "gslrm"
    return load_file(folder / "tiny_losses.safetensors") | {
        f"io.{k}": v for k, v in load_file(folder / "tiny_io.safetensors").items() if k.islower()
    }


def pictures(x):
    return jnp.moveaxis(jnp.asarray(x), 2, -1)


@pytest.mark.shared
def test_ssim_loss_equals_the_measured_one(measured):
    a, b = (np.moveaxis(measured[k], 1, -1) for k in ("pred", "target"))
    want = measured["ssim_loss_upstream"][0]
    assert 1 - float(losses.ssim(a, b).mean()) == pytest.approx(want, rel=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize(
    "prefix,config",
    [
        ("lc", LossConfig(l2=1.0, ssim=0.2, pixelalign=0.3, pointsdist=0.1)),
        ("fork_lc", LossConfig(l2=1, ssim=0.5, background=0.25, masked=True, clamp=True)),
    ],
)
def test_the_whole_loss_equals_the_measured_one(measured, prefix, config):
    target = pictures(measured["io.image"])
    images, masks = target[..., :3], target[..., 3:]
    aligned = pictures(measured["lc.img_aligned_xyz"])
    rays = (pictures(measured[f"io.fp32.{k}"]) for k in ("ray_o", "ray_d"))
    points = (aligned, *rays)
    if prefix == "lc":  # upstream multiplies the distance from the ray by alpha
        points = (*points, masks)
    rendering = pictures(measured[f"{prefix}.rendering"])
    total, terms = image_loss(rendering, images, config, masks=masks, points=points)
    if config.masked:  # upstream takes one ratio over the batch, we the mean of the samples'
        white, clamped = jnp.ones_like(images), jnp.clip(rendering, 0, 1)
        upstream = {
            "l2": losses.masked_l2(clamped, images, masks),
            "background": losses.masked_l2(clamped, white, 1 - masks),
        }
        for name, value in upstream.items():
            total += getattr(config, name) * (value - terms[name])
        terms |= upstream
    for name in ("l2", "ssim", "pixelalign", "pointsdist", "background"):
        if getattr(config, name) > 0:
            key = f"{prefix}.{name}_loss"
            assert float(terms[name]) == pytest.approx(measured[key][0], rel=2e-5), name
    assert float(total) == pytest.approx(measured[f"{prefix}.loss"][0], rel=2e-5)


def test_masked_terms_are_the_same_for_a_batch_in_parts():
    """Accumulation averages parts: one ratio over the batch would weigh samples by their masks."""
    a, b = (x.reshape(4, 1, 24, 20, 3) for x in pair((4, 24, 20, 3)))
    share = np.float32([0.9, 0.5, 0.2, 0.05]).reshape(4, 1, 1, 1, 1)
    mask = np.float32(np.random.default_rng(2).random((4, 1, 24, 20, 1)) < share)
    config = LossConfig(l2=1.0, background=0.5, masked=True)
    whole, _ = image_loss(a, b, config, masks=mask)
    parts = [image_loss(*(x[i::2] for x in (a, b)), config, masks=mask[i::2])[0] for i in (0, 1)]
    assert float(whole) == pytest.approx(float(np.mean(parts)), rel=1e-5)
