"""The door to every stage.

    python launch.py --config=configs/<stage>.py[:variant] --workdir=DIR [--config.key=value]

With --config and --help: what the file does, and every key. The same command again resumes.
Exit codes: 0 done, 1 bug, 2 something to correct (one clear error), 75 stopped on request after
saving (run the same command again), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from mouselift_jax.errors import MouseLiftError
from mouselift_jax.stages.harness import command, keys
from mouselift_jax.training.preempt import AGAIN, INTERRUPTED

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/<stage>.py[:variant]")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same command resumes.")
PLAN = flags.DEFINE_enum(
    "plan",
    None,
    ["quick", "full", "compile"],
    "Say what would be done and stop. `--plan` alone = full: with memory, FLOPs and traffic of the "
    "compiled training step; quick: without compiling; compile: also fill the compilation cache.",
)
PROGRESS = flags.DEFINE_enum(
    "progress", "auto", ["auto", "rich", "plain", "json", "none"], "How progress is shown."
)
PROFILE = flags.DEFINE_string("profile", None, "A:B writes a profiler trace of these steps.")
DEBUG = flags.DEFINE_boolean("debug", False, "Show the traceback of a user's error too.")
ANYWAY = flags.DEFINE_boolean(
    "anyway", False, "Go on with a training that would take months on this processor."
)
PLATFORM = flags.DEFINE_enum("platform", None, ["cpu", "gpu", "tpu"], "Use only these devices.")
GPU = flags.DEFINE_string(
    "gpu",
    None,
    "With --plan: compile for this NVIDIA card, which need not be here, and say whether it fits: "
    "h200, h100, a100, a100_40, rtx4090, rtx3090.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; found by itself on TPU and Slurm."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse flags; what is wrong with them is one line and exit code 2."""
    argv = ["--plan=full" if a in ("--plan", "-plan") else a for a in argv]
    if "--list-styles" in argv:
        from mouselift_jax.data.prompts import describe_styles

        command.say(describe_styles())
        sys.exit(0)
    sys.argv = list(argv)  # config_flags reads the overrides from here
    try:
        command.check_config_argument(argv)
        if "--help" in argv and (named := command.named_config(argv)):
            sys.stdout.write(keys.describe(*named) + "\n")
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
        except SystemExit:  # --help was printed, after which absl exits with 1
            sys.exit(0)
        command.check_leftovers(rest[1:])
        if CONFIG.value is None:
            raise command.usage("--config is missing")
        if WORKDIR.value is None:
            raise command.usage("--workdir is missing")
        return rest
    except MouseLiftError as error:
        command.say(error)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        command.say(command.flag_error(error, argv))
    sys.exit(2)


def main(argv: Sequence[str]) -> int:
    """Run one stage and turn what happens into an exit code."""
    del argv
    options = command.Options(
        plan=PLAN.value,
        progress=PROGRESS.value,
        profile=PROFILE.value,
        debug=DEBUG.value,
        anyway=ANYWAY.value,
        platform=PLATFORM.value,
        gpu=GPU.value,
        coordinator=COORDINATOR.value,
        processes=PROCESSES.value,
        process_id=PROCESS_ID.value,
    )
    code = command.run(CONFIG.value, WORKDIR.value, options)
    if code in (AGAIN, INTERRUPTED):
        # What was interrupted inside a compiler can crash Python's own end, and with it the code
        # that a scheduler reads. Everything is closed and released by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
