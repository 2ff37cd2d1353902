"""What a plan compiles is what the run compiles, and what the step is given."""

import jax
import jax.numpy as jnp
import pytest

from configs import gslrm as configs
from mouselift_jax.errors import ShapeError
from mouselift_jax.stages import gslrm
from mouselift_jax.weights import pretrained
from tests.sample_sets import write_samples


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


def test_the_step_is_given_bytes_and_too_little_room_is_still_told(tmp_path):
    """Floats of a batch are four times as large, on the host and on their way to the device."""
    samples = write_samples(tmp_path / "set", n=3, size=32)
    config = configs.get_config("tiny")
    config.data.size, config.train.batch_size, config.model.animal_share = 32, 2, 1.0
    batch = next(gslrm.train_batches(config, samples, (0, 1), 0))
    assert batch.images.dtype == "uint8"
    planned = gslrm.batch_shapes(config)
    assert jax.tree.structure(batch) == jax.tree.structure(planned)
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (batch, planned)]
    assert kinds[0] == kinds[1]
    config.model.animal_share = 0.05
    with pytest.raises(ShapeError, match="more patches than the network has room for"):
        next(gslrm.train_batches(config, samples, (0, 1), 0))
