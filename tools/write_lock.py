"""Write requirements.lock and docs/licences.md from what pip resolves and what is installed.

    python tools/write_lock.py            # with the project's virtual environment active

The lock names one file (by hash) of every package for the running Python and platform; install it
with `pip install --require-hashes -r requirements.lock`.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# What the metadata say too long or not at all; read in the packages' own licence files.
KNOWN = {"cycler": "BSD-3-Clause", "kiwisolver": "BSD-3-Clause"}
NOTES = """\
One of them deserves a look before you redistribute anything: **imageio-ffmpeg** brings an FFmpeg
binary built with x264 (GPL). It runs as a program of its own, beside this project.
"""


def resolved() -> list[tuple[str, str, str]]:
    """(name, version, sha256) of everything that requirements-lab.txt leads to, here."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--only-binary=:all:", "--report", str(report)]
        subprocess.run([*command, "-r", str(ROOT / "requirements-lab.txt")], check=True)
        items = json.loads(report.read_text())["install"]
    rows = []
    for item in items:
        meta = item["metadata"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        rows.append((meta["name"].lower().replace("_", "-"), meta["version"], digest))
    return sorted(rows)


def lock_text(rows: list[tuple[str, str, str]]) -> str:
    """The lock file."""
    version = platform.python_version_tuple()
    head = (
        f"# Python {version[0]}.{version[1]}, {platform.system()} {platform.machine()}; "
        "written by tools/write_lock.py\n"
        "# pip install --require-hashes -r requirements.lock\n"
    )
    body = "".join(f"{n}=={v} \\\n    --hash=sha256:{d}\n" for n, v, d in rows)
    return head + body


def licence_of(name: str) -> str:
    """The licence as the installed package states it."""
    if name.lower() in KNOWN:
        return KNOWN[name.lower()]
    meta = importlib.metadata.metadata(name)
    text = meta.get("License-Expression") or (meta.get("License") or "").split("\n")[0]
    if not text or len(text) > 60:
        found = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
        text = ", ".join(c.split("::")[-1].strip() for c in found) or text
    return text or "not stated"


def licences() -> str:
    """docs/licences.md: everything requirements-lab.txt installs, with its licence."""
    found: dict[str, tuple[str, str]] = {}

    def walk(name: str) -> None:
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            return
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return
        found[key] = (distribution.version, licence_of(name))
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                walk(requirement.name)

    for line in (ROOT / "requirements-lab.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line:
            walk(Requirement(line).name)
    table = "\n".join(f"| {n} | {v} | {text} |" for n, (v, text) in sorted(found.items()))
    return (
        "# Licences of the packages that are installed\n\n"
        "What `requirements-lab.txt` leads to, with the licence each package states. Written by\n"
        "`python tools/write_lock.py`; the project itself is Apache-2.0 (LICENSE, NOTICE).\n\n"
        f"{NOTES}\n| package | version | licence |\n|---|---|---|\n{table}\n"
    )


def main() -> None:
    """Write both files."""
    (ROOT / "docs" / "licences.md").write_text(licences())
    (ROOT / "requirements.lock").write_text(lock_text(resolved()))


if __name__ == "__main__":
    main()
