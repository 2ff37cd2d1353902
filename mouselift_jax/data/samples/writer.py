"""Writing a sample set so that nothing half-written is ever taken for whole.

A sample's folder is filled under a temporary name and renamed when it is complete. What became of
each sample (written, skipped and why, its errors) goes to `journal.jsonl` line by line; `finish`
turns the journal into the manifest and the lists and removes it. A killed run leaves a manifest
with `finished: false` and a journal: the same command goes on from there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mouselift_jax.data.png import encode_png
from mouselift_jax.data.samples.camera_file import camera_record
from mouselift_jax.data.samples.sample_set import CAMERAS, MANIFEST, SCHEMA_VERSION, SPLITS
from mouselift_jax.errors import ConfigError, LayoutError
from mouselift_jax.files import remove_known, write_json_atomic, write_text_atomic
from mouselift_jax.geometry.camera import Camera

JOURNAL = "journal.jsonl"
PART = ".part_"
SAMPLE_FILES = {CAMERAS, *(f"images/cam_{i:03d}.png" for i in range(1000))}


def sample_id(number: int) -> str:
    """Folder name of a sample."""
    return f"sample_{number:06d}"


class SampleWriter:
    """Writes one sample set; `write` and `skip` may be called from several threads.

    Args:
        path: folder of the set, made when absent.
        manifest: what the manifest says beyond the samples: `source`, `parameters`, `scene_scale`,
            `views` (slot, camera, azimuth_deg)... Must be JSON. On a second visit `parameters` and
            `source` must be the same.

    Raises:
        ConfigError: the folder holds samples made with other parameters or from another source.
        LayoutError: it holds samples, but no manifest of ours; they are left alone.
    """

    def __init__(self, path: str | Path, manifest: dict[str, Any]) -> None:
        self.path = Path(path)
        self.manifest = json.loads(json.dumps(manifest))
        self._lock = threading.Lock()
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_same()
            self._clean()
            self.rows = self._read_journal()
            stored = self._stored()
            gone = {row["id"] for row in stored.get("samples", ())} - set(self.rows)
            if gone or not stored.get("finished", False):
                self._write_manifest(finished=False)
            self._journal = open(self.path / JOURNAL, "a")

    @property
    def done(self) -> set[str]:
        """Ids that need no work any more: written or skipped."""
        return set(self.rows)

    def write(
        self,
        number: int,
        images_rgba: Sequence[np.ndarray],
        cameras: Camera,
        camera_ids: Iterable[int],
        *,
        frame: int = -1,
        row: dict[str, Any] | None = None,
        **info: Any,
    ) -> str:
        """Write one sample, whole or not at all.

        Args:
            number: the sample's number, its folder's name.
            images_rgba: per view [H,W,4] (or [H,W,3]) uint8, straight alpha, colour 0 where alpha
                is 0.
            cameras: cameras [V] of these very pictures.
            camera_ids: the recording's camera numbers in slot order.
            frame: frame number in the recording.
            row: entries for the manifest's line of this sample (errors, centre, time).
            info: entries for the sample's opencv_cameras.json.

        Returns:
            The sample's id.
        """
        name = sample_id(number)
        part = self.path / f"{PART}{os.getpid()}_{name}"
        with disk_errors(self.path):
            try:
                (part / "images").mkdir(parents=True)
                files = [f"images/cam_{i:03d}.png" for i in range(len(images_rgba))]
                for file, image in zip(files, images_rgba, strict=True):
                    (part / file).write_bytes(encode_png(image))
                record = camera_record(name, cameras, camera_ids, files, frame=int(frame), **info)
                (part / CAMERAS).write_text(json.dumps(record) + "\n")
                remove_known(self.path / name, SAMPLE_FILES)  # a damaged one
                os.rename(part, self.path / name)
            finally:
                remove_known(part, SAMPLE_FILES)
        self._record({"id": name, "frame": int(frame), "status": "ok", **(row or {})})
        return name

    def skip(self, number: int, reason: str, *, frame: int = -1, **row: Any) -> None:
        """Note that a sample is left out, and why."""
        self._record(
            {
                "id": sample_id(number),
                "frame": int(frame),
                "status": "skipped",
                "reason": reason,
                **row,
            }
        )

    def finish(
        self,
        split: Callable[[list[dict[str, Any]]], list[str]],
        *,
        numbers: Iterable[int] | None = None,
        **entries: Any,
    ) -> dict[str, Any]:
        """Write the lists and the manifest; from then on the set is whole.

        Args:
            split: gives each written sample (its manifest row, in order) `train`, `val` or `gap`.
            numbers: the samples that must be there; None takes what there is.
            entries: further manifest entries (warnings, counts...).

        Returns:
            The manifest.
        """
        rows = [self.rows[k] for k in sorted(self.rows)]
        missing = {sample_id(n) for n in numbers or ()} - set(self.rows)
        if missing:
            raise LayoutError(
                "samples are missing",
                where=self.path,
                found=sorted(missing)[:8],
                fix="run the same command again",
            )
        kept = [r for r in rows if r["status"] == "ok"]
        if not kept:
            raise LayoutError(
                "no sample was written",
                where=self.path,
                found=self._skip_counts(rows) or "no frames",
                fix="check the recording: python -m mouselift_jax check RECORDING",
            )
        for row, label in zip(kept, split(kept), strict=True):
            row["split"] = label
        self.manifest.update(entries)
        self.manifest["samples"] = rows
        self.manifest["counts"] = {"written": len(kept), "skipped": self._skip_counts(rows)}
        with disk_errors(self.path):
            for name in SPLITS:
                ids = [r["id"] for r in kept if r["split"] == name]
                write_text_atomic(self.path / f"{name}.txt", "".join(f"{i}\n" for i in ids))
            self._write_manifest(finished=True)
            self.close()
            (self.path / JOURNAL).unlink(missing_ok=True)
        return self.manifest

    def close(self) -> None:
        """Close the journal; the set stays resumable."""
        self._journal.close()

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- inside ---

    def _record(self, row: dict[str, Any]) -> None:
        line = json.dumps(row) + "\n"
        with self._lock, disk_errors(self.path):
            self.rows[row["id"]] = row
            self._journal.write(line)
            self._journal.flush()

    def _stored(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / MANIFEST).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:  # not JSON, not text
            raise LayoutError(
                "the manifest is damaged",
                where=self.path / MANIFEST,
                found=str(error),
                fix="delete it and run the command that makes the set again",
            ) from None

    def _check_same(self) -> None:
        stored = self._stored()
        ours = ("sample_*", f"{PART}*", JOURNAL, *(f"{name}.txt" for name in SPLITS))
        strange = [] if stored else sorted(p.name for g in ours for p in self.path.glob(g))
        if strange:
            raise LayoutError(
                "this folder holds samples that were not made here: they are left alone",
                where=self.path,
                expected=f"no samples, or {MANIFEST} beside them",
                found=", ".join(strange[:6]) + (", ..." if len(strange) > 6 else ""),
                fix="give another folder (--workdir), or move them away yourself",
            )
        for key in ("source", "parameters"):
            if stored and stored.get(key) != self.manifest.get(key):
                raise ConfigError(
                    f"this folder holds samples with another {key}",
                    where=self.path / MANIFEST,
                    expected=_short(stored.get(key), self.manifest.get(key)),
                    found=_short(self.manifest.get(key), stored.get(key)),
                    fix="give another folder (--workdir), or delete this one",
                )
        if stored.get("finished"):
            self.manifest = stored

    def _clean(self) -> None:
        """Remove what a killed run left half-written."""
        for part in self.path.glob(f"{PART}*"):
            remove_known(part, SAMPLE_FILES)

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        rows = {r["id"]: r for r in self._stored().get("samples", ()) if self._is_there(r)}
        try:
            text = (self.path / JOURNAL).read_text()
        except FileNotFoundError:
            return rows
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left half a line
        if whole != text:
            write_text_atomic(self.path / JOURNAL, whole)
        for line in whole.splitlines():
            row = json.loads(line)
            if self._is_there(row):
                rows[row["id"]] = row
        return rows

    def _is_there(self, row: dict[str, Any]) -> bool:
        """A sample whose folder was deleted, as errors about damaged ones advise, is made again."""
        return row["status"] != "ok" or (self.path / row["id"] / CAMERAS).exists()

    def _write_manifest(self, *, finished: bool) -> None:
        from mouselift_jax import __version__

        self.manifest = {
            "schema": SCHEMA_VERSION,
            "written_by": f"mouselift_jax {__version__}",
            **self.manifest,
            "finished": finished,
        }
        write_json_atomic(self.path / MANIFEST, self.manifest)

    @staticmethod
    def _skip_counts(rows: list[dict[str, Any]]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in rows:
            if row["status"] == "skipped":
                counts[row["reason"]] = counts.get(row["reason"], 0) + 1
        return counts


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free / 2**30
        raise LayoutError(
            "the samples cannot be written",
            where=path,
            found=f"{os.strerror(error.errno)} ({free:.2f} GiB free)",
            fix="make room and run the same command again: it continues",
        ) from error


def _short(value: Any, other: Any) -> str:
    """The entries of `value` that differ from `other`'s, for a message."""
    if not isinstance(value, dict) or not isinstance(other, dict):
        return repr(value)[:200]
    return repr({k: v for k, v in value.items() if other.get(k, object()) != v})[:300]
