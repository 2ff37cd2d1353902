"""`python -m mouselift_jax VERB`: everything around training and inference.

Training and inference themselves: `python launch.py --config=configs/<stage>.py --workdir=DIR`.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from mouselift_jax import __version__
from mouselift_jax.cli._verbs import build_parser, load, overview, say_error
from mouselift_jax.errors import MouseLiftError

DONE, BUG, USER, INTERRUPTED = 0, 1, 2, 130
# What the system says of a place that a user named, and that no code can mend.
PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR,
          errno.EISDIR)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            sys.stdout.write(overview())
            return DONE if argv else USER
        if argv[0] in ("-V", "--version"):
            sys.stdout.write(f"mouselift_jax {__version__}\n")
            return DONE
        verb, rest = argv[0], argv[1:]
        return load(verb).run(build_parser(verb).parse_args(rest)) or DONE
    except MouseLiftError as error:
        if debug:
            traceback.print_exc()
        say_error(error)
        return USER
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in PLACES:
            raise
        if debug:
            traceback.print_exc()
        say_error(
            MouseLiftError(
                "a file cannot be written, or not be read",
                where=error.filename,
                found=error.strerror,
                fix="name a place where you may read and write and that has room",
            )
        )
        return USER


if __name__ == "__main__":
    sys.exit(main())
