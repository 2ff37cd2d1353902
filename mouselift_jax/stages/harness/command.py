"""What `launch.py` does after its flags are read: environment, plan or run, exit code."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mouselift_jax.data.inputs import prepare_command
from mouselift_jax.errors import BackendError, ConfigError, MouseLiftError, nearest, raise_all
from mouselift_jax.runs.folder import Options as RunOptions
from mouselift_jax.runs.folder import Workdir, check_place, flatten, plain, read_summary
from mouselift_jax.stages.harness import gpu_plan
from mouselift_jax.stages.harness.patience import too_slow
from mouselift_jax.stages.harness.plan import STAGES, find_stage, next_commands
from mouselift_jax.training.preempt import AGAIN, INTERRUPTED, StopRequested

log = logging.getLogger("mouselift_jax")

MEMORY = (
    "the variant lowmem, a smaller config.train.batch_size or config.data.size, more "
    "config.train.accum_steps, or config.train.mesh.fsdp over more devices; --plan says how much"
)

POSITIVE = ("steps", "batch_size", "accum_steps")  # numbers of which there is at least one
MAY_BE_NONE = "refine.steps"  # but for this one: 0 turns it off
NUMBERED = ("heldout_cameras", "views", "exclude")  # lists of whole numbers
DTYPES = ("bfloat16", "float32")  # of products; figures and losses are float32 throughout
DONE, USER = 0, 2  # a bug is a traceback and 1; 75 and 130 see training/preempt.py


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of `launch.py` besides --config and --workdir."""

    plan: str | None = None
    progress: str = "auto"
    profile: str | None = None
    debug: bool = False
    anyway: bool = False
    platform: str | None = None
    gpu: str | None = None
    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


# --- flags that are wrong ---------------------------------------------------------------------


def usage(what: str) -> ConfigError:
    """An error about the command line itself."""
    return ConfigError(
        what, fix="python launch.py --config=configs/<stage>.py[:variant] --workdir=DIR [--plan]"
    )


def check_config_argument(argv: Sequence[str]) -> None:
    """A --config that names no file suggests the nearest config."""
    for arg in argv[1:]:
        match = re.fullmatch(r"--?config=([^:]*)(:.*)?", arg)
        if match and not Path(match[1]).is_file():
            folder = Path(match[1]).parent
            known = [str(p) for p in sorted(folder.glob("*.py"))] or [
                f"configs/{name}.py" for name in STAGES
            ]
            raise ConfigError(
                "no such config file", where=f"--config={match[1]}", fix=nearest(match[1], known)
            )


def check_leftovers(rest: Sequence[str]) -> None:
    """Words that are no flags are a mistake (a forgotten `=`)."""
    if rest:
        raise usage(f"unexpected argument {rest[0]!r}")


def flag_error(error: Exception, argv: Sequence[str]) -> ConfigError:
    """What absl or ml_collections raised while parsing, in our form."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A config file's own ValueError comes with a traceback inside its message: only its end is
    # for people.
    found = next((line for line in reversed(lines) if re.match(r"(\w+Error): ", line)), None)
    text = re.sub(r"^\w+Error: ", "", found) if found else " ".join(lines)
    keys = {m[1]: m[2] for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", a))}
    known = _known_keys(argv)
    for key in keys:
        if not known or key in known or any(k.startswith(key + ".") for k in known):
            continue
        if key == "recording":
            return ConfigError(
                f"stage {known['stage']} takes samples, not a recording",
                where=f"--config.{key}={keys[key]}",
                fix=prepare_command(keys[key]),
            )
        last = key.rsplit(".", 1)[-1]
        same_end = [k for k in known if k.rsplit(".", 1)[-1] == last]
        hint = f"did you mean {same_end[0]!r}?" if same_end else nearest(key, known)
        return ConfigError("no such key", where=f"--config.{key}", fix=hint)
    return _wrong_type(text, known) or usage(text)


# What a value must be and an example, by what Python says of one that is not.
KINDS = {
    "Non-boolean": ("True or False", "True"),
    "invalid literal for int": ("a whole number", "3"),
    "could not convert string to float": ("a number", "0.5"),
    "is not a dict": ("none: it is a section, whose keys take values", None),
}


def _wrong_type(text: str, known: dict[str, Any]) -> ConfigError | None:
    """A value that its key cannot take, in words; None where the text is about something else."""
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    kind = next((kind for words, kind in KINDS.items() if words in text), None)
    if match is None or kind is None:
        return None
    (key, found), (what, example) = match.groups(), kind
    now = known.get(key)
    if example is None:
        inside = [k for k in known if k.startswith(f"{key}.")]
        fix = f"--config.{inside[0]}=... is one of them" if inside else "name one of its keys"
    else:
        fix = f"--config.{key}={example if now is None else now}, for example"
    return ConfigError(
        "this key does not take such a value",
        where=f"--config.{key}",
        expected=what,
        found=found,
        fix=fix,
    )


def _known_keys(argv: Sequence[str]) -> dict[str, Any]:
    """Flattened keys of the config that the command line names, {} when it cannot be loaded."""
    try:
        config = _config_file(argv)
    except (OSError, KeyError, ValueError, TypeError):
        return {}
    return {} if config is None else flatten(config.to_dict())


def named_config(argv: Sequence[str]) -> tuple[str, str | None] | None:
    """File and variant of --config; None when there is none."""
    named = next((m for a in argv if (m := re.match(r"--?config=([^:]*)(?::(.*))?$", a))), None)
    return None if named is None else (named[1], named[2])


def _config_file(argv: Sequence[str], variant: str | None = None) -> Any:
    """The config that the command line names, without its changes; None when it names none."""
    named = named_config(argv)
    if named is None:
        return None
    get_config = runpy.run_path(named[0])["get_config"]
    variant = variant or named[1]
    return get_config(variant) if variant else get_config()


def check_choices(config: Any) -> None:
    """Words out of a few, and counts, whatever the stage: a wrong one costs no computing.

    Raises:
        ConfigError: some are misspelt or below 1; all are named.
    """
    from mouselift_jax.data.batches.views import POLICIES
    from mouselift_jax.render.rasterize import IMPLEMENTATIONS
    from mouselift_jax.splats.filters import RECIPES
    from mouselift_jax.splats.ply import AXES

    choices = {"dtype": DTYPES, "frozen_dtype": DTYPES, "render": IMPLEMENTATIONS}
    choices |= {"axes": tuple(AXES), "filter": tuple(RECIPES), "policy": POLICIES}
    problems = []
    for key, value in flatten(plain(config)).items():
        last = key.rsplit(".", 1)[-1]
        is_off = value == 0 and key.endswith(MAY_BE_NONE)
        if last in POSITIVE and value is not None and value < 1 and not is_off:
            problems.append(
                ConfigError(
                    f"there is nothing to do in {value} {last}" if last == "steps" else "too few",
                    where=f"config.{key}",
                    expected="1 or more",
                    found=value,
                    fix=f"--config.{key}=1 or more",
                )
            )
        if last in NUMBERED and isinstance(value, list):
            if any(not str(v).lstrip("-").isdigit() for v in value):
                problems.append(
                    ConfigError(
                        "this key takes whole numbers",
                        where=f"config.{key}",
                        found=", ".join(map(str, value)),
                        fix=f"--config.{key}=3, (with the comma), or --config.{key}='(3,4)'",
                    )
                )
        known = choices.get(last)
        if known is not None and value is not None and value not in known:
            problems.append(
                ConfigError(
                    "no such value",
                    where=f"config.{key}",
                    expected=" | ".join(known),
                    found=value,
                    fix=nearest(str(value), known),
                )
            )
    raise_all("the configuration cannot be used", problems)


# --- the run ----------------------------------------------------------------------------------


def run(config: Any, path: str, options: Options) -> int:
    """Plan or run the stage that the config names; returns the exit code."""
    _console(options.progress)
    try:
        with _terminable():
            return _start(config, Path(path), options)
    except MouseLiftError as error:
        if options.debug:
            traceback.print_exc()
        say(error)
        return USER
    except StopRequested as stop:
        why = "interrupted" if stop.code == INTERRUPTED else "stopped on request"
        say(f"{why}: {stop.said}. Resume: {same_command()}")
        return stop.code
    except KeyboardInterrupt:
        say(f"interrupted: what is finished is kept. Resume: {same_command()}")
        return INTERRUPTED
    except RuntimeError as error:
        # JAX raises a kind of RuntimeError when a device is full; everything else is a bug.
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        say(
            f"the device's memory is too small: {str(error).splitlines()[0][:300]}\n  Fix: {MEMORY}"
        )
        return USER
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = (
            "the disk is full" if error.errno == errno.ENOSPC else "your share of the disk is full"
        )
        say(f"{what}: {error}\n  Fix: free some space, then run the same command again")
        return USER
    finally:
        _leave_distributed()


def _start(config: ConfigDict, path: Path, options: Options) -> int:
    """Plan or run; returns the exit code of what ended well or only says what would stop it."""
    stage = find_stage(config.stage)
    check_choices(config)
    primary = environment(path, options)
    hopeless = None
    done = read_summary(path).get("finished")
    if hasattr(stage, "flops_per_step") and not (options.anyway or options.gpu or done):
        hopeless = too_slow(config.stage, stage.flops_per_step(config), config.train.steps)
    if options.plan:
        return _plan(stage, config, path, options, hopeless)
    if hopeless is not None:
        raise hopeless
    run_options = RunOptions(options.progress, options.profile, options.debug, primary)
    with Workdir(path, config, run_options) as folder:
        stage.run(config, folder)
    if primary and options.progress != "none":
        say(closing(stage, config, path))
    return DONE


def closing(stage: Any, config: Any, path: Path) -> str:
    """What came out, where it is shown, and what to do next."""
    from mouselift_jax.report.html import headline

    summary = read_summary(path)
    figures = headline(summary.get("metrics", {}))
    width = max((len(name) for name, _ in figures), default=0)
    lines = [f"  {name:<{width}}  {value}" for name, value in figures]
    if "verdict" in summary:
        lines.append(summary["verdict"]["text"])
    if (path / "report.html").is_file():
        lines.append(f"report: {path / 'report.html'}")
    return "\n".join([*lines, *(f"next:   {c}" for c in next_commands(stage, config, path))])


def _plan(
    stage: Any,
    config: Any,
    path: Path,
    options: Options,
    hopeless: ConfigError | None = None,
) -> int:
    plan = stage.plan(config, path)
    try:
        check_place(path, plain(config))
    except ConfigError as error:
        plan.stops.insert(0, error)
    plan.stops += [hopeless] if hopeless is not None else []
    sys.stdout.write(plan.describe() + "\n")
    if options.gpu:
        other = functools.partial(_config_file, sys.argv)
        sys.stdout.write(gpu_plan.describe(stage, config, path, options.gpu, other) + "\n")
    elif plan.stops:
        return USER
    elif options.plan != "quick" and hasattr(stage, "compile_plan"):
        sys.stdout.write(stage.compile_plan(config, path).describe() + "\n")
    return DONE


def environment(path: Path, options: Options) -> bool:
    """Devices, processes and compilation cache; returns whether this process writes files."""
    import jax

    if options.gpu and not options.plan:
        raise ConfigError(
            "--gpu is a card to plan for", where=f"--gpu={options.gpu}", fix="add --plan"
        )
    if options.gpu:  # its compiler is asked, its driver is not
        jax.config.update("jax_platforms", "cpu")
    elif options.platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(options.platform, options.platform))
    from mouselift_jax.training import distributed

    distributed.initialise(options.coordinator, options.processes, options.process_id)
    if options.plan in (None, "compile") and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = path.absolute().parent / ".cache" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plugin is installed
        asked = options.platform or os.environ.get("JAX_PLATFORMS")
        raise BackendError(
            "JAX finds no such device",
            where=f"--platform={asked}" if options.platform else f"JAX_PLATFORMS={asked}",
            found=(str(error).splitlines() or [f"no JAX build for {asked} is installed"])[0],
            fix="leave it out (it takes the best there is) or set cpu; python -m mouselift_jax "
            "doctor says which devices there are and why not",
        ) from error
    primary = jax.process_index() == 0
    if not primary:
        log.setLevel(logging.WARNING)
    log.info(
        "%d %s device(s) in %d process(es)",
        len(devices),
        devices[0].device_kind,
        jax.process_count(),
    )
    return primary


def same_command() -> str:
    """The command line that was given, to paste again."""
    import shlex

    return shlex.join(["python", *sys.argv])


def say(message: object) -> None:
    """One message to people, on stderr."""
    kind = f"{type(message).__name__}: " if isinstance(message, Exception) else ""
    sys.stderr.write(f"{kind}{message}".rstrip() + "\n")


def _console(progress: str) -> None:
    """The package's log lines go to stderr; absl's own handler would print them a second time."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells every file it renames
    log.propagate = False
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # devices not there
    for old in [h for h in log.handlers if not isinstance(h, logging.FileHandler)]:
        log.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.WARNING if progress == "none" else logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _leave_distributed() -> None:
    from mouselift_jax.training import distributed

    distributed.shutdown()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stage like Ctrl-C does, so that locks and temporary files go."""

    def stop(signum: int, frame: object) -> None:
        raise StopRequested(AGAIN, "what is finished is kept")

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
