"""Is the calibration a little off in everything? What `calibrate` would make of it, cheaply.

One wrong camera or a shifted picture is found by trying that fault alone (`search`). A rig that is
a little off in all cameras has no such fault: each correction mends a part, and a chain of them
names causes that are none. Here all cameras are fitted together, in a few steps and to a few of the
instants that were looked at, and judged on others.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import numpy as np

from mouselift_jax.data.calibration.calibrate import Outcome, Settings, calibrate, changes
from mouselift_jax.data.calibration.evidence import (
    Evidence,
    Outlines,
    cameras_of,
    keypoint_sightings,
)
from mouselift_jax.data.check.hypotheses import Geometry, cost
from mouselift_jax.data.check.search import Verdict
from mouselift_jax.data.findings import Finding
from mouselift_jax.data.recordings.recording import Recording
from mouselift_jax.errors import CalibrationError
from mouselift_jax.geometry.bundle import Rig

_INSTANTS = 16  # a quarter of them judges
_STEPS, _ROUNDS = 12, 3
# What mending may leave of the misfit to be named: outlines are exact, detectors are not.
_LEAVES = {"outlines": 0.5, "keypoints": 0.85}
_BETTER = 0.67  # and of what the best single fault leaves
_LOUD = 0.3  # of the largest turn: cameras that turn so much are named
_WITNESS = 0.9  # keypoints keep at most this share of their misfit, where outlines are right
VARIANTS = {"silhouettes": ":silhouettes", "keypoints": ""}


@dataclasses.dataclass(frozen=True)
class Mend:
    """What a calibration by the animal would gain.

    Attributes:
        evidence: what it is fitted to, `silhouettes` or `keypoints`.
        before, after: median misfit in pixels of instants that the fit did not use.
        given: the cameras before.
        rig: and after.
    """

    evidence: str
    before: float
    after: float
    given: Rig
    rig: Rig

    def of(self, geometry: Geometry) -> Geometry:
        """The same measurements with the mended cameras."""
        sizes = np.array([(c.width, c.height) for c in geometry.cameras])
        return dataclasses.replace(geometry, cameras=tuple(cameras_of(self.rig, sizes)))

    def finding(self, recording: Recording, limit: float) -> Finding:
        """In words; an error where the misfit is above a limit in pixels."""
        numbers = recording.camera_ids
        turn, move = changes(self.given, self.rig)
        loud = [v for v, angle in enumerate(turn) if angle >= _LOUD * turn.max()]
        who = ", ".join(str(numbers[v]) for v in loud)
        message = (
            f"the calibration is off by a little in {'camera' if len(loud) == 1 else 'cameras'} "
            f"{who}: {self.evidence} miss each other by {self.before:.2f} px, {self.after:.2f} px "
            "once all cameras are mended together (median of frames that the estimate did not fit)"
        )
        evidence = {
            "evidence": self.evidence,
            "misfit_px_before": self.before,
            "misfit_px_after": self.after,
            "turned_deg": turn,
            "moved_mm": move * recording.unit_mm,
        }
        severity = "error" if self.before > limit else "warning"
        fix = command(recording.path, self.evidence)
        cameras = tuple(numbers[v] for v in loud)
        return Finding("calibration_off", severity, message, cameras, fix, evidence)


def command(path: Path, evidence: str) -> str:
    """What mends the calibration of a recording."""
    return (
        f"python launch.py --config=configs/calibrate.py{VARIANTS[evidence]} "
        f"--config.recording={shlex.quote(str(path))} --workdir=runs/calibrate"
    )


def mend(
    geometry: Geometry, verdict: Verdict, floor: float, witness: Geometry | None = None
) -> Mend | None:
    """What mending all cameras gains, where no simpler cause explains the misfit.

    Args:
        geometry: outlines or keypoints.
        verdict: what single faults explain of it.
        floor: misfit in pixels that honest measurements of this kind have.
        witness: other measurements, which the mended cameras must fit better as well.
    """
    if not np.isfinite(verdict.after):
        return None
    outlines = geometry.kind == "outlines"
    if verdict.after <= floor and (outlines or verdict.best is not None):
        return None
    outcome = _fitted(geometry)
    if outcome is None or outcome.verdict != "improved":
        return None
    before, after = (float(np.nanmedian(m)) for m in (outcome.before, outcome.after))
    alone = _BETTER * verdict.after / verdict.before if verdict.best is not None else 1.0
    if after > before * min(_LEAVES[geometry.kind], alone):
        return None
    name = "silhouettes" if outlines else "keypoints"
    found = Mend(name, before, after, outcome.given, outcome.rig)
    if witness is not None and not cost(found.of(witness)) <= _WITNESS * cost(witness):
        return None  # it is the outlines that are wrong
    return found


def _fitted(geometry: Geometry) -> Outcome | None:
    """A quick fit of poses and focal lengths; None where it is none, or too little was seen."""
    w2c = np.stack([np.asarray(c.w2c, np.float64) for c in geometry.cameras])
    K = np.stack([np.asarray(c.K, np.float64) for c in geometry.cameras])
    rig = Rig(K, w2c[:, :3, :3], w2c[:, :3, 3], np.zeros((len(K), 8)), np.zeros(len(K)))
    known = np.isfinite(geometry.xy).all(-1).any(-1).sum(0) >= 2
    rows = np.flatnonzero(known)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_INSTANTS, len(rows))).astype(int))]
    xy, at = geometry.xy[:, rows], np.arange(len(rows))
    if geometry.kind == "outlines":
        sizes = np.array([(c.width, c.height) for c in geometry.cameras])
        evidence = Evidence(outlines=Outlines(xy, at, sizes))
    else:
        sure = np.isfinite(xy).all(-1, keepdims=True).astype(np.float64)
        points = keypoint_sightings(np.concatenate([xy, sure], -1), at, least=0.5)
        evidence = Evidence(points=points)
    judges = at % 4 == 3
    settings = Settings(iterations=_STEPS, rounds=_ROUNDS)
    try:
        return calibrate(rig, evidence.of(at[~judges]), evidence.of(at[judges]), settings)
    except CalibrationError:  # these cameras cannot be mended into what was seen
        return None
