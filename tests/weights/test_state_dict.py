"""State dicts as training loops save them, converted to the same weights."""

import numpy as np
import pytest

from mouselift_jax.weights.kinds import Request, plan_conversion
from tests import torch_sources as fake


def _reader():
    pytest.importorskip("torch")
    from tools.torch_reader import read_torch

    return read_torch


def _under(*prefixes):
    return lambda state: {"".join(f"{p}." for p in prefixes) + k: v for k, v in state.items()}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: {"model": s}, ""),
        (lambda s: s, ""),
        (lambda s: {"model": _under("module")(s)}, "module"),
        (lambda s: {"model": _under("_orig_mod")(s)}, "_orig_mod"),
        (lambda s: {"model": _under("module", "_orig_mod")(s)}, "_orig_mod, module"),
        (lambda s: {"model": _under("_orig_mod", "module", "_orig_mod")(s)}, "_orig_mod, module"),
        (lambda s: {"state_dict": _under("model", "_orig_mod")(s), "epoch": 3}, "state_dict"),
        (lambda s: {"state_dict": _under("lrm", "module", "net")(s)}, "lrm, module, net"),
        (lambda s: {"model_state_dict": s, "loss": 1.0}, "model_state_dict"),
        (lambda s: {"model_ema": s, "step": 5}, "model_ema"),
        (lambda s: {"checkpoint": {"state_dict": s}}, "checkpoint / state_dict"),
        (lambda s: {"model": {k.replace(".", "._orig_mod.", 1): v for k, v in s.items()}}, "_orig"),
        (
            lambda s: {"model": {k: 0 * v for k, v in s.items()}, "model_ema": s},
            "model_ema",
        ),
    ],
)
def test_whatever_a_training_loop_wraps_round_the_names(tmp_path, wrap, note):
    state = fake.gslrm_state()
    fake.save_torch(tmp_path / "ckpt_1.pt", wrap(state))
    part = plan_conversion("gslrm", Request(tmp_path, _reader())).parts[0]
    assert note in str(part.notes[1:])
    assert {k: v.shape for k, v in part.tensors.items()} == {k: v.shape for k, v in state.items()}
    for key, value in state.items():
        assert (np.asarray(part.tensors[key]) == value).all()


def test_prefixes_of_a_component_are_taken_off(tmp_path):
    state = fake.component_state("unet")
    fake.write_component(tmp_path / "unet", "unet", state=_under("_orig_mod", "module")(state))
    part = plan_conversion("unet", Request(tmp_path / "unet")).parts[0]
    assert set(part.tensors) == set(state) and "_orig_mod, module" in str(part.notes)
