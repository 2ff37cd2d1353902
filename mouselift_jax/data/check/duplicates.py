"""Two cameras with one pose: whose is it?"""

from __future__ import annotations

import numpy as np

from mouselift_jax.data.check.hypotheses import Geometry, pair_costs
from mouselift_jax.data.check.motion import SURE
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.recording import Recording

_FITS = 0.5  # of the other's misfit: a pose is one camera's and not the other's


def tell_which(recording: Recording, findings: list[Finding]) -> None:
    """Of two cameras with one pose, the one whose keypoints fit it, where there are any."""
    if recording.evidence is None:
        return
    for finding in (f for f in findings if f.code == "calibration_duplicate"):
        pair = [recording.camera_ids.index(n) for n in finding.cameras if n in recording.camera_ids]
        rest = [v for v in range(recording.n_views) if v not in pair]
        if len(pair) != 2 or not rest:
            continue
        costs = []
        for v in pair:
            rows = recording.evidence[[v, *rest]]
            xy = np.where(rows[..., 2:] > SURE, rows[..., :2], np.nan)
            cameras = tuple(recording.cameras[k] for k in (v, *rest))
            window = np.zeros(xy.shape[1], int)
            found = pair_costs(Geometry("keypoints", xy, cameras, window), only=0)
            costs.append(float(np.nanmean(found[0])) if np.isfinite(found[0]).any() else np.nan)
        if not np.isfinite(costs).all() or min(costs) > _FITS * max(costs):
            continue
        right = finding.cameras[int(np.argmin(costs))]
        wrong = finding.cameras[int(np.argmax(costs))]
        keep = ",".join(str(n) for n in recording.camera_ids if n != wrong)
        finding.evidence["keypoint_px"] = dict(zip(finding.cameras, costs, strict=True))
        finding.message += (
            f"; keypoints say that it is camera {right}'s ({min(costs):.1f} px, camera {wrong} "
            f"{max(costs):.1f} px)"
        )
        finding.fix = (
            f"calibrate again, or leave camera {wrong} out: --config.prepare.cameras={keep} "
            f"(check --cameras {keep})"
        )
