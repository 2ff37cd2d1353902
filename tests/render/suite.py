"""What every implementation of the rasterizer has to pass; `test_<name>.py` instantiates it."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mouselift_jax.errors import MouseLiftError
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


def scene(n=60, seed=0, views=2, degree=None, opacity=(0.05, 0.99), dtype=np.float32) -> dict:
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


SIZE = (37, 31)
CAMERAS = ("w2c", "K")


def functional(out):
    """Weights of a random linear functional of colour, alpha and depth."""
    rng = np.random.default_rng(7)
    return [rng.normal(size=v.shape[-4:]).astype(v.dtype) for v in out[:3]]


@functools.lru_cache(maxsize=64)
def differ(implementation, size=SIZE, sh_degree=None, still=()):
    """Pictures, and gradients of a random linear functional of colour, alpha and depth.

    One jitted function for forward and backward, shared by all tests with the same shapes: most of
    a test's time is compilation. No gradient is asked for the arrays named in `still`.
    """

    def loss(moving, fixed, background):
        out = rasterize(
            **moving, **fixed, background=background, width=size[0], height=size[1],
            sh_degree=sh_degree, implementation=implementation,
        )  # fmt: skip
        return sum((a * w).sum() for a, w in zip(out[:3], functional(out), strict=True)), out

    grad = jax.jit(jax.grad(loss, has_aux=True))

    def split(arrays):
        moving = {k: v for k, v in arrays.items() if k not in still}
        return moving, {k: arrays[k] for k in still}

    def run(arrays, background=(0.0, 0.0, 0.0)):
        return grad(*split(arrays), jnp.asarray(background, jnp.float32))

    run.programs = grad._cache_size
    run.draw = jax.jit(lambda arrays, background: loss(arrays, {}, background)[1])
    run.jaxpr = lambda arrays: jax.make_jaxpr(grad)(*split(arrays), jnp.zeros(3))
    return run


INTRINSICS = ("two views", "close-up")


def intrinsics_scene(name):
    """Two views, and one where most Gaussians are far outside a narrow picture but reach into it:
    there the clamp of the Jacobian, which moves with the focal length, has the larger part."""
    arrays = scene(seed=4)  # as many as elsewhere: the same program
    if name == "close-up":
        arrays["scales"] = arrays["scales"] * 2 + 0.1
        arrays["K"] = arrays["K"] * np.float32([[2.5, 1, 1], [1, 2.5, 1], [1, 1, 1]])
    return arrays


@functools.lru_cache
def K_by_differences(name):
    """Gradient to K by differences of the reference in float64; of the loss of `differ`."""
    arrays = intrinsics_scene(name)
    with jax.enable_x64(True):
        run = differ("reference")
        wide = {k: v.astype(np.float64) for k, v in arrays.items()}
        golden, step = np.zeros((2, 3, 3)), 1e-6

        def value(K):
            out = run.draw({**wide, "K": K}, jnp.zeros(3))
            return sum((np.asarray(a) * w).sum() for a, w in
                       zip(out[:3], functional(out), strict=True))  # fmt: skip

        for at in np.ndindex(2, 2, 2):  # view, row, focal length or principal point
            at = (at[0], at[1], at[1] if at[2] == 0 else 2)
            there, back = (wide["K"].copy() for _ in range(2))
            there[at] += step
            back[at] -= step
            golden[at] = (value(there) - value(back)) / (2 * step)
    return arrays, golden


def assert_close(found, expected, tolerance=1e-5):
    for k in expected:
        assert np.isfinite(np.asarray(found[k])).all(), k
        assert relative_l2(found[k], expected[k]) <= tolerance, k


class RasterizerSuite:
    """Set `implementation`; everything else is shared."""

    implementation = ""
    image_tolerance = 1e-5

    def gradients(self, arrays, size=SIZE, sh_degree=None, background=(0.0, 0.0, 0.0)):
        return differ(self.implementation, size, sh_degree)(arrays, background)

    def draw(self, arrays, **kwargs):
        return self.gradients(arrays, **kwargs)[1]

    def same(self, a, b, tolerance=2e-6):
        for found, expected in zip(a[:3], b[:3], strict=True):
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)

    # --- the goldens ---------------------------------------------------------------------------
    @pytest.mark.parametrize("name", CASES)
    def test_golden(self, name):
        case = golden_case(name)
        size = (int(case["width"]), int(case["height"]))
        arrays = {k: case[k] for k in GAUSSIANS}
        n = len(arrays["means"])
        if n < 800 and name != "sh3":  # transparent padding: several cases share one compilation
            arrays = {k: np.pad(v, [(0, 800 - n)] + [(0, 0)] * (v.ndim - 1))
                      for k, v in arrays.items()}  # fmt: skip
        background = tuple(case["background"].tolist())
        run = golden_gradients(self.implementation, size, int(case["sh_degree"]), background)
        cotangents = [case[f"cotangent_{k}"] for k in ("rgb", "alpha", "depth_sum")]
        gradients, out = run(arrays, case["w2c"][None], case["K"][None], cotangents)
        clear = ~case["ambiguous"]
        for found, expected in ((out.rgb[0], case["rgb"]), (out.alpha[0, ..., 0], case["alpha"]),
                                (out.depth[0, ..., 0], case["depth_sum"])):  # fmt: skip
            error = np.abs(np.asarray(found) - expected)[clear].max()
            assert error <= self.image_tolerance * max(1, np.abs(expected).max()), (name, error)
        limit = 2e-4 if name == "widefov" else 2e-5
        errors = {k: relative_l2(gradients[k][:n], case[f"grad_{k}"]) for k in GAUSSIANS}
        assert max(errors.values()) <= limit, errors
        assert int(out.info["culled"]) == 0

    # --- against the reference ----------------------------------------------------------------
    @pytest.mark.parametrize("degree", [None, 2])
    def test_equals_the_reference(self, degree):
        """Two views, gradients to everything, the cameras included."""
        arrays = scene(degree=degree)
        gradients, out = self.gradients(arrays, sh_degree=degree)
        expected, truth = differ("reference", sh_degree=degree)(arrays)
        self.same(out, truth, 1e-5)
        assert_close(gradients, expected, 5e-5)

    @pytest.mark.parametrize("name", INTRINSICS)
    def test_gradient_to_K_is_that_of_finite_differences(self, name):
        arrays, golden = K_by_differences(name)
        gradients, _ = self.gradients(arrays)
        assert relative_l2(gradients["K"], golden) <= 5e-5
        assert not np.any(gradients["K"][:, 2]) and not np.any(gradients["K"][:, [0, 1], [1, 0]])

    def test_gradient_to_K_is_made_only_where_it_is_asked_for(self):
        """The program without it holds less, and says the same of everything else."""
        arrays, still = scene(), ("K",)
        short, long = (len(str(differ(self.implementation, still=names).jaxpr(arrays)))
                       for names in (still, ()))  # fmt: skip
        assert short < long
        without, _ = differ(self.implementation, still=still)(arrays)
        everything, _ = self.gradients(arrays)
        assert np.any(everything.pop("K")) and without.keys() == everything.keys()
        assert_close(without, everything, 1e-6)

    def test_same_bits_twice(self):
        arrays = scene()
        first, second = self.gradients(arrays), self.gradients(arrays)
        jax.tree.map(np.testing.assert_array_equal, first, second)

    def test_order_of_the_input_does_not_matter(self):
        arrays = scene()
        order = np.random.default_rng(1).permutation(60)
        mixed = {k: v if k in CAMERAS else v[order] for k, v in arrays.items()}
        gradients, out = self.gradients(arrays)
        found, other = self.gradients(mixed)
        self.same(other, out)
        expected = {k: v if k in CAMERAS else v[order] for k, v in gradients.items()}
        assert_close(found, expected)

    def test_equal_depths_keep_the_order_of_the_input(self):
        arrays = scene()
        arrays["means"][:2] = [0, 0, -2.0]
        arrays["opacities"][2:] = 0
        arrays["scales"][:2], arrays["opacities"][:2] = 0.5, 0.9
        arrays["colors"][:2] = [[1, 0, 0], [0, 1, 0]]
        out = self.draw(arrays)
        red, green, _ = np.asarray(out.rgb[0, 13, 19])
        assert red > 3 * green > 0
        arrays["colors"][:2] = [[0, 1, 0], [1, 0, 0]]
        red, green, _ = np.asarray(self.draw(arrays).rgb[0, 13, 19])
        assert green > 3 * red > 0

    # --- odd scenes ---------------------------------------------------------------------------
    def test_empty_scene(self):
        arrays = scene(n=0)
        gradients, out = self.gradients(arrays, background=(0.2, 0.4, 0.6))
        np.testing.assert_allclose(out.rgb, np.broadcast_to([0.2, 0.4, 0.6], out.rgb.shape))
        assert not np.any(out.alpha) and not np.any(out.depth)
        assert gradients["means"].shape == (0, 3) and not np.any(gradients["w2c"])
        assert int(out.info["culled"]) == 0

    def test_all_behind(self):
        arrays = scene()
        arrays["means"][:, 2] = -3
        gradients, out = self.gradients(arrays)
        assert not np.any(out.alpha) and int(out.info["culled"]) == 0
        assert all(not np.any(v) for v in gradients.values())

    def test_one_pixel(self):
        arrays = scene()
        arrays["K"][:, :2, 2] = 0.5
        gradients, out = self.gradients(arrays, (1, 1))
        expected, truth = differ("reference", (1, 1))(arrays)
        assert out.rgb.shape == (2, 1, 1, 3)
        self.same(out, truth)
        assert_close(gradients, expected, 5e-5)

    @pytest.mark.parametrize(
        "change",
        [
            dict(scales=np.float32([40, 30, 50])),  # one covers every pixel
            dict(scales=np.float32([30, 1e-3, 1e-4])),  # needles across the picture
            dict(scales=np.float32(1e-5)),  # far below a pixel
            dict(scales=np.float32(0)),
            dict(opacities=np.float32(1)),
            dict(opacities=np.float32(0)),
            dict(quats=np.float32(0)),
            dict(quats=np.float32([1e-12, 0, 0, 2e-12])),
            dict(quats=np.float32([1e15, 3e15, 0, 0])),
            dict(means=np.float32([0, 0, -2.29])),  # camera z just above near
            dict(means=np.float32([900, 5, 0])),  # far out of the picture
        ],
        ids=lambda change: "-".join(f"{k}={np.ravel(v)[0]:g}" for k, v in change.items()),
    )
    def test_extreme_values(self, change):
        arrays = scene()
        for k, v in change.items():
            arrays[k][:3] = v
        gradients, out = self.gradients(arrays)
        expected, truth = differ("reference")(arrays)
        self.same(out, truth, 2e-5)
        # A quaternion of norm 1e-12 has gradients of 1e12: compare them by themselves.
        usual = {k: np.asarray(v)[3:] for k, v in expected.items() if k not in CAMERAS}
        assert_close({k: gradients[k][3:] for k in usual}, usual, 1e-4)
        for k, v in usual.items():
            assert np.isfinite(np.asarray(gradients[k])).all(), k
            few, truth_few = np.asarray(gradients[k])[:3], np.asarray(expected[k])[:3]
            floor = 1e-4 * np.abs(v).max()
            np.testing.assert_allclose(
                few, truth_few, rtol=2e-3, atol=max(floor, 2e-3 * np.abs(truth_few).max())
            )

    @pytest.mark.parametrize("degree", [None, 2])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite_is_left_out_and_counted(self, value, degree):
        clean = scene(degree=degree)
        arrays = {k: v.copy() for k, v in clean.items()}
        for k, name in enumerate(GAUSSIANS):
            arrays[name].reshape(60, -1)[3 * k, -1] = value
        arrays["scales"][40] = 1e30  # finite, but not its covariance
        bad = [0, 3, 6, 9, 12, 40]
        clean["opacities"][bad] = 0
        gradients, out = self.gradients(arrays, sh_degree=degree)
        expected, truth = self.gradients(clean, sh_degree=degree)
        self.same(out, truth, 1e-7)
        assert int(out.info["culled"]) == 6 and int(truth.info["culled"]) == 0
        for k in GAUSSIANS:
            assert not np.any(np.asarray(gradients[k])[bad]), k
        good = np.setdiff1d(np.arange(60), bad)
        assert_close({k: gradients[k][good] for k in GAUSSIANS},
                     {k: expected[k][good] for k in GAUSSIANS}, 1e-6)  # fmt: skip
        cameras = {k: expected[k] for k in CAMERAS}
        assert_close(gradients, cameras, 1e-5)

    @pytest.mark.parametrize("degree", [None, 2])
    @pytest.mark.parametrize("name", CAMERAS)
    def test_a_camera_that_is_not_finite_draws_nothing(self, name, degree):
        """All Gaussians are counted, and the other view is none the worse."""
        arrays, clean = scene(degree=degree), scene(degree=degree)
        arrays[name][1, 0, 0] = np.nan
        clean["K"][1, :2, 2] = 1e6  # looks the other way
        gradients, out = self.gradients(arrays, sh_degree=degree)
        expected, truth = self.gradients(clean, sh_degree=degree)
        self.same(out, truth, 1e-7)
        assert not np.any(out.alpha[1]) and int(out.info["culled"]) == 60
        assert_close(gradients, expected, 1e-6)

    def test_check_raises(self):
        arrays = {k: jnp.asarray(v) for k, v in scene(n=3, views=1).items()}
        arrays["means"] = arrays["means"].at[1, 1].set(jnp.nan)
        kwargs = dict(width=2, height=1, implementation=self.implementation, check=True)
        run = jax.jit(lambda a: rasterize(**a, **kwargs).rgb)
        with pytest.raises(Exception, match="not finite"):
            jax.block_until_ready(run(arrays))
            jax.effects_barrier()
        if self.implementation == "tiled":  # its eager call compiles as long as the jitted one
            return
        with pytest.raises(MouseLiftError, match="not finite"):
            rasterize(**arrays, **kwargs)

    # --- options ------------------------------------------------------------------------------
    def test_background_shines_through_linearly(self):
        arrays = scene()
        black, grey = self.draw(arrays), self.draw(arrays, background=(0.5, 0.25, 1.0))
        light = 1 - np.asarray(black.alpha)
        np.testing.assert_allclose(
            np.asarray(grey.rgb) - np.asarray(black.rgb), light * [0.5, 0.25, 1.0], atol=1e-6
        )

    def test_principal_point_off_the_centre(self):
        arrays = scene()
        arrays["K"][:, :2, 2] = [[-3, 40], [30, 4]]
        gradients, out = self.gradients(arrays)
        expected, truth = differ("reference")(arrays)
        self.same(out, truth, 1e-5)
        assert_close(gradients, expected, 5e-5)

    def test_one_program_whatever_is_visible(self):
        run, seen = differ(self.implementation), set()
        for opacity in (0.9, 0.3, 0.0):
            arrays = scene()
            arrays["opacities"][:] = opacity
            seen.add(int(run(arrays)[1].info["intersections"]))
        assert run.programs() == 1
        assert len(seen) == 3 or self.implementation == "reference", seen

    # --- transformations ----------------------------------------------------------------------
    def test_batch_and_vmap_agree_with_a_loop(self):
        """Leading dimensions, vmap and a Python loop: the same pictures and gradients."""
        scenes = [scene(seed=s) for s in (0, 1)]
        scenes[1]["colors"][7, 1] = np.nan
        stacked = {k: np.stack([s[k] for s in scenes]) for k in scenes[0]}
        loop = [self.gradients(s) for s in scenes]
        for run in (differ(self.implementation), jax.vmap(differ(self.implementation))):
            gradients, out = run(stacked)
            for i, (expected, truth) in enumerate(loop):
                self.same([a[i] for a in out[:3]], truth, 1e-6)
                assert_close({k: v[i] for k, v in gradients.items()}, expected, 1e-5)
        assert out.info["culled"].tolist() == [0, 1]  # each element of vmap counts its own

    @pytest.mark.slow
    def test_gradient_of_vmap(self):
        scenes = [scene(seed=s) for s in (0, 1)]
        stacked = {k: np.stack([s[k] for s in scenes]) for k in scenes[0]}
        K = stacked.pop("K")

        def loss(moving, map_scenes):
            def draw(moving, K):
                out = rasterize(**moving, K=K, width=37, height=31,
                                implementation=self.implementation)  # fmt: skip
                return jnp.square(out.rgb).sum() + out.depth.sum()

            return (jax.vmap(draw)(moving, K) if map_scenes else draw(moving, K)).sum()

        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        assert_close(gradient(stacked, True), gradient(stacked, False), 1e-6)

    @pytest.mark.slow
    def test_memory_of_the_backward_does_not_grow_with_the_views(self):
        def temporaries(views):
            arrays = scene(n=3000, views=views)
            K = arrays.pop("K")

            def loss(moving):
                out = rasterize(**moving, K=K, width=37, height=31,
                                implementation=self.implementation)  # fmt: skip
                return jnp.square(out.rgb).sum()

            program = jax.jit(jax.grad(loss)).lower(arrays).compile()
            return program.memory_analysis().temp_size_in_bytes

        pictures = 37 * 31 * 4 * 20  # a view's pictures and cotangents may be kept
        assert temporaries(12) - temporaries(2) <= 10 * pictures

    @pytest.mark.slow
    def test_vmap_over_cameras_only(self):
        scenes = [scene(seed=s) for s in (0, 1)]
        arrays = {k: np.stack([s[k] for s in scenes]) if k in CAMERAS else v
                  for k, v in scenes[0].items()}  # fmt: skip
        axes = {k: 0 if k in CAMERAS else None for k in arrays}
        gradients, out = jax.vmap(differ(self.implementation), in_axes=(axes,))(arrays)
        _, truth = self.gradients(scenes[0])
        self.same([a[0] for a in out[:3]], truth, 1e-6)
        assert gradients["means"].shape == (2, 60, 3)

    @pytest.mark.parametrize("over", ["views", pytest.param("scenes", marks=pytest.mark.slow)])
    def test_shard_map(self, two_devices, over):
        mesh = jax.make_mesh((2,), (over,), axis_types=(AxisType.Auto,))
        scenes = [scene(seed=s) for s in (0, 1)]
        scenes[1]["quats"][5, 0] = np.inf
        arrays = {k: np.stack([s[k] for s in scenes]) for k in scenes[0]}
        split = P(over) if over == "scenes" else P(None, over)
        shared = P(over) if over == "scenes" else P()
        specs = {k: split if k in CAMERAS else shared for k in arrays}

        def draw(arrays):
            out = rasterize(**arrays, width=37, height=31, implementation=self.implementation)
            return *out[:3], out.info["culled"][None]

        outs = (split, split, split, P(over))
        sharded = jax.shard_map(draw, mesh=mesh, in_specs=(specs,), out_specs=outs)

        def loss(moving, K):
            *pictures, culled = sharded({**moving, "K": K})
            weighed = zip(pictures, functional(pictures), strict=True)
            return sum((a * w).sum() for a, w in weighed), (pictures, culled)

        expected, truth = self.gradients(arrays)
        K = arrays.pop("K")
        gradients, (pictures, culled) = jax.jit(jax.grad(loss, has_aux=True))(arrays, K)
        # Each device counts what it draws: both see the broken one where views are sharded.
        assert culled.tolist() == ([1, 1] if over == "views" else [0, 1])
        self.same(pictures, truth, 1e-5)
        expected.pop("K")
        assert_close(gradients, expected, 1e-5)


@functools.lru_cache(maxsize=64)
def golden_gradients(implementation, size, sh_degree, background):
    def loss(gaussians, w2c, K, cotangents):
        out = rasterize(
            **gaussians, w2c=w2c, K=K, width=size[0], height=size[1], sh_degree=sh_degree,
            background=background, implementation=implementation,
        )  # fmt: skip
        pictures = (out.rgb[0], out.alpha[0, ..., 0], out.depth[0, ..., 0])
        return sum((a * b).sum() for a, b in zip(pictures, cotangents, strict=True)), out

    return jax.jit(jax.grad(loss, has_aux=True))
