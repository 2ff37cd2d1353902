"""Texts to the embeddings that the multi-view network is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.errors import CheckpointError, ConfigError, MissingExtraError
from mouselift_jax.weights.tables.pipeline import tokenizer_faults


def load_tokenizer(folder: str | Path, vocabulary: int | None = None) -> Any:
    """The CLIP tokenizer of a converted pipeline (or any folder with its files).

    Args:
        folder: with the tokenizer's files.
        vocabulary: words that the text encoder knows; a tokenizer of fewer is a stub.

    Raises:
        CheckpointError: files are missing or stubs; names them, and where they come from.
    """
    folder = Path(folder)
    faults = tokenizer_faults(folder, vocabulary)
    if faults:
        raise CheckpointError(
            f"the tokenizer cannot be used: {', '.join(faults)}",
            where=folder,
            expected="vocab.json and merges.txt whole, or tokenizer.json",
            found=", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "-",
            fix="copy them from the `tokenizer` folder of Stable Diffusion 2.1; the release of "
            "FaceLift may lack merges.txt",
        )
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "prompts", "wording new prompts") from error

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def tokenize(tokenizer: Any, prompts: Sequence[str], max_tokens: int) -> np.ndarray:
    """Token numbers [V,T], int32, padded to `max_tokens`.

    Raises:
        ConfigError: a prompt is longer than the network reads; it would be cut silently.
    """
    lengths = [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > max_tokens:
            raise ConfigError(
                "a prompt is too long",
                where=prompt,
                expected=f"at most {max_tokens} tokens",
                found=length,
                fix="shorten it in the styles file",
            )
    ids = tokenizer(list(prompts), padding="max_length", max_length=max_tokens)["input_ids"]
    return np.asarray(ids, np.int32)


def encode_prompts(module: Any, params: Any, tokens: np.ndarray) -> np.ndarray:
    """Prompt embeddings [V,T,D], float32: the normed last hidden states of the text tower.

    Args:
        module: the text encoder.
        params: its parameters.
        tokens: token numbers [V,T].
    """
    n = module.config.vocab_size
    if tokens.max() >= n:
        raise CheckpointError(
            "the tokenizer and the text encoder do not belong together",
            expected=f"token numbers below the encoder's vocabulary of {n}",
            found=int(tokens.max()),
            fix="take both from the same pipeline folder",
        )
    embeds = jax.jit(lambda p, t: module.apply({"params": p}, t))(params, tokens)
    return np.asarray(embeds, np.float32)


def cosines(embeds: np.ndarray) -> np.ndarray:
    """Cosine [V,V] between the flattened embeddings of the views: how alike they are worded."""
    flat = embeds.reshape(len(embeds), -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    return flat @ flat.T
