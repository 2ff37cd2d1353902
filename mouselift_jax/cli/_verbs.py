"""The verbs: which there are, their parsers, and how an error is shown."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from mouselift_jax import cli
from mouselift_jax.errors import MouseLiftError, one_of

EPILOG = """\
the usual order:
  python -m mouselift_jax doctor                          is this machine fit?
  python -m mouselift_jax check RECORDING                 is this recording fit?
  python launch.py --config=configs/prepare.py:fill --config.recording=RECORDING \\
      --workdir=runs/prepare                              true cameras round the animal alone
  python launch.py --config=configs/fit.py --config.samples=runs/prepare --workdir=runs/fit
  python -m mouselift_jax view runs/fit                   turn it in the browser
  (a network that lifts at once, or a photo: docs/quickstart.md)

exit codes: 0 done, 1 a bug (please report the traceback), 2 something to correct, 130 interrupted
shell completion: eval "$(python -m mouselift_jax completion)"
"""


def verbs() -> list[str]:
    """Names of the files in cli/."""
    return sorted(m.name for m in pkgutil.iter_modules(cli.__path__) if m.name[0] != "_")


def load(verb: str) -> ModuleType:
    """The module of a verb; a misspelt one suggests the nearest."""
    one_of(verb, verbs(), "no such verb", error=MouseLiftError)
    return importlib.import_module(f"mouselift_jax.cli.{verb}")


def build_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb; its help is the module's docstring."""
    module = load(verb)
    parser = argparse.ArgumentParser(
        prog=f"python -m mouselift_jax {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser


def overview() -> str:
    """The help of the whole: every verb with the first line of its docstring."""
    lines = ["usage: python -m mouselift_jax VERB [-h] ...", "", "verbs:"]
    for verb in verbs():
        lines.append(f"  {verb:<11}{first_line(verb)}")
    return "\n".join([*lines, "", "`VERB --help` says more.", "", EPILOG])


def first_line(verb: str) -> str:
    """What a verb does, in one line, read without importing it: help must be quick."""
    source = (Path(cli.__file__).parent / f"{verb}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def launch(command: str) -> str:
    """A command of launch.py, and where it runs where there is none: the package has none."""
    if Path("launch.py").is_file():
        return command
    return f"{command}\n      (in a clone of the repository, which has launch.py and configs/)"


def coloured(text: str, code: str, stream: object = None) -> str:
    """The text in a terminal's colour; plain when the stream is no terminal or NO_COLOR is set."""
    stream = stream or sys.stderr
    if not getattr(stream, "isatty", lambda: False)() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


def say_error(error: MouseLiftError) -> None:
    """One error in the project's form, on stderr."""
    name = coloured(f"{type(error).__name__}:", "1;31")
    sys.stderr.write(f"{name} {error}\n")
