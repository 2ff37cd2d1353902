"""Names of the perceptual networks: VGG-19 with average pooling, and LPIPS on VGG-16.

VGG-19 comes from MatConvNet's `imagenet-vgg-verydeep-19.mat`, or out of a GS-LRM checkpoint, which
carries it. LPIPS comes in two files: the `lpips` package's `vgg.pth` (five rows of non-negative
channel weights) and torchvision's `vgg16-397923af.pth` (the features).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.errors import CheckpointError
from mouselift_jax.weights.rules import Ignore, Rule
from mouselift_jax.weights.torch_sources import check_file

VGG19_RULES = (
    Rule("conv{i}.weight", "conv{i}/kernel", "conv"),
    Rule("conv{i}.bias", "conv{i}/bias"),
)

LPIPS_RULES = (
    Rule("features.{i}.weight", "features_{i}/kernel", "conv"),
    Rule("features.{i}.bias", "features_{i}/bias"),
    Rule("lin{k}.model.1.weight", "lin{k}/weights", "channel_weights"),
    Ignore("classifier.{r*}", "the classifier of VGG-16"),
)

# Inside the `lpips` package the features sit in five slices and the channel weights exist twice.
PACKED_LPIPS_IGNORED = ("lins.", "scaling_layer.")


def unpack_lpips(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a whole `lpips.LPIPS` network, in the names of its two source files."""
    out = {}
    for key, value in tensors.items():
        if key.startswith(PACKED_LPIPS_IGNORED):
            continue
        if key.startswith("net.slice"):
            key = "features." + key.split(".", 2)[2]
        out[key] = value
    return out


def read_matconvnet(path: Path) -> dict[str, np.ndarray]:
    """The convolutions of a MatConvNet .mat file as `conv{i}.weight` (OIHW) and `conv{i}.bias`.

    The three fully connected layers, which MatConvNet stores as convolutions too, are left out.

    Raises:
        CheckpointError: not a MATLAB file, cut off, or without convolutions.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    check_file(path)
    fix = "download imagenet-vgg-verydeep-19.mat again; MD5 106118b7cf60435e6d8e04f6a6dc3657"
    with path.open("rb") as file:
        head = file.read(10)
    if head != b"MATLAB 5.0":
        raise CheckpointError("This is not a MATLAB 5 file", where=path, found=repr(head), fix=fix)
    try:
        content = loadmat(str(path))
    except (MatReadError, ValueError, TypeError, OSError, zlib.error) as error:
        raise CheckpointError(
            "The file is cut off or damaged", where=path, found=str(error), fix=fix
        ) from error
    if "layers" not in content:
        found = ", ".join(k for k in content if not k.startswith("__")) or "nothing"
        raise CheckpointError(
            "This is not a MatConvNet network",
            where=path,
            expected="layers",
            found=found,
            fix=fix,
        )
    out: dict[str, np.ndarray] = {}
    number = 0
    for layer in np.ravel(content["layers"]):
        layer = np.ravel(layer)[0]
        name = str(np.ravel(layer["name"])[0])
        if not name.startswith("conv"):
            continue
        number += 1
        weights = np.ravel(layer["weights"]) if "weights" in layer.dtype.names else None
        kernel, bias = weights if weights is not None else (layer["filters"], layer["biases"])
        out[f"conv{number}.weight"] = np.asarray(kernel, np.float32).transpose(3, 2, 0, 1)
        out[f"conv{number}.bias"] = np.asarray(bias, np.float32).ravel()
    return out
