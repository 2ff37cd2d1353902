r"""The engine that maps a torch state dict onto a parameter tree, and back.

A network's table is a sequence of entries, read in both directions::

    RULES = (
        Rule("{m*}.{name:conv1|conv2}.weight", "{m}/{name}/kernel", "conv"),
        Rule("{m*}.{name:norm1|norm2}.weight", "{m}/{name}/scale"),
        Rule("transformer_layers.{i}.mlp.0.weight", "layers/mlp_0/kernel", "linear", stack="i"),
        Alias("{m*}.query.{p:weight|bias}", "{m}.to_q.{p}"),
        Ignore("{m*}.position_ids", "a constant buffer"),
    )

Templates are literal text (dots separate torch names, slashes ours) with placeholders:
`{i}` matches digits; `{name:a|b}` a regular expression; `{m*}` a dotted module path of one or more
parts, in which list indices are joined by an underscore on our side (`down_blocks.0.resnets.1` is
`down_blocks_0/resnets_1`). `stack="i"` says that `{i}` is the index on the leading axis of the
target (scanned layers).

`match(rules, source, target)` pairs names and shapes and raises every problem at once;
`apply_rules(rules, source, target)` returns the parameters; `invert_rules(rules, params)` returns
the torch state dict. `target` and `params` are nested mappings; leaves of `target` need only a
`.shape`. Values of `source` may be lazy: they need `.shape` and to be readable by `np.asarray`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mouselift_jax.errors import CheckpointError, nearest, raise_all

Array = np.ndarray


class Transform(NamedTuple):
    """A reversible change of layout: torch -> ours and back."""

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    name: str = "custom"


TRANSFORMS: dict[str, Transform] = {
    "copy": Transform(lambda x: x, lambda x: x, "copy"),
    # [out, in] -> [in, out]
    "linear": Transform(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0), "linear"),
    # OIHW -> HWIO
    "conv": Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), "conv"),
    # the weights of a 1x1 convolution to one channel, [1, C, 1, 1] -> [C]
    "channel_weights": Transform(
        lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None], "channel_weights"
    ),
}

_PLACEHOLDER = re.compile(r"\{(\w+)(\*|:[^{}]+)?\}")


def _module_path(dotted: str) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", dotted).replace(".", "/")


def _dotted(path: str) -> str:
    return re.sub(r"_(\d+)(?=/|$)", r".\1", path).replace("/", ".")


class _Template:
    """One side of an entry, compiled to a regular expression."""

    def __init__(self, text: str, kinds: Mapping[str, str], separator: str) -> None:
        self.text, self.kinds = text, kinds
        pattern, end, seen = "", 0, set()
        for m in _PLACEHOLDER.finditer(text):
            name = m.group(1)
            if name not in kinds:
                raise ValueError(f"{text!r}: placeholder {name!r} is not in the source template")
            pattern += re.escape(text[end : m.start()])
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{kinds[name]})"
            seen.add(name)
            end = m.end()
        self.names = frozenset(seen)
        tail = re.escape(text[end:])
        self.regex = re.compile((pattern + tail).replace("<SEP>", re.escape(separator)))

    def parse(self, name: str) -> dict[str, str] | None:
        m = self.regex.fullmatch(name)
        return m.groupdict() if m else None

    def fill(self, values: Mapping[str, str]) -> str:
        return _PLACEHOLDER.sub(lambda m: values[m.group(1)], self.text)


def _kinds(source: str) -> dict[str, str]:
    """Placeholder -> regular expression, from the source template."""
    out: dict[str, str] = {}
    for name, spec in _PLACEHOLDER.findall(source):
        if spec == "*":
            out.setdefault(name, r"\w+(?:<SEP>\w+)*")
        elif spec:
            out[name] = f"(?:{spec[1:]})"
        else:
            out.setdefault(name, r"\d+")
    return out


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: source template, target template, change of layout.

    Args:
        pattern: template of the torch name.
        path: template of our name; uses every placeholder of `pattern` except `stack`.
        transform: a key of `TRANSFORMS`, or a `Transform` of the network's own.
        stack: the placeholder that is the index on the target's leading axis.
    """

    pattern: str
    path: str
    transform: str | Transform = "copy"
    stack: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.transform, str) and self.transform not in TRANSFORMS:
            raise ValueError(f"transform {self.transform!r}: {nearest(self.transform, TRANSFORMS)}")
        missing = set(self._kinds) - self._path.names - {self.stack}
        if missing or (self.stack is not None and self.stack not in self._kinds):
            raise ValueError(f"{self.path!r} must use {sorted(missing)}, stack {self.stack!r}")

    @property
    def layout(self) -> Transform:
        """The change of layout itself."""
        return TRANSFORMS[self.transform] if isinstance(self.transform, str) else self.transform

    @functools.cached_property
    def _kinds(self) -> dict[str, str]:
        return _kinds(self.pattern)

    @functools.cached_property
    def _source(self) -> _Template:
        return _Template(self.pattern, self._kinds, ".")

    @functools.cached_property
    def _path(self) -> _Template:
        return _Template(self.path, self._kinds, "/")

    def _starred(self) -> set[str]:
        return {name for name, spec in _PLACEHOLDER.findall(self.pattern) if spec == "*"}

    def to_path(self, key: str) -> tuple[str, int | None] | None:
        """Our name and stack index for a torch name, or None when the rule is not about it."""
        values = self._source.parse(key)
        if values is None:
            return None
        index = int(values[self.stack]) if self.stack else None
        starred = self._starred()
        values = {k: _module_path(v) if k in starred else v for k, v in values.items()}
        return self._path.fill(values), index

    def to_key(self, path: str, index: int | None = None) -> str | None:
        """The torch name for our name, or None when the rule does not make it."""
        values = self._path.parse(path)
        if values is None:
            return None
        starred = self._starred()
        values = {k: _dotted(v) if k in starred else v for k, v in values.items()}
        if self.stack:
            values[self.stack] = str(index)
        key = self._source.fill(values)
        # A wildcard may read an index out of a name such as `linear_1`: check the way back.
        return key if self.to_path(key) == (path, index) else None


@dataclasses.dataclass(frozen=True)
class Alias:
    """Another spelling of a torch name, rewritten before the rules see it."""

    pattern: str
    name: str

    @functools.cached_property
    def _templates(self) -> tuple[_Template, _Template]:
        kinds = _kinds(self.pattern)
        return _Template(self.pattern, kinds, "."), _Template(self.name, kinds, ".")

    def rename(self, key: str) -> str | None:
        """The usual spelling of `key`, or None when the alias is not about it."""
        source, name = self._templates
        values = source.parse(key)
        return None if values is None else name.fill(values)


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Torch names that are dropped on purpose, with the reason."""

    pattern: str
    reason: str

    @functools.cached_property
    def _source(self) -> _Template:
        return _Template(self.pattern, _kinds(self.pattern), ".")

    def matches(self, key: str) -> bool:
        """Whether `key` is dropped."""
        return self._source.parse(key) is not None


Entry = Rule | Alias | Ignore


class Move(NamedTuple):
    """One source tensor's way into the target."""

    key: str
    path: str
    index: int | None
    transform: Transform
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]

    def forward(self, tensor: Any) -> Array:
        """The source tensor in our layout (a view where possible)."""
        return self.transform.forward(np.asarray(tensor))

    def inverse(self, leaf: Array) -> Array:
        """The source tensor's values out of the target leaf (a view where possible)."""
        part = leaf if self.index is None else leaf[self.index]
        return self.transform.inverse(part)


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """A complete pairing of source tensors and target leaves."""

    moves: tuple[Move, ...]
    ignored: Mapping[str, str]
    target_shapes: Mapping[str, tuple[int, ...]]

    @functools.cached_property
    def by_path(self) -> dict[str, list[Move]]:
        """Moves grouped by target leaf, in the target's order."""
        out: dict[str, list[Move]] = {path: [] for path in self.target_shapes}
        for move in self.moves:
            out[move.path].append(move)
        return out

    def leaf(self, path: str, source: Mapping[str, Any], dtype: Any | None = None) -> Array:
        """One target leaf, contiguous, from the source tensors it is made of."""
        moves = self.by_path[path]
        if moves[0].index is None:
            return pack(moves[0].forward(source[moves[0].key]), dtype)
        first = moves[0].forward(source[moves[0].key])
        out = np.empty(moves[0].target_shape, first.dtype if dtype is None else dtype)
        for move in moves:
            pack(move.forward(source[move.key]), out=out[move.index])
        return out

    def describe(self) -> str:
        """The mapping, one line per source tensor."""
        lines = []
        for m in self.moves:
            where = m.path if m.index is None else f"{m.path}[{m.index}]"
            lines.append(f"{m.key} {list(m.source_shape)} -> {where} ({m.transform.name})")
        lines += [f"{key} -> ignored: {reason}" for key, reason in self.ignored.items()]
        return "\n".join(lines)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a/b/c": leaf}, in the tree's order."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            out.update(flatten(value, path + "/"))
        else:
            out[path] = value
    return out


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dicts."""
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return out


def pack(array: Array, dtype: Any | None = None, out: Array | None = None) -> Array:
    """A contiguous copy; transposed views go in blocks, several times faster than NumPy's copy.

    Args:
        array: any view.
        dtype: of the copy; None keeps the array's.
        out: where to copy to; without it an array that is already right is returned as it is.
    """
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if out is None:
        if array.flags.c_contiguous:
            return array.astype(dtype, copy=False)
        out = np.empty(array.shape, dtype)
    if array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous:
        for i in range(0, array.shape[1], 16):  # one cache line of float32; 64 take twice as long
            out[:, i : i + 16] = array[:, i : i + 16]
    elif array.ndim == 4 and array.transpose(3, 2, 0, 1).flags.c_contiguous:  # OIHW seen as HWIO
        h, w, i, o = array.shape
        rows = pack(array.transpose(3, 2, 0, 1).reshape(o, i * h * w).T, dtype)
        out[...] = rows.reshape(i, h, w, o).transpose(1, 2, 0, 3)
    else:
        out[...] = array
    return out


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in getattr(leaf, "shape", leaf))


def _moved_shape(transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape after a transform, None when it does not apply to this rank."""
    try:
        return transform.forward(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError):
        return None


def expected_keys(
    rules: Sequence[Entry], target: Mapping[str, Any]
) -> dict[str, tuple[Rule, str, int | None]]:
    """Every torch name that the target needs -> (rule, path, stack index).

    Raises:
        CheckpointError: a leaf that no rule makes, or two rules make.
    """
    only = [r for r in rules if isinstance(r, Rule)]
    out: dict[str, tuple[Rule, str, int | None]] = {}
    problems = []
    for path, leaf in flatten(target).items():
        found = [r for r in only if r._path.parse(path) is not None]
        makers = []
        for rule in found:
            indices = range(_shape(leaf)[0]) if rule.stack else (None,)
            keys = {rule.to_key(path, i): (rule, path, i) for i in indices}
            if None not in keys:
                makers.append(keys)
        if len(makers) != 1:
            problems.append(
                CheckpointError(
                    "The conversion table does not make this parameter exactly once",
                    where=path,
                    found=f"{len(makers)}: {[next(iter(m.values()))[0].pattern for m in makers]}",
                    fix="report it: the table of this network has a fault",
                )
            )
            continue
        out.update(makers[0])
    raise_all("Conversion table", problems)
    return out


def _rename(rules: Sequence[Entry], key: str) -> str:
    for alias in (r for r in rules if isinstance(r, Alias)):
        key = alias.rename(key) or key
    return key


def _move(
    key: str, name: str, shape: tuple[int, ...], expected: Mapping[str, Any], target: Mapping
) -> Move | CheckpointError:
    rule, path, index = expected[name]
    want = _shape(target[path])
    part = want if index is None else want[1:]
    got = _moved_shape(rule.layout, shape)
    if got == part:
        return Move(key, path, index, rule.layout, shape, want)
    inverse = rule.layout.inverse
    right = inverse(np.broadcast_to(np.float32(0), part)).shape
    hint = None
    if len(shape) == 2 and shape == right[::-1]:
        hint = "the tensor looks transposed: was it exported from another framework?"
    elif len(shape) == 4 and tuple(shape[i] for i in (3, 2, 0, 1)) == right:
        hint = "the tensor looks like HWIO where OIHW is expected"
    return CheckpointError(
        "A tensor has the wrong shape",
        where=key,
        expected=f"{list(right)} for {path}",
        found=list(shape),
        fix=hint or "check that this file belongs to this kind and this config",
    )


def match(
    rules: Sequence[Entry], source: Mapping[str, Any], target: Mapping[str, Any]
) -> Correspondence:
    """Pair every source tensor with its target leaf, or raise every problem at once.

    Args:
        rules: the network's table.
        source: torch name -> anything with a shape (or a shape itself).
        target: nested mapping of anything with a shape.

    Raises:
        CheckpointError: a stray, missing, doubled or mis-shaped tensor; a ProblemList of several.
    """
    flat = flatten(target)
    expected = expected_keys(rules, target)
    ignores = [r for r in rules if isinstance(r, Ignore)]
    moves: list[Move] = []
    taken: dict[str, str] = {}
    ignored: dict[str, str] = {}
    problems: list[CheckpointError] = []
    for key, value in source.items():
        name = _rename(rules, key)
        reason = next((r.reason for r in ignores if r.matches(name)), None)
        if name in expected and name in taken:
            problems.append(
                CheckpointError(
                    "Two tensors want the same place",
                    where=f"{taken[name]}, {key}",
                    fix="the file holds a tensor twice, under an old and a new name: keep one",
                )
            )
        elif name in expected:
            taken[name] = key
            move = _move(key, name, _shape(value), expected, flat)
            (moves if isinstance(move, Move) else problems).append(move)
        elif reason is not None:
            ignored[key] = reason
        else:
            problems.append(
                CheckpointError(
                    "A tensor has no place in this network", where=key, fix=nearest(name, expected)
                )
            )
    for name, (_, path, index) in expected.items():
        if name not in taken:
            where = path if index is None else f"{path}[{index}]"
            problems.append(
                CheckpointError(
                    "A tensor is missing from the source",
                    where=name,
                    expected=f"it fills {where}",
                    fix="the source has: " + nearest(name, source),
                )
            )
    _raise_limited(problems)
    return Correspondence(tuple(moves), ignored, {p: _shape(leaf) for p, leaf in flat.items()})


def _raise_limited(problems: list[CheckpointError], limit: int = 20) -> None:
    """Raise the first `limit` problems; a wrong file would otherwise list thousands."""
    if len(problems) > limit:
        rest = len(problems) - limit
        more = CheckpointError(
            f"... and {rest} more like these", fix="is it the right KIND of file?"
        )
        problems = [*problems[:limit], more]
    raise_all("The source does not fit the network", problems)


def apply_rules(
    rules: Sequence[Entry],
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    dtype: Any | None = None,
) -> dict[str, Any]:
    """Convert a torch state dict into a parameter tree.

    Args:
        rules: the network's table.
        source: torch name -> array (or lazy array).
        target: nested mapping of the parameter shapes, e.g. from `jax.eval_shape`.
        dtype: of the result; None keeps the source's.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        CheckpointError: a stray, missing, doubled or mis-shaped tensor; a ProblemList of several.
    """
    pairing = match(rules, source, target)
    return unflatten({p: pairing.leaf(p, source, dtype) for p in pairing.by_path})


def invert_rules(rules: Sequence[Entry], params: Mapping[str, Any]) -> dict[str, Array]:
    """The torch state dict of a parameter tree, in torch's names and layouts."""
    flat = flatten(params)
    out = {}
    for key, (rule, path, index) in expected_keys(rules, params).items():
        leaf = np.asarray(flat[path])
        part = leaf if index is None else leaf[index]
        out[key] = pack(rule.layout.inverse(part))
    return out
