"""What every implementation of the rasterizer has to pass; `test_<name>.py` instantiates it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.render import rasterize

GOLDEN = Path(__file__).parents[1] / "golden" / "raster_exact.npz"
CASES = ("base", "sh3", "opaque", "tiny", "widefov", "huge")
GAUSSIANS = ("means", "quats", "scales", "opacities", "colors")


def golden_case(name: str) -> dict:
    with np.load(GOLDEN) as data:
        case = {k.split("/")[1]: data[k] for k in data.files if k.startswith(name + "/")}
    case["colors"], case["grad_colors"] = case.pop("sh"), case.pop("grad_sh")
    return case


def relative_l2(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def scene(n=60, seed=0, views=1, degree=None, opacity=(0.05, 0.99), dtype=np.float32) -> dict:
    """A random ball of Gaussians before cameras on a ring; arrays as `rasterize` takes them."""
    rng = np.random.default_rng(seed)
    shape = (n, 3) if degree is None else (n, (degree + 1) ** 2, 3)
    w2c = np.tile(np.eye(4), (views, 1, 1))
    for i in range(views):
        a = 0.4 * i + 0.1
        w2c[i, :3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
        w2c[i, :3, 3] = [0.05, -0.1, 2.5]
    arrays = dict(
        means=rng.uniform(-0.8, 0.8, (n, 3)),
        quats=rng.normal(size=(n, 4)),
        scales=np.exp(rng.uniform(-4.5, -1.5, (n, 3))),
        opacities=rng.uniform(*opacity, n),
        colors=rng.uniform(0, 1, shape) if degree is None else rng.normal(size=shape) * 0.4,
        w2c=w2c,
        K=np.tile([[40.0, 0, 18.5], [0, 44.0, 15.0], [0, 0, 1]], (views, 1, 1)),
    )
    return {k: v.astype(dtype) for k, v in arrays.items()}


SIZE = dict(width=37, height=31)


class RasterizerSuite:
    """Set `implementation`; everything else is shared."""

    implementation = ""
    image_tolerance = 1e-5

    def draw(self, arrays, **kwargs):
        kwargs = {**SIZE, "implementation": self.implementation, **kwargs}
        return rasterize(**{k: jnp.asarray(v) for k, v in arrays.items()}, **kwargs)

    def gradients(self, arrays, names=(*GAUSSIANS, "w2c"), seed=7, **kwargs):
        """Gradients of a random linear functional of colour, alpha and depth."""
        fixed = {k: v for k, v in arrays.items() if k not in names}

        def loss(moving):
            out = self.draw({**fixed, **moving}, **kwargs)
            rng = np.random.default_rng(seed)
            return sum((a * rng.normal(size=a.shape).astype(a.dtype)).sum() for a in out[:3])

        return jax.grad(loss)({k: jnp.asarray(arrays[k]) for k in names})

    # --- the goldens ---------------------------------------------------------------------------
    @pytest.mark.parametrize("name", CASES)
    def test_golden(self, name):
        case = golden_case(name)
        fixed = dict(
            w2c=jnp.asarray(case["w2c"])[None],
            K=jnp.asarray(case["K"])[None],
            width=int(case["width"]),
            height=int(case["height"]),
            sh_degree=int(case["sh_degree"]),
            background=jnp.asarray(case["background"]),
            implementation=self.implementation,
        )

        def loss(gaussians):
            out = rasterize(**gaussians, **fixed)
            total = (out.rgb[0] * case["cotangent_rgb"]).sum()
            total += (out.alpha[0, ..., 0] * case["cotangent_alpha"]).sum()
            return total + (out.depth[0, ..., 0] * case["cotangent_depth_sum"]).sum(), out

        gaussians = {k: jnp.asarray(case[k]) for k in GAUSSIANS}
        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(gaussians)
        clear = ~case["ambiguous"]
        for found, expected in ((out.rgb[0], case["rgb"]), (out.alpha[0, ..., 0], case["alpha"]),
                                (out.depth[0, ..., 0], case["depth_sum"])):  # fmt: skip
            error = np.abs(np.asarray(found) - expected)[clear].max()
            assert error <= self.image_tolerance * max(1, np.abs(expected).max()), (name, error)
        limit = 2e-4 if name == "widefov" else 2e-5
        errors = {k: relative_l2(gradients[k], case[f"grad_{k}"]) for k in GAUSSIANS}
        assert max(errors.values()) <= limit, errors
