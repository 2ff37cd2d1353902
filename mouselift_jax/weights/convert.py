"""Writing a conversion: streamed, whole or absent, proven, with its provenance beside it.

A local result is written beside its place and renamed when complete. On object stores, where a
rename is no single act, conversion.json is written last, and nothing loads without it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from mouselift_jax.errors import CheckpointError, ConfigError
from mouselift_jax.files import MARK, FileLock, mark_made, remove_made
from mouselift_jax.weights import store
from mouselift_jax.weights.kinds import LICENCES, ConversionPlan, Part
from mouselift_jax.weights.pretrained import RECORD, SUMS
from mouselift_jax.weights.rules import pack

SCHEMA = 1
DTYPES = ("source", "float32", "bfloat16", "float16")
VERSIONS = ("mouselift_jax", "jax", "flax", "orbax-checkpoint", "numpy", "safetensors", "torch")

Report = Callable[[str], None]
ForwardCheck = Callable[[Part, Any], Mapping[str, Any] | None]


def _stored_dtype(part: Part, path: str, dtype: str) -> np.dtype:
    if dtype != "source":
        return jnp.dtype(dtype)
    kinds = {jnp.dtype(part.tensors[m.key].dtype) for m in part.pairing.by_path[path]}
    kind = kinds.pop() if len(kinds) == 1 else jnp.dtype(jnp.float32)
    return jnp.dtype(jnp.float32) if kind == jnp.float64 else kind


def _check_finite(part: Part, path: str, leaf: np.ndarray) -> None:
    # A finite sum proves finite terms, at the speed of memory; only else look at each.
    if np.isfinite(np.sum(leaf, dtype=np.float32)) or np.isfinite(leaf).all():
        return
    for move in part.pairing.by_path[path]:
        values = np.asarray(part.tensors[move.key])
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise CheckpointError(
                "The weights contain NaN or infinity",
                where=f"{part.files[0]}: {move.key}",
                found=f"{bad} of {values.size} values",
                fix="take an earlier checkpoint of that training",
            )
    raise CheckpointError(
        f"The weights do not fit into {leaf.dtype}",
        where=path,
        fix="convert with --dtype=bfloat16 or --dtype=float32",
    )


def _write_part(part: Part, folder: epath.Path, dtype: str) -> dict[str, Any]:
    """Write one component; its entry in the record."""
    sums: dict[str, int] = {}
    kinds = {path: _stored_dtype(part, path, dtype) for path in part.pairing.by_path}

    def make(path: str) -> np.ndarray:
        with np.errstate(over="ignore"):  # what overflows is found and told below
            leaf = part.pairing.leaf(path, part.tensors, kinds[path])
        _check_finite(part, path, leaf)
        sums[path] = store.checksum(leaf)
        return leaf

    leaves = {
        path: store.LazyLeaf(shape, kinds[path], lambda path=path: make(path))
        for path, shape in part.pairing.target_shapes.items()
    }
    remove_made(folder)  # on an object store: of a conversion that was killed
    folder.mkdir(parents=True)
    if _is_remote(folder):
        mark_made(folder)
    (folder / "config.json").write_text(json.dumps(part.config, indent=1) + "\n")
    store.write_params(folder / "params", leaves)
    (folder / SUMS).write_text(json.dumps(sums, indent=1) + "\n")
    return {
        "dtype": sorted({str(kind) for kind in kinds.values()}),
        "source_dtype": sorted({str(part.tensors[m.key].dtype) for m in part.pairing.moves}),
        "tensors": len(part.pairing.moves),
        "ignored": dict(part.pairing.ignored),
        "parameters": sum(leaf.size for leaf in leaves.values()),
        "bytes": sum(leaf.nbytes for leaf in leaves.values()),
        "files": [file.name for file in part.files],
        "notes": list(part.notes),
    }


def _hash_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def source_files(plan: ConversionPlan) -> list[Path]:
    """Every file a conversion reads, once."""
    files = [file for part in plan.parts for file in part.files]
    return list(dict.fromkeys(files + list(plan.copies.values())))


def _is_remote(path: Any) -> bool:
    return "://" in str(path)


def check_destination(dst: Any, plan: ConversionPlan | None = None) -> epath.Path:
    """Refuse a destination that exists, or a disk that is too small.

    Raises:
        CheckpointError: either.
    """
    dst = epath.Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        if not _is_remote(dst) or (dst / RECORD).exists():
            raise CheckpointError(
                "The destination exists",
                where=dst,
                fix="give a new folder, or remove this one; it was not touched",
            )
    if plan is not None and not _is_remote(dst):
        shapes = [shape for p in plan.parts for shape in p.pairing.target_shapes.values()]
        need = 4 * sum(int(np.prod(shape)) for shape in shapes)
        place = next(p for p in Path(dst).absolute().parents if p.exists())
        free = shutil.disk_usage(place).free
        if free < need:
            raise _no_space(dst, f"{need / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB")
    return dst


def _no_space(dst: Any, need: str | None = None, free: str | None = None) -> CheckpointError:
    return CheckpointError(
        "There is no space left for the converted weights",
        where=dst,
        expected=need,
        found=free,
        fix="free some space or give another place, then repeat; nothing was left behind",
    )


@contextlib.contextmanager
def _destination(dst: epath.Path) -> Iterator[epath.Path]:
    """Where to write so that `dst` is whole or absent; one process at a time, on a local disk."""
    if _is_remote(dst):
        yield dst
        return
    work = dst.parent / f".{dst.name}.partial"
    lock = FileLock(dst.parent / f".{dst.name}.lock")
    try:
        if not dst.parent.exists():
            dst.parent.mkdir(parents=True, exist_ok=True)
        owner = lock.acquire()
    except OSError as error:
        raise CheckpointError(
            "The destination cannot be made",
            where=dst,
            found=error.strerror,
            fix="give a place where you may make a folder",
        ) from error
    if owner is not None:
        raise CheckpointError(
            "Another conversion is writing there",
            where=dst,
            found=owner,
            fix="wait for it, stop it, or give another folder",
        )
    try:
        check_destination(dst)  # it may have been finished by another process meanwhile
        remove_made(work)  # of a conversion that was killed
        work.mkdir()
        mark_made(work)
        yield work
        (work / MARK).unlink()
        Path(work).replace(Path(dst))
    except (OSError, ValueError, RuntimeError) as error:
        if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise _no_space(dst) from error
        raise
    finally:
        remove_made(work)
        lock.release(remove=True)


def convert(
    plan: ConversionPlan,
    dst: Any,
    *,
    dtype: str = "source",
    verify: bool = False,
    forward_check: ForwardCheck | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Write a planned conversion.

    Args:
        plan: from `plan_conversion`.
        dst: folder that must not exist (or be empty); local or gs://.
        dtype: of the stored weights; "source" keeps each tensor's own.
        verify: read everything back and compare it with the source, bit for bit.
        forward_check: with `verify`, compares one forward pass with another implementation; None
            where there is none.
        report: gets a line of progress per component.

    Returns:
        The content of conversion.json.

    Raises:
        CheckpointError: bad values, no space, DST exists, or the proof failed. DST is untouched.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            "Unknown dtype", where="--dtype", expected=DTYPES, found=dtype, fix="--dtype=float32"
        )
    dst = check_destination(dst, plan)
    files = source_files(plan)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": plan.kind,
        "source": str(plan.source),
        "licence": LICENCES[plan.kind],
        "notes": list(plan.notes),
        "components": {},
    }
    with ThreadPoolExecutor(1) as pool, _destination(dst) as work:
        # Hashing shares the page cache with the conversion and releases the interpreter.
        hashes = [pool.submit(_hash_file, file) for file in files]
        for part in plan.parts:
            entry = _write_part(part, work / part.component, dtype)
            record["components"][part.component] = entry
            report(
                f"{part.component}: {entry['tensors']} tensors, {entry['parameters']:,} values, "
                f"{entry['bytes'] / 1e9:.2f} GB {'/'.join(entry['dtype'])}"
            )
            for note in part.notes:
                report(f"  {note}")
        for note in plan.notes:
            report(f"note: {note}")
        for place, file in plan.copies.items():
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            (work / place).write_bytes(file.read_bytes())
        if verify:
            record["verified"] = verify_conversion(plan, work, forward_check, report)
        record["files"] = {
            str(file): done.result() for file, done in zip(files, hashes, strict=True)
        }
        record["versions"] = _versions()
        record["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        (work / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def _versions() -> dict[str, str]:
    out = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(store.raw_bytes(pack(values))).digest()


def verify_conversion(
    plan: ConversionPlan,
    folder: Any,
    forward_check: ForwardCheck | None = None,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Read a conversion back, undo every mapping, and compare each tensor's hash with the source's.

    Args:
        plan: the source, planned anew.
        folder: the converted folder.
        forward_check: compares one forward pass with another implementation.
        report: gets a line per component.

    Returns:
        Per component: the number of tensors, a fingerprint over all their hashes, and the result of
        the forward check ("not run" where there is no other implementation).

    Raises:
        CheckpointError: any difference.
    """
    out: dict[str, Any] = {}
    for part in plan.parts:
        flat = store.read_params(epath.Path(folder) / part.component / "params")
        total = hashlib.sha256()
        bad = []
        for move in sorted(part.pairing.moves, key=lambda m: m.key):
            ours = move.inverse(flat[move.path])
            theirs = np.asarray(part.tensors[move.key]).reshape(ours.shape).astype(ours.dtype)
            digest = _digest(ours)
            if digest != _digest(theirs):
                bad.append(move.key)
            total.update(move.key.encode() + digest)
        if bad:
            raise CheckpointError(
                f"{len(bad)} of {len(part.pairing.moves)} tensors differ from the source",
                where=f"{folder}/{part.component}",
                found=", ".join(bad[:5]),
                fix="convert again into a new folder; if it happens twice, report it",
            )
        del flat
        result = {"tensors": len(part.pairing.moves), "fingerprint": total.hexdigest()}
        forward = forward_check(part, folder) if forward_check else None
        result["forward"] = forward if forward is not None else "not run"
        report(
            f"{part.component}: {result['tensors']} tensors equal the source's; forward: "
            f"{result['forward']}"
        )
        out[part.component] = result
    return out
