"""What each view is called when the diffusion network is told of it.

The network knows a view by its prompt alone, so the order of the prompts is the order of the slots:
front, front right, right, back, left, front left for the canonical rig. Texts and styles live in
data/prompts/styles.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from mouselift_jax.errors import ConfigError, LayoutError, one_of
from mouselift_jax.geometry.camera import Camera
from mouselift_jax.geometry.rig import azimuth_elevation

STYLES_FILE = Path(__file__).resolve().parents[2] / "data" / "prompts" / "styles.json"
# Turn from the front, clockwise seen from above, of the six canonical slots.
SLOT_TURNS = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """One way to word the views.

    Attributes:
        name: the key in styles.json.
        template: text with {view}, and {elevation} and {azimuth} where angles are wanted.
        views: the word for each of the six canonical slots.
        note: when to use it.
    """

    name: str
    template: str
    views: tuple[str, ...]
    note: str = ""

    @property
    def needs_cameras(self) -> bool:
        """Whether the text names angles."""
        return "{azimuth}" in self.template or "{elevation}" in self.template


def load_styles(path: str | Path = STYLES_FILE) -> dict[str, PromptStyle]:
    """The styles of a file, by name."""
    try:
        table = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise LayoutError(
            "the file of prompt styles is missing",
            where=path,
            fix="run from a complete checkout, or give --config.styles=FILE",
        ) from error
    except ValueError as error:  # not JSON, or not even text
        raise LayoutError(
            "not a JSON file",
            where=path,
            found=str(error),
            fix="compare it with data/prompts/styles.json",
        ) from error
    styles = {}
    for name, entry in table.items():
        missing = {"template", "views"} - entry.keys()
        if missing or "{view}" not in entry["template"] or len(entry["views"]) != len(SLOT_TURNS):
            raise LayoutError(
                "a prompt style is incomplete",
                where=f"{path}: {name}",
                expected=f"a template with {{view}} and {len(SLOT_TURNS)} view words",
                found=sorted(entry),
                fix="compare it with data/prompts/styles.json",
            )
        styles[name] = PromptStyle(
            name, entry["template"], tuple(entry["views"]), entry.get("note", "")
        )
    return styles


def pick_style(name: str, path: str | Path = STYLES_FILE) -> PromptStyle:
    """One style by name; a misspelt name suggests the nearest."""
    styles = load_styles(path)
    one_of(name, styles, "no such prompt style", where="config.style")
    return styles[name]


def view_turns(cameras: Camera | None = None) -> np.ndarray:
    """The turn [V] of each slot from slot 0, degrees clockwise seen from above.

    Args:
        cameras: cameras [V] in slot order, subject at the origin; None = the canonical slots.
    """
    if cameras is None:
        return np.array(SLOT_TURNS)
    azimuth, _ = azimuth_elevation(np.asarray(cameras.c2w))
    turn = (azimuth[0] - azimuth) % 360.0
    turn[0] = 0.0
    return turn


def view_prompts(style: PromptStyle, cameras: Camera | None = None) -> list[str]:
    """The prompt of each slot, in slot order.

    Args:
        style: the wording.
        cameras: cameras [V] in slot order, subject at the origin; slot 0 counts as the front.
            None words the six canonical slots.

    Raises:
        ConfigError: the style names angles and no cameras are given; or the cameras do not go round
            clockwise from slot 0, so that prompts and pictures would be out of register.
    """
    if cameras is None:
        if style.needs_cameras:
            raise ConfigError(
                f"style {style.name!r} names the angles of your cameras",
                where="config.samples",
                fix="--config.samples=DIR (a prepared sample set), or another --config.style",
            )
        return [style.template.format(view=word) for word in style.views]
    _, elevation = azimuth_elevation(np.asarray(cameras.c2w))
    turn = view_turns(cameras)
    if (np.diff(turn) <= 0).any():
        raise ConfigError(
            "the views are not in slot order",
            where="config.samples",
            expected="decreasing azimuth from slot 0 on, clockwise seen from above",
            found=f"turns from slot 0 of {np.round(turn).astype(int).tolist()} degrees",
            fix="prepare the samples again with this version: it orders views by azimuth",
        )
    words = []
    for angle in turn:
        distance = np.abs((np.asarray(SLOT_TURNS) - angle + 180.0) % 360.0 - 180.0)
        words.append(style.views[int(distance.argmin())])
    return [
        style.template.format(view=word, elevation=round(float(e)), azimuth=round(float(a)))
        for word, e, a in zip(words, elevation, turn, strict=True)
    ]


def describe_styles(path: str | Path = STYLES_FILE) -> str:
    """A table of the styles for a terminal."""
    lines = []
    for style in load_styles(path).values():
        example = style.template.replace("{view}", style.views[1])
        lines += [f"{style.name:<16}{example}", f"{'':<16}({style.note})"]
    return "\n".join(lines)
