"""Planning for a GPU that is not here; nothing is compiled but in the slow tests."""

import functools
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import gslrm as gslrm_configs
from configs import mvdiff as mvdiff_configs
from mouselift_jax import target
from mouselift_jax.diffusion.sampler import sampling_steps
from mouselift_jax.errors import BackendError, ConfigError, MissingExtraError
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.models import attention as attention_lib
from mouselift_jax.models.attention import attention
from mouselift_jax.models.gslrm import GSLRM
from mouselift_jax.pipelines import views
from mouselift_jax.pipelines.lift import lift
from mouselift_jax.render import render
from mouselift_jax.stages import gslrm, mvdiff
from mouselift_jax.stages.harness import cards, command, gpu_plan
from mouselift_jax.stages.harness.cost import Cost
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from tests.benchmarks.gpu_aot_train import case_config, released_settings

GIB = 2**30
GPU = ("cuda",)


def cost(gib):
    return Cost({"data": 1}, 0, 0, int(gib * GIB), 0, 1.0, {}, 0, 1.0)


@pytest.mark.parametrize(
    "gib, said",
    [(3.4, "fits: "), (19.0, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.83"), (22.0, "does not fit")],
)
def test_the_verdict_knows_what_jax_takes_by_itself(gib, said):
    """17.6 of 23.5 GiB of an RTX 4090 are taken unless JAX is told otherwise."""
    assert said in gpu_plan.verdict(cost(gib), cards.CARDS["rtx4090"])


def describe(monkeypatch, sizes, config):
    """The plan's text where the step takes sizes[0], and each change after it the next."""
    left = iter(sizes)
    monkeypatch.setattr(gpu_plan, "on_card", lambda *_: cost(next(left)))
    return gpu_plan.describe(gslrm, config, None, "rtx4090", gslrm_configs.get_config)


def test_what_does_not_fit_names_the_first_that_does(monkeypatch):
    config = gslrm_configs.get_config()
    assert "lowmem" not in describe(monkeypatch, [10], config)
    assert "accum_steps=16: fits" in describe(monkeypatch, [90, 10], config)
    text = describe(monkeypatch, [90, 30, 4], config)
    assert "accum_steps=16: does not fit" in text and "gslrm.py:lowmem): fits" in text
    assert "fsdp over more devices" in describe(monkeypatch, [90, 30, 30], config)
    assert config == gslrm_configs.get_config()


def test_mistakes_have_a_fix():
    with pytest.raises(ConfigError, match="did you mean 'rtx4090'"):
        cards.find_card("rtx4900")
    with pytest.raises(ConfigError, match="no training step"):
        stage, config = SimpleNamespace(), SimpleNamespace(stage="prepare")
        gpu_plan.describe(stage, config, None, "h100", None)
    with pytest.raises(ConfigError, match="add --plan"):
        command.environment(None, command.Options(gpu="h100"))


def test_without_xlas_compiler_for_gpus_the_extra_is_named(monkeypatch):
    from jax.experimental import topologies

    def refuses(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", refuses)
    monkeypatch.setattr(cards, "_compiler_is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"\.\[gpu-plan\]"):
        cards.devices(cards.CARDS["h100"])
    # Installed, and of another version, say: that it is missing would be a lie.
    monkeypatch.setattr(cards, "_compiler_is_installed", lambda: True)
    with pytest.raises(BackendError, match="topology not implemented for cuda"):
        cards.devices(cards.CARDS["h100"])


def test_what_is_planned_for_a_gpu_takes_a_gpus_backends(caplog):
    """Attention is cuDNN's, and the rasterizer the kernels that GPUs run, on a machine of CPUs."""
    x = jax.ShapeDtypeStruct((1, 20482, 16, 64), jnp.bfloat16)
    attention_lib._say.cache_clear()
    with caplog.at_level("INFO"), cards.instead_of_what_is_here():
        traced = jax.jit(attention).trace(x, x, x)
        text = traced.lower(lowering_platforms=GPU).as_text()
    attention_lib._say.cache_clear()
    assert "__cudnn$fmhaSoftmax" in text and "attention: cudnn (gpu, bfloat16" in caplog.text
    assert target.platform() == "cpu" and not target.is_absent()


# --- every program of every variant lowers for CUDA ----------------------------------------------

VARIANTS = [("gslrm", v) for v in gslrm_configs.VARIANTS]
SAME_AS_BASE = {"facelift", "six_x"}  # other numbers in the same program
VARIANTS += [("mvdiff", v) for v in mvdiff_configs.VARIANTS if v not in SAME_AS_BASE]


@pytest.mark.slow
@pytest.mark.parametrize("stage, variant", VARIANTS)
def test_training_steps_lower_for_nvidia_gpus(stage, variant):
    module = importlib.import_module(f"mouselift_jax.stages.{stage}")
    with released_settings() as released, cards.instead_of_what_is_here():
        config = case_config(stage, variant, released)
        config.train.batch_size = config.train.accum_steps = 1
        trainer = module.abstract_trainer(config, jax.devices()[:1])
        text = trainer.lower(GPU).as_text()
    if config.train.dtype == "bfloat16":
        assert "__cudnn$fmhaSoftmaxBackward" in text
    if stage == "gslrm":
        assert "rasterize_tiled" not in text


@pytest.mark.slow
@pytest.mark.parametrize("variant", gslrm_configs.VARIANTS)
def test_inference_of_gslrm_lowers_for_nvidia_gpus(variant):
    config = gslrm_configs.get_config(variant)
    with cards.instead_of_what_is_here():
        task = gslrm.make_task(config, gslrm.loss_networks(config, abstract=True))
        model, batch = GSLRM(gslrm.network_config(config)), task.batch
        params = jax.eval_shape(task.init, jax.random.key(0))
        n, side = config.data.n_inputs, config.data.size
        K, c2w = (jax.ShapeDtypeStruct((1, n, *x.shape[2:]), x.dtype) for x in (batch.K, batch.c2w))
        images = jax.ShapeDtypeStruct((1, n, side, side, 3), jnp.float32)

        def go(params, images, K, c2w):
            cameras = Camera(K, c2w, side, side)
            gaussians = lift(model, params, images, cameras)
            return gaussians, render(gaussians, cameras)

        jax.jit(go).trace(params, images, K, c2w).lower(lowering_platforms=GPU)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_sampling_of_views_lowers_for_nvidia_gpus(dtype):
    with released_settings() as released, cards.instead_of_what_is_here():
        config = case_config("mvdiff", "base", released, {"train.dtype": dtype})
        config.train.batch_size = config.train.accum_steps = 1
        config = MultiviewSettings.of(config)
        towers = mvdiff.abstract_towers(config)
        module = mvdiff.make_unet(config, towers.modules["vae"].config.downscale)
        networks = towers.networks(module)
        params = towers.params | {
            "unet": jax.eval_shape(functools.partial(mvdiff.init_unet, module), jax.random.key(0))
        }
        steps = 20
        draws = jax.eval_shape(
            functools.partial(views.draw, networks, n_views=6, steps=steps), jax.random.key(0)
        )
        f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        known = views.Conditions(f32((6, 2048)), f32((64, 64, 4)), f32((6, 77, 1024)))
        how = views.Settings(sampling_steps(steps, networks.latent_noise), f32(()), f32(()))
        how = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), how)
        text = (
            views.sample_latents.trace(networks, params, known, draws, how, guided=True)
            .lower(lowering_platforms=GPU)
            .as_text()
        )
        assert ("__cudnn$fmhaSoftmax" in text) == (dtype == "bfloat16")
        pixels, picture = f32((224, 224, 3)), f32((512, 512, 3))
        views.condition.trace(networks, params, pixels, picture, draws["clip_noise"]).lower(
            lowering_platforms=GPU
        )
        views.decode.trace(networks, params, f32((6, 64, 64, 4))).lower(lowering_platforms=GPU)
