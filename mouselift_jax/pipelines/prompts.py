"""Texts to the embeddings that the multi-view network is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.errors import CheckpointError, ConfigError

TOKENIZER_FILES = ("vocab.json", "merges.txt")


def load_tokenizer(folder: str | Path) -> Any:
    """The CLIP tokenizer of a converted pipeline (or any folder with its files).

    Raises:
        CheckpointError: files are missing; names them, and where they come from.
    """
    folder = Path(folder)
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"the tokenizer is incomplete: no {' and no '.join(missing)}",
            where=folder,
            expected="vocab.json and merges.txt, or tokenizer.json",
            found=", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "-",
            fix="copy them from the `tokenizer` folder of Stable Diffusion 2.1; the release of "
            "FaceLift may lack merges.txt",
        )
    from transformers import CLIPTokenizer

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
