"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mouselift"]


def tracked(*patterns: str) -> list[Path]:
    """Files git tracks or would track, so that the tests see what a clone sees."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in out.splitlines() if (ROOT / line).is_file()]


SOURCES = tracked("mouselift_jax/*.py", "tools/*.py", "configs/*.py", "launch.py")
TESTS = tracked("tests/*.py")
DOCS = tracked("*.md")


def test_files_stay_short():
    allowed = RULES["long-files"]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES + TESTS}
    too_long = {name: n for name, n in lengths.items() if n > 500 and name not in allowed}
    assert not too_long, "split these, or give the reason in [tool.mouselift.long-files]"
    stale = [name for name in allowed if lengths.get(name, 0) <= 500]
    assert not stale, "these need no exception any more"


def test_every_style_exception_gives_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("[tool.ruff.lint.per-file-ignores]")[1].split("\n[")[0]
    before = ""
    for line in block.splitlines():
        if line.startswith('"mouselift_jax') or line.startswith('"tools'):
            assert "#" in line or before.startswith("#"), f"no reason: {line}"
        before = line


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_own(path):
    tree = ast.parse(path.read_text())
    if not tree.body:
        return  # an empty __init__.py
    assert ast.get_docstring(tree), f"{path.name} has no module docstring"


def test_nothing_is_left_to_do_and_no_blind_except():
    pattern = re.compile(r"TODO|FIXME|XXX|raise NotImplementedError|except(\s+\(?Exception\b.*)?:")
    found = [
        f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
        for p in SOURCES
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_error_says_how_to_fix_it():
    """A wrong shape is the caller's own; it says what was expected and found."""
    family = {
        "MouseLiftError", "ConfigError", "LayoutError", "CalibrationError", "CheckpointError",
        "BackendError", "TrainingError",
    }  # fmt: skip
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in family
        if not {k.arg for k in node.keywords} & {"fix", None}
    ]
    assert not silent, "\n".join(silent)


def test_folders_are_removed_in_one_place_only():
    """`files.remove_made` and `files.remove_known` refuse what is not ours."""
    allowed = {"mouselift_jax/files.py": 3}
    found = {
        str(p.relative_to(ROOT)): n
        for p in [*SOURCES, *tracked("notebooks/*")]
        if (n := p.read_text().count("rmtree("))
    }
    assert found == allowed


# Files of tests/ that bear no module's name. ACROSS holds more than one module to account;
# AS_BEFORE keeps the name its module had before the move. Nothing is added to AS_BEFORE.
ACROSS = {
    "benchmarks/test_gpu_all.py", "benchmarks/test_page.py", "benchmarks/test_tpu_aot_train.py",
    "cli/test_main.py",
    "data/readers/test_fuzz.py",
    "data/readers/test_readers.py", "data/readers/test_real_rigs.py",
    "integration/test_fit_to_photo.py", "integration/test_launch_tiny.py",
    "notebooks/test_notebooks.py",
    "render/test_differences.py", "render/test_interface.py", "splats/test_splats.py",
    "test_configs.py", "test_docs.py", "test_old_files.py", "test_repo_rules.py",
    "test_security.py", "test_wheel.py", "training/test_restart.py",
}  # fmt: skip
AS_BEFORE = {
    "data/test_grade.py", "data/test_head.py", "data/test_hull.py", "data/test_jumps.py",
    "data/test_layout.py", "data/test_loader.py", "data/test_prepare.py",
    "data/test_prepare_stage.py", "data/test_rigs.py", "data/test_split_frames_views.py",
    "data/test_video_masks.py", "pipelines/test_conversion.py",
    "pipelines/test_conversion_faults.py", "pipelines/test_export_torch.py",
    "pipelines/test_gslrm_parity.py", "stages/test_head.py", "stages/test_photos.py",
    "stages/test_program.py", "stages/test_sequence.py", "stages/test_workdir.py",
    "training/test_watchdogs.py",
}  # fmt: skip


def bears_a_modules_name(path: Path) -> bool:
    """Whether tests/x/test_y.py or test_y_more.py stands for mouselift_jax/x/y.py or x/y/."""
    stem = path.stem.removeprefix("test_")
    folder = ROOT / "mouselift_jax" / path.relative_to(ROOT / "tests").parent
    names = [p.stem for p in SOURCES if p.parent == folder and p.stem != "__init__"]
    names += [p.parent.name for p in SOURCES if p.parent.parent == folder]
    return any(stem == name or stem.startswith(f"{name}_") for name in names)


def test_a_test_file_bears_its_modules_name():
    files = [p for p in TESTS if p.name.startswith("test_")]
    found = {p.relative_to(ROOT / "tests").as_posix() for p in files if not bears_a_modules_name(p)}
    assert not found - ACROSS - AS_BEFORE, "name these after their module, in its mirrored folder"
    assert not (ACROSS | AS_BEFORE) - found, "these need no exception any more"


# Parameters `config: Any` below stages/*.py, which should be dataclasses: only ever fewer.
UNTYPED_SETTINGS = {
    "runs/folder.py": 1, "runs/record.py": 1, "stages/harness/command.py": 4,
    "stages/harness/plan.py": 1, "stages/items/from_photos.py": 1,
    "stages/items/from_samples.py": 1, "stages/multiview/generator.py": 1,
}  # fmt: skip


def untyped_settings(tree: ast.AST) -> int:
    """How many parameters of a module are `config: Any`."""
    parameters = [node for node in ast.walk(tree) if isinstance(node, ast.arg)]
    return sum(a.arg == "config" and getattr(a.annotation, "id", "") == "Any" for a in parameters)


def test_settings_below_the_stages_are_typed():
    package = ROOT / "mouselift_jax"
    below = [p for p in SOURCES if package in p.parents and p.parent != package / "stages"]
    counts = {p: untyped_settings(ast.parse(p.read_text())) for p in below}
    found = {p.relative_to(package).as_posix(): n for p, n in counts.items() if n}
    assert found == UNTYPED_SETTINGS, "take a dataclass; where one became typed, lower the table"


def test_no_machine_paths_or_hosts():
    # Built from parts, so that this file does not contain what it forbids.
    words = [
        "/".join(["", "work", ""]),
        "/".join(["", "root", ""]),
        "pypi" + ".org",
        "python" + "hosted",
    ]
    binary = {".npz", ".png", ".jpg", ".safetensors", ".ply", ".mp4", ".pt"}
    found = []
    for path in tracked("*"):
        if path.suffix in binary or path.stat().st_size > 2_000_000:
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {w}" for w in words if w in text]
    assert not found, "\n".join(found)


def test_no_large_files():
    large = [str(p.relative_to(ROOT)) for p in tracked("*") if p.stat().st_size > 1_500_000]
    assert not large


def test_torch_stays_outside_the_package():
    for path in tracked("mouselift_jax/*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.M), path


# A path in backticks or a link: it has a slash or a known suffix, and no placeholder.
_DOC_PATH = re.compile(r"(?:`|\]\()((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|txt|toml))(?:[`)#:])")
_ROOTS = ("mouselift_jax/", "configs/", "tests/", "tools/", "docs/", "data/", "notebooks/", ".ci/")


def doc_paths(text: str) -> set[str]:
    """Paths of this repository that a document names."""
    return {m for m in _DOC_PATH.findall(text) if m.startswith(_ROOTS)}


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_named_in_docs_exist(path):
    absent = [name for name in doc_paths(path.read_text()) if not (ROOT / name).exists()]
    assert not absent, f"{path.name} names what does not exist: {absent}"


def test_links_between_docs_resolve():
    broken = []
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#:\s]+?)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert not broken, "\n".join(broken)


def test_commands_in_docs_name_real_configs_and_variants():
    from configs import common  # noqa: F401  (configs import without the package)

    wrong = []
    for path in DOCS:
        for stage, variant in re.findall(r"configs/(\w+)\.py(?::([\w,]+))?", path.read_text()):
            file = ROOT / "configs" / f"{stage}.py"
            if not file.exists():
                wrong.append(f"{path.name}: configs/{stage}.py")
            elif variant and f'"{variant}"' not in file.read_text():
                wrong.append(f"{path.name}: configs/{stage}.py:{variant}")
    assert not wrong, "\n".join(wrong)
