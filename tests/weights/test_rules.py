"""The engine: pairing, both directions, and one clear error per fault."""

import numpy as np
import pytest

from mouselift_jax.errors import CheckpointError, ProblemList
from mouselift_jax.weights import rules as R

TABLE = (
    R.Rule("{m*}.{name:conv1|conv2}.weight", "{m}/{name}/kernel", "conv"),
    R.Rule("{m*}.{name:conv1|conv2}.bias", "{m}/{name}/bias"),
    R.Rule("emb.{name:linear_1|linear_2}.weight", "emb/{name}/kernel", "linear"),
    R.Rule("layers.{i}.norm.weight", "layers/norm/scale", stack="i"),
    R.Rule("layers.{i}.fc.weight", "layers/fc/kernel", "linear", stack="i"),
    R.Rule("lin{i}.model.1.weight", "lin{i}/weights", "channel_weights"),
    R.Alias("module.{key*}", "{key}"),
    R.Alias("{m*}.convolution1.{p:weight|bias}", "{m}.conv1.{p}"),
    R.Ignore("{m*}.position_ids", "a constant"),
)


def _source():
    rng = np.random.default_rng(0)
    shapes = {
        "down_blocks.0.resnets.1.conv1.weight": (5, 4, 3, 3),
        "down_blocks.0.resnets.1.conv1.bias": (5,),
        "emb.linear_1.weight": (7, 3),
        "layers.0.norm.weight": (6,),
        "layers.1.norm.weight": (6,),
        "layers.1.fc.weight": (2, 6),
        "layers.0.fc.weight": (2, 6),
        "lin0.model.1.weight": (1, 4, 1, 1),
    }
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def _target():
    return {
        "down_blocks_0": {"resnets_1": {"conv1": {"kernel": (3, 3, 4, 5), "bias": (5,)}}},
        "emb": {"linear_1": {"kernel": (3, 7)}},
        "layers": {"norm": {"scale": (2, 6)}, "fc": {"kernel": (2, 6, 2)}},
        "lin0": {"weights": (4,)},
    }


def test_values_land_where_they_belong():
    source = _source()
    params = R.apply_rules(TABLE, source, _target())
    np.testing.assert_array_equal(
        params["down_blocks_0"]["resnets_1"]["conv1"]["kernel"][1, 2, 3, 4],
        source["down_blocks.0.resnets.1.conv1.weight"][4, 3, 1, 2],
    )
    np.testing.assert_array_equal(
        params["layers"]["fc"]["kernel"][1], source["layers.1.fc.weight"].T
    )
    np.testing.assert_array_equal(
        params["emb"]["linear_1"]["kernel"], source["emb.linear_1.weight"].T
    )


def test_round_trip_is_exact():
    source = _source()
    back = R.invert_rules(TABLE, R.apply_rules(TABLE, source, _target()))
    assert back.keys() == source.keys()
    for key, value in source.items():
        assert back[key].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(back[key], value)


def test_aliases_ignored_and_prefix():
    source = {"module." + k.replace("conv1", "convolution1"): v for k, v in _source().items()}
    source["module.text.position_ids"] = np.arange(3)
    pairing = R.match(TABLE, source, _target())
    assert pairing.ignored == {"module.text.position_ids": "a constant"}
    assert len(pairing.moves) == 8
    assert "ignored: a constant" in pairing.describe()
    move = next(m for m in pairing.moves if m.path == "layers/fc/kernel" and m.index == 1)
    params = R.flatten(R.apply_rules(TABLE, source, _target()))
    np.testing.assert_array_equal(move.inverse(params[move.path]), source[move.key])


def test_dtype_of_the_result():
    params = R.apply_rules(TABLE, _source(), _target(), dtype=np.float16)
    assert {leaf.dtype for leaf in R.flatten(params).values()} == {np.dtype(np.float16)}


def _broken(edit):
    source = _source()
    edit(source)
    with pytest.raises((CheckpointError, ProblemList)) as error:
        R.apply_rules(TABLE, source, _target())
    return str(error.value)


def test_missing_tensor_names_the_nearest():
    def rename(source):
        source["layers.1.fcc.weight"] = source.pop("layers.1.fc.weight")

    message = _broken(rename)
    assert "layers.1.fcc.weight" in message and "did you mean 'layers.1.fc.weight'" in message
    assert "missing" in message and "layers/fc/kernel[1]" in message


def test_stray_tensor():
    assert "no place" in _broken(lambda s: s.update({"extra.weight": np.zeros(3)}))


def test_layer_beyond_the_stack_is_stray():
    message = _broken(lambda s: s.update({"layers.2.norm.weight": np.zeros(6)}))
    assert "no place" in message and "layers.2.norm.weight" in message


def test_transposed_tensor():
    def transpose(source):
        source["emb.linear_1.weight"] = source["emb.linear_1.weight"].T

    message = _broken(transpose)
    assert "transposed" in message and "[7, 3]" in message and "[3, 7]" in message


def test_hwio_tensor_and_wrong_rank():
    def hwio(source):
        key = "down_blocks.0.resnets.1.conv1.weight"
        source[key] = source[key].transpose(2, 3, 1, 0)

    assert "HWIO" in _broken(hwio)
    assert "wrong shape" in _broken(lambda s: s.update({"emb.linear_1.weight": np.zeros(21)}))


def test_the_same_place_twice():
    def double(source):
        source["module.emb.linear_1.weight"] = source["emb.linear_1.weight"]

    assert "same place" in _broken(double)


def test_leaf_without_a_rule_or_with_two():
    target = {**_target(), "odd": {"kernel": (3, 3)}}
    with pytest.raises(CheckpointError, match="exactly once"):
        R.match(TABLE, _source(), target)
    twice = (*TABLE, R.Rule("emb.{n:linear_1}.weight", "emb/{n}/kernel"))
    with pytest.raises(CheckpointError, match="found:    2"):
        R.match(twice, _source(), _target())


def test_a_wrong_file_does_not_flood_the_terminal():
    source = {f"other.{i}.weight": np.zeros(1) for i in range(500)}
    with pytest.raises(ProblemList) as error:
        R.match(TABLE, source, _target())
    assert "right KIND" in str(error.value) and len(str(error.value)) < 8000


def test_tables_are_checked_when_written():
    with pytest.raises(ValueError, match="transform"):
        R.Rule("a.weight", "a/kernel", "lineer")
    with pytest.raises(ValueError, match="must use"):
        R.Rule("a.{i}.weight", "a/kernel")
    with pytest.raises(ValueError, match="not in the source"):
        R.Rule("a.weight", "{b}/kernel")


def test_a_network_may_bring_its_own_transform():
    flip = R.Transform(lambda x: x[::-1], lambda x: x[::-1], "flip")
    table = (R.Rule("a.{i}.weight", "a/scale", flip, stack="i"),)
    source = {f"a.{i}.weight": np.arange(3.0) + i for i in range(2)}
    pairing = R.match(table, source, {"a": {"scale": (2, 3)}})
    assert "(flip)" in pairing.describe()
    params = R.apply_rules(table, source, {"a": {"scale": (2, 3)}})
    np.testing.assert_array_equal(params["a"]["scale"][1], [3, 2, 1])
    np.testing.assert_array_equal(R.invert_rules(table, params)["a.1.weight"], [1, 2, 3])


@pytest.mark.parametrize("shape", [(70, 130), (130, 3, 3, 70), (5,), (2, 3, 4)])
def test_pack_is_only_a_copy(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    views = [x, x.T] + ([x.transpose(0, 3, 1, 2), x.transpose(1, 2, 3, 0)] if x.ndim == 4 else [])
    views += [v.transpose(2, 3, 1, 0) for v in views if v.ndim == 4]
    for view in views:
        packed = R.pack(view, np.float16)
        assert packed.flags.c_contiguous
        np.testing.assert_array_equal(packed, view.astype(np.float16))
