import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import prompts as configs
from mouselift_jax.data.prompts import describe_styles, load_styles, pick_style, view_prompts
from mouselift_jax.errors import CheckpointError, ConfigError, LayoutError, MissingExtraError
from mouselift_jax.files import write_json_atomic
from mouselift_jax.geometry.rig import rig_from_angles
from mouselift_jax.models.clip import TextConfig, TextEncoder
from mouselift_jax.pipelines.prompts import cosines, encode_prompts, load_tokenizer, tokenize
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.stages import prompts as stage
from mouselift_jax.weights.pretrained import load_pretrained, read_config, save_component
from tests.sample_sets import write_samples


def write_tokenizer(folder):
    """A byte-pair vocabulary of single letters and the merge `vi`."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,._-"
    words = [
        "!",
        *letters,
        *(c + "</w>" for c in letters),
        "vi",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nv i\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 77})
    )
    return folder, len(words)


def test_every_style_words_six_different_views():
    cameras = rig_from_angles([270, 225, 180, 90, 0, 315], 20.0, 2.7, 500.0, 512)
    for style in load_styles().values():
        prompts = view_prompts(style, cameras if style.needs_cameras else None)
        assert len(set(prompts)) == 6
        assert style.name in describe_styles()
    assert view_prompts(pick_style("facelift"))[1] == (
        "a rendering image of 3D models, front_right view, color map."
    )


def test_angles_are_those_of_the_cameras():
    style = pick_style("with_angles")
    cameras = rig_from_angles([100, 40, -20, -80, -140, -200], [10, 15, 20, 25, 30, 35], 2.7, 5, 8)
    prompts = view_prompts(style, cameras)
    assert "front view, elevation 10 degrees, azimuth 0 " in prompts[0]
    assert "front_right view, elevation 15 degrees, azimuth 60 " in prompts[1]
    assert "back view, elevation 25 degrees, azimuth 180 " in prompts[3]
    with pytest.raises(ConfigError, match="names the angles"):
        view_prompts(style)


def test_views_out_of_register_are_refused():
    cameras = rig_from_angles([270, 180, 225, 90, 0, 315], 0.0, 2.7, 500.0, 512)
    with pytest.raises(ConfigError, match="not in slot order"):
        view_prompts(pick_style("facelift"), cameras)


def test_misspelt_style_and_broken_file(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'facelift'"):
        pick_style("facelfit")
    with pytest.raises(LayoutError, match="styles is missing"):
        load_styles(tmp_path / "none.json")
    (tmp_path / "s.json").write_text('{"a": {"template": "no view"}}')
    with pytest.raises(LayoutError, match="incomplete"):
        load_styles(tmp_path / "s.json")


def test_missing_tokenizer_files_are_named(tmp_path):
    folder, _ = write_tokenizer(tmp_path / "tokenizer")
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt is missing"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(CheckpointError, match=r"merges\.txt is the pointer of Git LFS"):
        load_tokenizer(folder)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    folder, _ = write_tokenizer(tmp_path / "tokenizer")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[prompts\]'"):
        load_tokenizer(folder)


def test_a_stub_of_a_vocabulary_is_refused(tmp_path):
    folder, vocabulary = write_tokenizer(tmp_path / "tokenizer")
    load_tokenizer(folder, vocabulary)
    with pytest.raises(CheckpointError, match=f"a stub: {vocabulary} words"):
        load_tokenizer(folder, 49408)


def test_encoding_a_tiny_vocabulary(tmp_path):
    folder, vocabulary = write_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(folder)
    config = TextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, n_layers=2, n_heads=2
    )
    prompts = [f"view {i}" for i in range(6)]
    tokens = tokenize(tokenizer, prompts, config.max_tokens)
    assert tokens.shape == (6, 77)
    merged = vocabulary - 3
    assert tokens[0, 0] == vocabulary - 2 and tokens[0, 1] == merged  # start of text, then `vi`
    assert tokens[0, -1] == 0  # padded with "!"
    encoder = TextEncoder(config)
    params = nn.meta.unbox(encoder.init(jax.random.key(0), jnp.asarray(tokens)))["params"]
    embeds = encode_prompts(encoder, params, tokens)
    assert embeds.shape == (6, 77, 16) and np.isfinite(embeds).all()
    alike = cosines(embeds)
    np.testing.assert_allclose(np.diag(alike), 1.0)
    assert (alike - np.eye(6)).max() < 0.9999
    with pytest.raises(ConfigError, match="too long"):
        tokenize(tokenizer, ["a " * 100], 77)
    with pytest.raises(CheckpointError, match="do not belong together"):
        encode_prompts(encoder, params, np.full((1, 77), vocabulary))


def test_the_stage_writes_embeddings_with_texts_and_turns(tmp_path):
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    write_json_atomic(pipeline / "config.json", {})
    _, vocabulary = write_tokenizer(pipeline / "tokenizer")
    config = TextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, n_layers=1, n_heads=2
    )
    encoder = TextEncoder(config)
    params = nn.meta.unbox(encoder.init(jax.random.key(0), jnp.zeros((1, 77), jnp.int32)))["params"]
    save_component(pipeline, "text_encoder", dataclasses.asdict(config), jax.device_get(params))
    settings = configs.get_config("simple")
    settings.init_from = str(pipeline)
    samples = write_samples(tmp_path / "samples", n=2, n_val=1, size=8)
    for name, given, turns in (
        ("canonical", None, [0, 45, 90, 180, 270, 315]),
        ("own", str(samples), [0, 60, 120, 180, 240, 300]),
    ):
        settings.samples = given
        with Workdir(tmp_path / name, settings, Options(progress="none")) as workdir:
            stage.run(settings, workdir)
        _, embeds = load_pretrained(tmp_path / name, "prompt_embeds")
        record = read_config(tmp_path / name, "prompt_embeds")
        assert embeds.shape == (6, 77, 16) and len(set(record["prompts"])) == 6
        np.testing.assert_allclose(record["turns_deg"], turns, atol=1e-3)
