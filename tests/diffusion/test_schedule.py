"""Schedules, noising and weights against the reference's numbers and diffusers' classes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.diffusion import schedule as s
from mouselift_jax.diffusion.sampler import check_sampling, ddim, ddim_step, guide, sampling_steps
from mouselift_jax.errors import ConfigError, MouseLiftError
from mouselift_jax.models.unet_blocks import sinusoid
from tests.models.oracle import nhwc, tensors


@pytest.fixture(scope="module")
def arrays(shared):
    return tensors(shared / "goldens" / "golden_schedulers.safetensors")


def test_golden_alpha_bars(arrays):
    for config, name in ((s.LATENT_NOISE, "ddpm"), (s.IMAGE_NOISE, "imgnoise")):
        np.testing.assert_array_equal(s.alpha_bars(config), arrays[f"{name}.alphas_cumprod"])


@pytest.mark.parametrize("steps", [20, 50])
def test_golden_timesteps(arrays, steps):
    np.testing.assert_array_equal(s.leading_timesteps(steps), arrays[f"ddim.timesteps_{steps}"])


def test_steps_beyond_the_schedule_are_refused():
    assert s.leading_timesteps(999)[0] == 999
    for steps in (0, 1000):  # 1000 would begin at step 1000, for they are shifted by 1
        with pytest.raises(ConfigError, match="out of range"):
            s.leading_timesteps(steps)


def test_every_number_of_a_sampling_run_that_is_wrong_is_told_at_once():
    check_sampling(50, 3.0, 1.0)
    check_sampling(1, 0.0, 0.0)
    with pytest.raises(MouseLiftError) as told:
        check_sampling(0, -1.0, 2.0, section="config.generate.")
    for key in ("steps", "guidance", "eta"):
        assert f"--config.generate.{key}=" in str(told.value)


@pytest.mark.parametrize("name", ["20.1.0", "50.0.0", "50.1.0"])
def test_golden_ddim_steps(arrays, name):
    n, eta = int(name.split(".")[0]), float(name.split(".", 1)[1])
    steps = sampling_steps(n)
    x = jnp.asarray(arrays[f"ddim.{name}.x_T"])
    seen = 0
    for i in range(4):
        a = {k: arrays[f"ddim.{name}.{i}.{k}"] for k in ("t", "v", "z", "x_prev")}
        at = int(np.flatnonzero(steps.t == int(a["t"][0]))[0])
        pair = steps.alpha_bar[at], steps.alpha_bar_next[at]
        x = ddim_step(x, jnp.asarray(a["v"]), jnp.asarray(a["z"]), *pair, eta)
        np.testing.assert_allclose(x, a["x_prev"], atol=2e-6)
        x, seen = jnp.asarray(a["x_prev"]), seen + 1
    assert seen == 4


def test_golden_noising(arrays):
    table = s.alpha_bars(s.ScheduleConfig())
    x0, noise = (jnp.asarray(arrays[f"train.{k}"]) for k in ("x0", "noise"))
    t = jnp.asarray(arrays["train.t"], jnp.int32)
    np.testing.assert_allclose(s.add_noise(x0, noise, t, table), arrays["train.noisy"], atol=1e-6)
    np.testing.assert_allclose(s.velocity(x0, noise, t, table), arrays["train.velocity"], atol=1e-6)


def test_golden_loss_weights(arrays):
    table = s.alpha_bars(s.ScheduleConfig())
    np.testing.assert_allclose(s.snr(table), arrays["train.snr"], rtol=1e-6)
    np.testing.assert_allclose(
        s.min_snr_weights(table, 5.0), arrays["train.min_snr_weight_gamma5"], rtol=1e-6
    )


@pytest.mark.parametrize("level", [0, 100])
def test_golden_image_noise(arrays, level):
    a = {k: jnp.asarray(arrays[f"imgnoise.{k}"]) for k in ("embeds", "noise", "mean", "std")}
    table = s.alpha_bars(s.IMAGE_NOISE)
    scaled = (a["embeds"] - a["mean"]) / a["std"]
    noised = s.noise_embedding(scaled, a["noise"], level, table) * a["std"] + a["mean"]
    labels = np.concatenate([noised, np.tile(sinusoid(jnp.float32(level), 32), (6, 1))], axis=-1)
    np.testing.assert_allclose(labels, arrays[f"imgnoise.out_{level}"], atol=2e-6)


def test_golden_time_embedding(arrays):
    # float32 angles near 1000 are good to 3e-5 in either implementation
    found = sinusoid(jnp.asarray(arrays["temb.t"], jnp.int32), 320)
    np.testing.assert_allclose(found, arrays["temb.dim320"], atol=1e-4)


def test_known_values():
    table = s.alpha_bars(s.ScheduleConfig())
    expected = {0: 0.999149978, 500: 0.276332468, 981: 0.005775496, 999: 0.004660095}
    for t, value in expected.items():
        assert table[t] == pytest.approx(value, rel=1e-6)
    assert s.alpha_bars(s.IMAGE_NOISE)[0] == pytest.approx(0.999958694, rel=1e-7)
    weights = s.min_snr_weights(table, 5.0)
    assert float(weights[41]) == pytest.approx(0.2036, abs=1e-4)
    assert float(weights[100]) == pytest.approx(0.5914, abs=1e-4)
    v_form = s.min_snr_weights(table, 5.0, "v")
    np.testing.assert_allclose(v_form[900], s.snr(table)[900] / (s.snr(table)[900] + 1), rtol=1e-6)
    assert float(s.min_snr_weights(table, None).min()) == 1.0
    for form in ("epsilon", "v"):  # the config says: inf = no weights
        assert (s.min_snr_weights(table, float("inf"), form) == 1.0).all()
    # with eta 1 the last step adds noise too
    last = sampling_steps(50)
    out = ddim_step(
        jnp.zeros(1), jnp.zeros(1), jnp.ones(1), last.alpha_bar[-1], last.alpha_bar_next[-1], 1.0
    )
    assert float(out[0]) == pytest.approx(0.020648, rel=1e-4)


def test_ddim_against_diffusers():
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    stock = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )
    config = s.config_from_source(dict(stock.config), "scheduler_config.json")
    assert config == s.ScheduleConfig()
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(5, 2, 3)).astype(np.float32)
    for eta in (0.0, 0.5, 1.0):
        stock.set_timesteps(5)
        y = torch.from_numpy(x)
        for t, noise in zip(stock.timesteps, z, strict=True):
            y = stock.step(
                torch.sin(y), t, y, eta=eta, variance_noise=torch.from_numpy(noise)
            ).prev_sample
        found = ddim(
            lambda x, t: jnp.sin(x), jnp.asarray(x), jnp.asarray(z), sampling_steps(5), eta
        )
        np.testing.assert_allclose(found, y.numpy(), rtol=2e-5, atol=2e-5)


def test_trace_ends_at_the_sample():
    z = jnp.ones((3, 2))
    args = (lambda x, t: x * 0.5, jnp.ones(2), z, sampling_steps(3))
    np.testing.assert_array_equal(ddim(*args, trace=True)[-1], ddim(*args))


def test_guidance_1_is_conditional():
    u, c = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    np.testing.assert_array_equal(guide(u, c, 1.0), c)
    np.testing.assert_array_equal(guide(u, c, 3.0), u + 3 * (c - u))


@pytest.mark.parametrize(
    "change",
    [{"clip_sample": True}, {"prediction_type": "epsilon"}, {"set_alpha_to_one": True}],
)
def test_scheduler_files_are_checked(change):
    good = {"clip_sample": False, "prediction_type": "v_prediction", "set_alpha_to_one": False}
    with pytest.raises(ConfigError, match=next(iter(change))):
        s.config_from_source({**good, **change}, "scheduler_config.json")
    with pytest.raises(ConfigError, match="clip_sample"):
        s.config_from_source({k: good[k] for k in good if k != "clip_sample"}, "x")


def test_channels_last_helper():
    assert nhwc(np.zeros((2, 3, 4, 5))).shape == (2, 4, 5, 3)
