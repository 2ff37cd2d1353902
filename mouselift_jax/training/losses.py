"""Losses on rendered pictures, and the weighted sum that trains GS-LRM.

Pictures are [*B,H,W,C] in [0,1]; masks [*B,H,W,1], 1 = subject, counted as subject above 0.5. Each
term is the mean over everything it sees. Networks (perceptual, LPIPS) come in as functions of two
pictures, so that this file needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mouselift_jax.errors import ConfigError, ShapeError

SSIM_K = (0.01, 0.03)
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
OUTSIDE_GREY = 0.5  # what masked SSIM puts outside the mask, in both pictures
POINTS_WARMUP_WEIGHT = 0.1
Distance = Callable[[Array, Array], Array]  # (pictures [N,H,W,3], pictures) -> [N]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; a term of weight 0 is not computed.

    Attributes:
        l2: mean squared error.
        ssim: 1 - SSIM.
        perceptual: VGG19 feature distance; needs its network.
        lpips: LPIPS-VGG; needs its network.
        alpha: squared error of the rendered opacity against the mask.
        background: squared error against white outside the mask.
        pixelalign: distance of each pixel's Gaussian from its ray.
        pointsdist: squared error of the distances from the camera against standardised ones; keeps
            the first steps of a training from scratch from collapsing.
        random_background: renders and their targets are laid on a colour drawn for every sample and
            step, so that white haze is no free answer; inputs stay on white. With alpha > 0.
            Source: instant-ngp and nerfstudio's splatfacto, whose background is random by default.
        masked: l2 and ssim see the subject only; every sample counts the same.
        clamp: clamp renders to [0,1] first, so that a pixel too bright has no gradient.
        l2_warmup_steps: perceptual and lpips are off before this step.
        points_warmup_steps: before this step only `pointsdist`, ssim, alpha and background count,
            pointsdist with weight 0.1.
    """

    l2: float = 1.0
    ssim: float = 0.0
    perceptual: float = 0.0
    lpips: float = 0.0
    alpha: float = 0.0
    background: float = 0.0
    pixelalign: float = 0.0
    pointsdist: float = 0.0
    random_background: bool = False
    masked: bool = False
    clamp: bool = False
    l2_warmup_steps: int = 0
    points_warmup_steps: int = 0

    def needs(self) -> tuple[str, ...]:
        """The networks this loss wants: any of `perceptual`, `lpips`."""
        return tuple(n for n in ("perceptual", "lpips") if getattr(self, n) > 0)


# --- terms ---------------------------------------------------------------------------------------


def l2(a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"]) -> Float[Array, ""]:
    """Mean squared error."""
    return jnp.mean(jnp.square(a - b))


def masked_l2(
    a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"], mask: Float[Array, "*B H W 1"]
) -> Float[Array, ""]:
    """Mean squared error over the pixels of the mask; 0 for an empty mask."""
    inside = (mask > 0.5).astype(a.dtype)
    return jnp.sum(jnp.square(a - b) * inside) / (a.shape[-1] * jnp.maximum(inside.sum(), 1.0))


def ssim(a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"]) -> Float[Array, "*B"]:
    """Structural similarity of each picture: 11-tap Gaussian, population covariance, no border.

    Raises:
        ShapeError: a picture smaller than the window.
    """
    return ssim_map(a, b).mean((-3, -2, -1))


def masked_ssim(
    a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"], mask: Float[Array, "*B H W 1"]
) -> Float[Array, "*B"]:
    """SSIM with both pictures grey outside the mask."""
    inside = mask > 0.5
    return ssim(jnp.where(inside, a, OUTSIDE_GREY), jnp.where(inside, b, OUTSIDE_GREY))


def pixelalign(
    points: Float[Array, "*B 3"],
    ray_o: Float[Array, "*B 3"],
    ray_d: Float[Array, "*B 3"],
    mask: Float[Array, "*B 1"] | None = None,
) -> Float[Array, ""]:
    """Mean distance of points from their rays; the place along the ray has no gradient."""
    r = points - ray_o
    along = jax.lax.stop_gradient((r * ray_d).sum(-1, keepdims=True))
    off = r - along * ray_d
    off = off if mask is None else off * mask
    square = (off**2).sum(-1)
    # The norm's gradient at 0 is taken as 0.
    return jnp.mean(jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0))


def pointsdist(
    points: Float[Array, "*B H W 3"], ray_o: Float[Array, "*B H W 3"]
) -> Float[Array, ""]:
    """Pull each picture's distances towards their own shape with spread 0.5 about |camera|."""
    square = ((points - ray_o) ** 2).sum(-1)
    dist = jnp.sqrt(jnp.maximum(square, 1e-12))
    fixed = jax.lax.stop_gradient(dist)
    mean = fixed.mean((-2, -1), keepdims=True)
    spread = fixed.std((-2, -1), ddof=1, keepdims=True)
    target = (fixed - mean) / (spread + 1e-8) * 0.5 + jnp.linalg.norm(ray_o, axis=-1)
    return jnp.mean(jnp.square(dist - jax.lax.stop_gradient(target)))


def gaussian_window() -> np.ndarray:
    """The 11 taps of SSIM's window."""
    x = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    w = np.exp(-(x**2) / (2 * SSIM_SIGMA**2))
    return w / w.sum()


def ssim_map(
    a: Float[Array, "*B H W C"], b: Float[Array, "*B H W C"], covariance_scale: float = 1.0
) -> Float[Array, "*B h w C"]:
    """SSIM at every pixel that has a whole window: 10 rows and columns fewer."""
    if min(a.shape[-3:-1]) < SSIM_WINDOW:
        raise ShapeError(
            "SSIM needs pictures at least as large as its window",
            expected=f">= {SSIM_WINDOW} px",
            found=f"{a.shape[-3]} x {a.shape[-2]}",
            fix="larger pictures, or --config.loss.ssim=0",
        )
    taps = [float(t) for t in gaussian_window()]

    def blur(x: Array) -> Array:
        # Sums of shifted pictures: XLA fuses them, and its grouped convolutions are slow on a CPU.
        for axis in (x.ndim - 3, x.ndim - 2):
            n = x.shape[axis] - SSIM_WINDOW + 1
            parts = (jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(SSIM_WINDOW))
            x = sum(t * part for t, part in zip(taps, parts, strict=True))
        return x

    c1, c2 = (k**2 for k in SSIM_K)
    mu_a, mu_b = blur(a), blur(b)
    var_a = covariance_scale * (blur(a * a) - mu_a**2)
    var_b = covariance_scale * (blur(b * b) - mu_b**2)
    cov = covariance_scale * (blur(a * b) - mu_a * mu_b)
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    return luminance * (2 * cov + c2) / (var_a + var_b + c2)


# --- the sum -------------------------------------------------------------------------------------


def image_loss(
    images: Float[Array, "B V H W 3"],
    targets: Float[Array, "B V H W 3"],
    config: LossConfig,
    *,
    masks: Float[Array, "B V H W 1"] | None = None,
    alphas: Float[Array, "B V H W 1"] | None = None,
    points: tuple[Array, Array, Array] | None = None,
    networks: Mapping[str, Distance] | None = None,
    step: Array | int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The training loss of rendered views.

    Args:
        images: renders.
        targets: pictures they should equal, on the same background.
        config: weights.
        masks: the subject in `targets`; needed by masked, alpha, background.
        alphas: rendered opacity; needed by alpha.
        points: (means, ray_o, ray_d), each [B,V,h,w,3], of the input pixels; needed by pixelalign
            and pointsdist.
        networks: `perceptual` and `lpips` as functions of two stacks of pictures.
        step: update number, for the warm-ups; None = they are over.

    Returns:
        The loss, and every term before weighting, with psnr (dB, of the unmasked error).

    Raises:
        ConfigError: a term's network or mask is missing.
    """
    _check(config, masks, alphas, points, networks)
    if config.clamp:
        images = jnp.clip(images, 0.0, 1.0)
    flat = [x.reshape(-1, *x.shape[2:]) for x in (images, targets)]
    terms: dict[str, Array] = {}
    if config.l2 > 0:
        terms["l2"] = (
            _each(masked_l2, images, targets, masks) if config.masked else l2(images, targets)
        )
    if config.ssim > 0:
        similar = masked_ssim(images, targets, masks) if config.masked else ssim(images, targets)
        terms["ssim"] = 1 - similar.mean()
    for name in config.needs():
        terms[name] = networks[name](*flat).mean()
    if config.alpha > 0:
        terms["alpha"] = l2(alphas, masks)
    if config.background > 0:
        terms["background"] = _each(masked_l2, images, jnp.ones_like(images), 1 - masks)
    if config.pixelalign > 0:
        terms["pixelalign"] = pixelalign(*points)
    if config.pointsdist > 0 or config.points_warmup_steps > 0:
        terms["pointsdist"] = pointsdist(points[0], points[1])

    total = sum(_weight(name, config, step) * term for name, term in terms.items())
    terms["psnr"] = -10 * jnp.log10(jnp.maximum(l2(images, targets), 1e-10))
    return jnp.asarray(total), terms


def _each(term: Callable[..., Array], *batch: Array) -> Array:
    """Mean of a term over the samples of a batch.

    One ratio over the whole batch would weigh samples by their masks, and other than a batch that
    is split into parts does.
    """
    return jnp.mean(jax.vmap(term)(*batch))


def _weight(name: str, config: LossConfig, step: Array | int | None) -> Array | float:
    weight = getattr(config, name)
    if step is None:
        return weight
    if name in ("perceptual", "lpips") and config.l2_warmup_steps > 0:
        weight = jnp.where(step < config.l2_warmup_steps, 0.0, weight)
    if config.points_warmup_steps > 0:
        during = {"l2": 0.0, "perceptual": 0.0, "pointsdist": POINTS_WARMUP_WEIGHT}
        if name in during:
            weight = jnp.where(step < config.points_warmup_steps, during[name], weight)
    return weight


def _check(
    config: LossConfig,
    masks: Array | None,
    alphas: Array | None,
    points: tuple | None,
    networks: Mapping[str, Distance] | None,
) -> None:
    for name in config.needs():
        if name not in (networks or {}):
            raise ConfigError(
                f"the loss weighs {name} by {getattr(config, name)}, but its network is missing",
                where=f"loss.{name}",
                fix="convert the weights (tools/convert_torch_ckpt.py "
                f"{'vgg19' if name == 'perceptual' else 'lpips'}) and give their folder, or set "
                "the weight to 0",
            )
    if config.random_background and (config.masked or config.background > 0):
        raise ConfigError(
            "a random background is compared outside the animal too",
            where="loss.random_background",
            found=f"masked {config.masked}, background {config.background:g}",
            fix="--config.loss.masked=False --config.loss.background=0, or no random_background",
        )
    wants = {
        "masks": (
            masks,
            config.masked or config.alpha > 0 or config.background > 0 or config.random_background,
        ),
        "alphas": (alphas, config.alpha > 0),
        "points": (
            points,
            config.pixelalign > 0 or config.pointsdist > 0 or config.points_warmup_steps > 0,
        ),
    }
    for name, (value, wanted) in wants.items():
        if wanted and value is None:
            raise ConfigError(
                f"this loss needs {name}",
                where="LossConfig",
                found=config,
                fix="pass them, or set the weight of that term to 0",
            )
