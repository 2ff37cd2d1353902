"""What a plan compiles is what the run compiles."""

import jax
import jax.numpy as jnp
import pytest

from configs import gslrm as configs
from mouselift_jax.stages import gslrm
from mouselift_jax.weights import pretrained


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_plan_has_the_runs_networks_of_the_loss(monkeypatch, dtype):
    """Half-size activations of VGG-19 in the plan alone would promise memory that is not there."""
    config = configs.get_config("base")
    config.train.dtype, config.perceptual_from = dtype, "somewhere"

    def load(source, component, *, dtype=jnp.float32):
        shapes = pretrained.param_shapes(component, {})
        kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
        return pretrained.network(component).make({}, dtype), kept

    monkeypatch.setattr(gslrm, "load_pretrained", load)
    planned, made = (gslrm.loss_networks(config, abstract=a) for a in (True, False))
    assert planned.keys() == made.keys() == {"perceptual"}
    (module, params), (other, loaded) = planned["perceptual"], made["perceptual"]
    assert module == other
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), loaded
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
