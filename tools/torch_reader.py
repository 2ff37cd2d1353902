"""Opening .pt, .pth and .bin files with torch, safely and lazily.

Only weights are unpickled (`weights_only=True`): a file that wants to run code is refused. Values
stay on disk (`mmap=True`) where the format allows it: everything that torch 1.6 or later wrote.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError, MissingExtraError
from mouselift_jax.weights.torch_sources import LazyTensor


def read_torch(path: Path) -> Any:
    """The content of a torch file, with LazyTensors in the place of tensors.

    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: cut off, damaged, or not only weights.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", f"reading {path.name}") from error
    # Files of torch 1.5 and older are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's own text advises to load the file unsafely: it is not passed on.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _damaged(path, "no torch file's bytes") from error
        raise CheckpointError(
            "The file wants to run code when it is opened",
            where=path,
            expected="tensors in plain containers",
            found=wanted.group(1),
            fix="refused for safety: ask its author for a safetensors file",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _damaged(path, str(error).strip().splitlines()[:1] or repr(error)) from error
    return _lazy(content, path)


def _damaged(path: Path, found: object) -> CheckpointError:
    return CheckpointError(
        "The file is cut off or is not a torch file",
        where=path,
        found=found,
        fix="download it again and compare its size with the one on the download page",
    )


def _lazy(value: Any, path: Path) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(
                "A tensor is sparse, quantised or empty of values",
                where=path,
                expected="plain tensors",
                found=f"{list(value.shape)}, {value.dtype}, {value.layout}, {value.device}",
                fix="save it with dense tensors",
            )
        name = str(value.dtype).removeprefix("torch.")
        return LazyTensor(tuple(value.shape), name, lambda: _numpy(value))
    if isinstance(value, Mapping):
        return {key: _lazy(item, path) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lazy(item, path) for item in value]
    return value


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
