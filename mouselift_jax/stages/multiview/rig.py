"""The rig that a multi-view network learns: cameras of the slots, spread, place of the subject."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.masks import mask_box, mask_centroid
from mouselift_jax.data.samples.rig_file import SAME_PX, WARN_SPREAD_PX
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.median_rig import Rig, aimed_at_origin, median_rig, shifts
from mouselift_jax.geometry.rig import azimuth_elevation
from mouselift_jax.runs.record import command_line, each_key_once, in_own_keys, read_json
from mouselift_jax.stages.multiview.order import azimuths_of, order_from
from mouselift_jax.stages.multiview.settings import MultiviewSettings

# A tail reaches farther from the 3D centre than from the middle of a silhouette's box.
MOST_RIGS = 8  # in more groups the cameras move: they are no few rigs put together
ROOM_CENTRED = 1.45  # times `subject_mm`, with aim=centre, for the tail to stay in the picture


def stacked_cameras(
    sample_set: SampleSet, ids: tuple[str, ...], config: MultiviewSettings
) -> tuple[np.ndarray, np.ndarray] | None:
    """K [N,V,3,3] at the network's picture size, c2w [N,V,4,4]; None in a set without cameras."""
    found = [sample_set.cameras(i) for i in ids]
    if any(c is None for c in found):
        return None
    v, size = config.model.n_views, config.data.size
    found = [c[np.arange(v)].resized(size, size)[0] for c in found]
    return (
        np.stack([np.asarray(c.K, np.float32) for c in found]),
        np.stack([np.asarray(c.c2w, np.float32) for c in found]),
    )


def measure_rig(
    config: MultiviewSettings, sample_set: SampleSet, *, aimed: bool = False
) -> Rig | None:
    """The cameras that the slots will have learned, and how far the samples stray from them.

    Args:
        config: of the stage.
        sample_set: whose training split.
        aimed: the same if every camera looked straight at the animal's 3D centre.
    """
    found = stacked_cameras(sample_set, sample_set.ids("train"), config)
    if found is None:
        return None
    K, c2w = found
    if config.reference == "random":
        # every view in turn is the reference: the rig of a slot is the median over them all
        turned = []
        for r in range(config.model.n_views):
            order = np.stack([order_from(r, azimuths_of(c), len(c)) for c in c2w])[..., None, None]
            turned.append([np.take_along_axis(x, order, 1) for x in (K, _facing(c2w, order))])
        K, c2w = (np.concatenate(x) for x in zip(*turned, strict=True))
    size = config.data.size
    cameras = Camera(K.astype(np.float64), c2w.astype(np.float64), size, size)
    return median_rig(aimed_at_origin(cameras) if aimed else cameras)


def spread_advice(
    config: MultiviewSettings, sample_set: SampleSet, rig: Rig, workdir: Path
) -> str | None:
    """What a spread too wide for one rig means, and the commands against it; None = narrow."""
    worst = float(np.max(rig.spread_px))
    if worst <= WARN_SPREAD_PX or config.model.pose_features:
        return None
    posed = f"--config.model.pose_features=256 --workdir={workdir}_posed"
    told = (
        f"the training cameras spread by up to {worst:.1f} px around one rig, which is all that a "
        "network without poses can learn: generated views will disagree with their cameras by "
        "about as much. Tell the network the cameras: "
        + each_key_once(f"{command_line()} {in_own_keys(posed, workdir)}")
    )
    how = sample_set.manifest.get("parameters") or {}
    if how.get("aim") != "box":
        return told
    straight = float(np.max(measure_rig(config, sample_set, aimed=True).spread_px))
    sources = sample_set.manifest.get("source") or {}
    paths = ",".join(str(s["path"]) for s in sources.values() if isinstance(s, dict))
    folder = sample_set.path.parent
    variant = (read_json(folder / "config.json") or {}).get("variant", "fill")
    command = [f"--config=configs/prepare.py:{variant}", f"--config.recording={paths}"]
    command += ["--config.prepare.aim=centre"]
    if how.get("fov") == "fill":
        room = round(how["subject_mm"] * ROOM_CENTRED, -1)
        command.append(f"--config.prepare.subject_mm={room:g}")
    command.append(f"--workdir={folder}_centre")
    return (
        f"{told}. Or prepare the samples with the animal's 3D centre in the middle instead of each "
        f"silhouette's (aim=box): the spread is then {straight:.1f} px at the present focal "
        f"length: python launch.py {shlex.join(command)}"
    )


def mixed_rigs(K: np.ndarray, c2w: np.ndarray, size: int, ids: Sequence[str]) -> str | None:
    """What to say of a set that holds samples of several fixed rigs; None of one, or of none.

    A network that is not told the cameras would learn their mean, which is no rig at all.

    Args:
        K: intrinsics [N,V,3,3] of pictures of this size.
        c2w: [N,V,4,4].
        size: pixels along a side.
        ids: of the samples.
    """
    cameras = Camera(K.astype(np.float64), c2w.astype(np.float64), size, size)
    left, groups = np.arange(len(K)), []
    while len(left):
        if len(groups) == MOST_RIGS:
            return None
        off = shifts(cameras[left], cameras[left[0]]).max((1, 2))
        same = off <= SAME_PX * size / 512
        groups.append(left[same])
        left = left[~same]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return None
    told = ", ".join(f"{len(g)} like {ids[g[0]]}" for g in groups)
    return (
        f"the set mixes {len(groups)} rigs ({told}): a network without poses learns none of them. "
        "Train on a set of one rig, or tell it the cameras (variant posed)"
    )


def _facing(c2w: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Cameras turned about the vertical so that each sample's reference faces the front (270)."""
    out = np.array(c2w, np.float64)
    first = np.take_along_axis(c2w, order, 1)[:, 0]
    turn = np.deg2rad(270.0 - np.asarray(azimuth_elevation(first)[0]))
    cos, sin = np.cos(turn), np.sin(turn)
    R = np.zeros((len(c2w), 1, 3, 3))
    R[:, 0, 0, 0], R[:, 0, 0, 1], R[:, 0, 1, 0], R[:, 0, 1, 1] = cos, -sin, sin, cos
    R[:, 0, 2, 2] = 1
    out[..., :3, :] = R @ out[..., :3, :]
    return out


def subject_place(sample_set: SampleSet, most: int = 64) -> dict[str, Any]:
    """How the subject lies in slot 0's pictures, so that a photo can be laid likewise.

    `subject_share`: of the side, that its longer side takes, the median. `subject_centre`: what
    lies in the middle, the silhouette's box or its centroid, whichever strays less from it.

    Empty for a set without masks. At most `most` training samples are read, evenly spread.
    """
    ids = sample_set.ids("train")
    shares, off = [], {"box": [], "centroid": []}
    for place in np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int)):
        sample = sample_set.load(ids[place], [0])
        if not sample.has_alpha:
            return {}
        alpha = np.ascontiguousarray(sample.images_rgba[0, ..., 3])
        x0, y0, x1, y1 = box = mask_box(alpha)
        if x1 <= x0:
            continue
        side = alpha.shape[0]
        shares.append(max(x1 - x0, y1 - y0) / side)
        off["box"].append(np.array([x0 + x1, y0 + y1]) / (2 * side) - 0.5)
        off["centroid"].append(mask_centroid(alpha, box)[0] / side - 0.5)
    if not shares:
        return {}
    centre = min(off, key=lambda name: float(np.mean(np.square(off[name]))))
    return {"subject_share": round(float(np.median(shares)), 4), "subject_centre": centre}
