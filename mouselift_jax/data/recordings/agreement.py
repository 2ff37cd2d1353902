"""Do the files of a recording's cameras agree in frames, rates and sizes?"""

from __future__ import annotations

import numpy as np

from mouselift_jax.data.findings import Finding
from mouselift_jax.data.readers import Calibration
from mouselift_jax.data.recordings.recording import Frames

_RATE_TOLERANCE = 0.002  # 29.97 beside 30 is how the same camera may be declared


def frame_counts(
    good: list[tuple[str, int]],
    videos: list[Frames],
    masks: tuple[Frames, ...] | None,
    numbers: list[int],
    trim: str,
    findings: list[Finding],
) -> int:
    """Frames that all have (the smallest count); unlike counts and rates are findings."""
    rows = [(k, "", f) for k, f in zip(numbers, videos, strict=True)]
    rows += [(k, "mask of ", f) for k, f in zip(numbers, masks or (), strict=False)]
    counts = np.array([f.n_frames for _, _, f in rows])
    values, times = np.unique(counts, return_counts=True)
    usual = int(values[np.argmax(times)])
    _frame_rates(rows, usual, findings)
    _headers(rows, findings)
    for number, what, frames in rows:
        if frames.n_frames != usual:
            findings.append(
                Finding(
                    "frame_count",
                    "error" if trim == "error" else "info",
                    f"{what}camera {number} has {frames.n_frames:,} frames, the others {usual:,}",
                    (number,),
                    "export it again, or, if they start together, use the frames all have: "
                    "--config.prepare.trim=shortest",
                    {"frames": frames.n_frames, "expected": usual, "found": frames.n_frames},
                    where=str(frames.path),
                )
            )
    return int(counts.min())


def _headers(rows: list[tuple[int, str, Frames]], findings: list[Finding]) -> None:
    """Videos whose headers do not count what is shown: told, and the frames shown are used."""
    odd = [(n, what, f) for n, what, f in rows if f.declared]
    if odd:
        n, what, first = odd[0]
        seen = {f"{max(f.declared, 0)} and {f.n_frames}" for _, _, f in odd}
        findings.append(
            Finding(
                "frame_header",
                "info",
                f"the headers of {len(odd)} video(s) do not count the frames that are shown "
                f"({what}camera {n}: {max(first.declared, 0):,} in the header, {first.n_frames:,} "
                "shown): what is shown counts",
                tuple(dict.fromkeys(n for n, _, _ in odd)),
                "nothing to do; cutting with re-encoding (ffmpeg -c:v libx264) avoids it",
                {"expected": "as many frames as the header counts", "found": "; ".join(seen)},
                where=str(first.path),
            )
        )


def _frame_rates(rows: list[tuple[int, str, Frames]], usual: int, findings: list[Finding]) -> None:
    """Cameras that declare unlike rates: told, and an error where their counts differ as well."""
    rates = {n: round(f.fps, 3) for n, what, f in rows if f.fps > 0 and not what}
    if len(set(rates.values())) < 2:
        return
    values, times = np.unique(list(rates.values()), return_counts=True)
    common = float(values[np.argmax(times)])
    odd = [n for n, rate in rates.items() if rate != common]
    counts = {n: f.n_frames for n, what, f in rows if not what}
    apart = max(abs(np.log(rates[n] / common)) for n in odd) > _RATE_TOLERANCE
    real = apart and any(counts[n] != usual for n in odd)
    told = ", ".join(f"camera {n}: {rates[n]:g} fps, {counts[n]:,} frames" for n in odd)
    message = f"the videos declare different frame rates: {told}; the others {common:g} fps"
    if real:
        message += ": frames are matched by number, so these cameras would run away from the others"
    findings.append(
        Finding(
            "frame_rate",
            "error" if real else "warning",
            message,
            tuple(odd),
            f"resample these cameras to {common:g} fps (ffmpeg -i IN -vf fps={common:g} OUT), and "
            "their masks; trim=shortest does not help"
            if real
            else "frames are matched by number; make sure the cameras were triggered together",
            {"expected": f"{common:g} fps", "found": told, "fps": sorted(set(rates.values()))},
        )
    )


def picture_sizes(
    calibration: Calibration,
    good: list[tuple[str, int]],
    videos: list[Frames],
    masks: tuple[Frames, ...] | None,
    findings: list[Finding],
) -> None:
    """Pictures, masks and calibration of each camera must be of one size, told where not."""
    for v, ((_, i), frames) in enumerate(zip(good, videos, strict=True)):
        camera = calibration.cameras[i].sized(frames.width, frames.height)
        size = (frames.width, frames.height)
        wanted = camera.size or size
        against = "its calibration is for"
        if masks is not None and (masks[v].width, masks[v].height) != size:
            wanted, against = (masks[v].width, masks[v].height), "its masks are"
        if wanted != size:
            findings.append(
                Finding(
                    "picture_size",
                    "error",
                    f"camera {camera.number}: pictures are {size[0]}x{size[1]}, {against} "
                    f"{wanted[0]}x{wanted[1]}",
                    (camera.number,),
                    "export pictures, masks and calibration at one size, without cropping",
                    {"expected": f"{wanted[0]}x{wanted[1]}", "found": f"{size[0]}x{size[1]}"},
                    where=str(frames.path),
                )
            )
        cx, cy = camera.K[0, 2], camera.K[1, 2]
        if not (0 < cx < size[0] and 0 < cy < size[1]):
            findings.append(
                Finding(
                    "intrinsics",
                    "warning",
                    f"camera {camera.number}: the principal point ({cx:.0f}, {cy:.0f}) lies outside"
                    f" its {size[0]}x{size[1]} pictures",
                    (camera.number,),
                    "is K in pixels of these pictures?",
                )
            )
