"""Prompt embeddings: one fixed text embedding per view, [V, T, C]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mouselift_jax.errors import CheckpointError
from mouselift_jax.weights.rules import Rule

RULES = (Rule("prompt_embeds", "prompt_embeds"),)
CONTEXT_DIM = 1024  # of the SD 2 text encoder


def config_from_tensors(tensors: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The shape of an embedding file, checked against what the UNet's cross-attention takes.

    Raises:
        CheckpointError: not one [V, T, 1024] tensor.
    """
    shape = tuple(tensors["prompt_embeds"].shape)
    if len(shape) != 3 or shape[1] != 77:
        raise CheckpointError(
            "These are not prompt embeddings",
            where=where,
            expected=f"[views, 77 tokens, {CONTEXT_DIM}]",
            found=list(shape),
            fix="encode them with the text tower of the same pipeline: configs/prompts.py",
        )
    if shape[2] != CONTEXT_DIM:
        reason = (
            "768 wide embeddings come from openai/clip-vit-large-patch14; the UNet attends to the "
            "1024 wide ones of Stable Diffusion 2's text encoder"
        )
        raise CheckpointError(
            "The prompt embeddings have the wrong width",
            where=where,
            expected=f"[views, 77, {CONTEXT_DIM}]",
            found=f"{list(shape)}: {reason}" if shape[2] == 768 else list(shape),
            fix="use FaceLift's fixed_prompt_embeds_6view/clr_embeds.pt, or make your own: "
            "python launch.py --config=configs/prompts.py",
        )
    return {"shape": list(shape)}
