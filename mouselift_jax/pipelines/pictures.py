"""Pictures that travel to the device as bytes, laid on their background there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def on_background(
    rgba: jax.Array, background: jax.Array, order: jax.Array | None = None
) -> jax.Array:
    """Pictures [B,V,H,W,3] in [0,1] of bytes with alpha, as `data.batches.pictures` makes them.

    Args:
        rgba: [B,V,H,W,4] uint8, straight alpha.
        background: [B,3].
        order: [B,V], which views to take, in order; None = as they are.
    """
    rgba, background = jnp.asarray(rgba), jnp.asarray(background)
    if order is not None:
        rgba = jnp.take_along_axis(rgba, order[..., None, None, None], 1)
    scaled = rgba.astype(jnp.float32) / 255
    behind = background[:, None, None, None]
    return behind + scaled[..., 3:] * (scaled[..., :3] - behind)


def laid(batch: Any) -> Any:
    """A batch of the loader's with floats and masks where it holds bytes with alpha."""
    if batch.images.shape[-1] == 3:
        return batch
    images, background = jnp.asarray(batch.images), jnp.asarray(batch.background)
    masks = images[..., 3:].astype(jnp.float32) / 255
    return batch._replace(images=on_background(images, background), masks=masks)
