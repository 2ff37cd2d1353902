"""Which file belongs to which camera, by their names.

A calibrated name that occurs as a word in one file name decides; then numbers that stand at the
same place of all names; then order. Times and dates, which differ between cameras as well, do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mouselift_jax.data.readers import natural_key

CAMERA_WORD = re.compile(r"(?:^|[^a-z])(?:cam(?:era)?|kamera|view|hires_cam|[cv])[ _\-]*$")
_LONG = 4  # digits of a calibrated name that is a word and no number


def pair_names(names: Sequence[str], cameras: Sequence[tuple[str, int]]) -> tuple[dict, str]:
    """Index of the camera of each name, as far as it can be told, and how it was told.

    Args:
        names: of files, without suffixes.
        cameras: name and number of each calibrated camera.

    Returns:
        {name: index}, and `name`, `word`, `number` or `order`.
    """
    by_name = {name.lower(): i for i, (name, _) in enumerate(cameras)}
    if all(n.lower() in by_name for n in names):
        return {n: by_name[n.lower()] for n in names}, "name"
    words = _by_word(names, cameras)
    if len(words) == min(len(names), len(cameras)) or len(words) * 2 > len(names):
        return words, "word"
    by_number = {number: i for i, (_, number) in enumerate(cameras)}
    numbers, sure = _numbers(names, set(by_number))
    if numbers is not None:
        fits = set(numbers.values()) <= set(by_number)
        from_one = 0 not in numbers.values() and not fits
        if not from_one or len(names) != len(cameras):
            if set(numbers.values()) & set(by_number):
                pairs = {n: by_number[k] for n, k in numbers.items() if k in by_number}
                return pairs, "number" if sure else "order"
        elif sorted(numbers.values()) == list(range(1, len(names) + 1)):
            order = sorted(range(len(cameras)), key=lambda i: cameras[i][1])
            return {n: order[k - 1] for n, k in numbers.items()}, "order"
        ordered = sorted(names, key=lambda n: numbers[n])
        return {n: i for i, n in enumerate(ordered) if i < len(cameras)}, "order"
    ordered = sorted(names, key=natural_key)
    return {n: i for i, n in enumerate(ordered) if i < len(cameras)}, "order"


def _by_word(names: Sequence[str], cameras: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Names in which exactly one camera's name occurs as a word, and in no other name."""
    hits: dict[int, list[str]] = {}
    for i, (camera, _) in enumerate(cameras):
        word = camera.lower()
        if word.isdigit() and len(word) < _LONG:
            continue
        pattern = re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])")
        hits[i] = [n for n in names if pattern.search(n.lower())]
    sole = {i: found[0] for i, found in hits.items() if len(found) == 1}
    return {n: i for i, n in sole.items() if list(sole.values()).count(n) == 1}


def _numbers(names: Sequence[str], known: set[int]) -> tuple[dict[str, int] | None, bool]:
    """The number of each name that stands for its camera, None where none does; and how surely.

    Two numbers that may both be the cameras', neither called so, are not sure.
    """
    groups = {n: list(re.finditer(r"\d+", n)) for n in names}
    counts = {len(g) for g in groups.values()}
    best: tuple[tuple[int, ...], dict[str, int]] | None = None
    rivals: list[tuple[tuple[int, ...], dict[str, int]]] = []
    for p in range(min(counts)):
        values = {n: int(g[p].group()) for n, g in groups.items()}
        if len(set(values.values())) < len(names):
            continue
        before = {n[: g[p].start()].lower() for n, g in groups.items()}
        called = all(CAMERA_WORD.search(b) for b in before)
        fits = set(values.values()) <= known
        one_on = {v - 1 for v in values.values()} <= known
        score = (int(called), int(fits), int(one_on), int(len(counts) == 1), -p)
        if called or fits or one_on:
            rivals.append((score, values))
            best = rivals[-1] if best is None or score > best[0] else best
    if best is None:
        return None, False
    alike = [values for score, values in rivals if score[:-1] == best[0][:-1]]
    return best[1], all(values == best[1] for values in alike)
