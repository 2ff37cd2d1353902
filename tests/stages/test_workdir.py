import errno
import importlib
import json
import logging
import runpy
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import common, gslrm, infer
from mouselift_jax.cli._verbs import build_parser
from mouselift_jax.data.inputs import resolve_samples
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.errors import BackendError, ConfigError, LayoutError, ProblemList
from mouselift_jax.runs import record
from mouselift_jax.runs.folder import Workdir
from mouselift_jax.stages.harness import command, patience
from mouselift_jax.stages.harness.plan import (
    STAGES,
    Plan,
    find_stage,
    in_a_free_folder,
    next_commands,
)
from mouselift_jax.stages.harness.selection import select
from mouselift_jax.training.preempt import StopRequested
from tests.sample_sets import write_samples

ROOT = Path(__file__).resolve().parents[2]


def test_a_second_owner_is_refused(tmp_path):
    with Workdir(tmp_path / "w", {"stage": "x"}):
        with pytest.raises(ConfigError, match="in use by another run"):
            Workdir(tmp_path / "w", {"stage": "x"}).__enter__()
    with Workdir(tmp_path / "w", {"stage": "x"}):
        pass


def test_changes_are_listed_and_stop_but_for_the_harmless(tmp_path):
    one = gslrm.get_config("tiny")
    with Workdir(tmp_path, one):
        pass
    two = gslrm.get_config("tiny")
    two.train.steps, two.train.log_every, two.train.mesh.fsdp = 7, 3, 1
    with Workdir(tmp_path, two):
        pass
    two.loss.l2, two.seed = 0.5, 3
    with pytest.raises(ConfigError) as told:
        Workdir(tmp_path, two).__enter__()
    assert "loss.l2: 1.0 -> 0.5" in str(told.value) and "seed: 0 -> 3" in str(told.value)
    with Workdir(tmp_path, one):  # the refused visit left the folder as it was
        pass


@pytest.mark.parametrize("kind", [LayoutError, RuntimeError, KeyboardInterrupt])
def test_a_mistake_does_not_claim_the_folder(tmp_path, kind):
    def visit(samples, made=()):
        with Workdir(tmp_path, {"stage": "x", "samples": samples}) as w:
            for name in made:
                (w / name).write_text("1")
            raise kind("no such folder")

    with pytest.raises(kind):
        visit("typo")
    with pytest.raises(kind):
        visit("right", made=["a.ply"])  # corrected; what it made belongs to this config
    with pytest.raises(ConfigError, match="samples: 'right' -> 'other'"):
        visit("other")


def test_the_folder_of_another_stage_is_refused(tmp_path):
    with Workdir(tmp_path, {"stage": "prepare", "seed": 0}):
        pass
    with pytest.raises(ConfigError, match="another stage") as told:
        Workdir(tmp_path, {"stage": "infer", "size": 3}).__enter__()
    assert "a run of prepare" in str(told.value) and "seed" not in str(told.value)


def test_stages_that_do_not_train_leave_their_figures_like_training(tmp_path):
    with Workdir(tmp_path, {"stage": "x"}) as w:
        w.summary(finished=False, steps=3, metrics={"items": 3})
        w.summary(finished=True, steps=3, metrics={"items": 3})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 3, "items": 3.0}]
    assert list(tmp_path.glob("events.out.tfevents*"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    with Workdir(tmp_path, {"stage": "x"}) as w:  # a training run's rows are its own
        w.summary(finished=True, steps=3, metrics={"items": 3})
    assert "items" not in (tmp_path / "metrics.jsonl").read_text()


def test_summary_keeps_what_came_before_and_paths_are_relative(tmp_path):
    with Workdir(tmp_path / "w", {"stage": "x"}) as w:
        w.warn("odd")
        w.warn("odd")
        w.summary(finished=False, metrics={"a": 1}, artefacts={"samples": w / "samples"})
        w.summary(finished=True, steps=3, metrics={"b": 2}, artefacts={"report": "report.html"})
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert summary["finished"] and summary["steps"] == 3 and summary["warnings"] == ["odd"]
    assert summary["metrics"] == {"a": 1.0, "b": 2.0}
    assert summary["artefacts"]["samples"] in ("samples", str(tmp_path / "w/samples"))
    assert {"stage", "wall_s", "inputs", "versions"} <= set(summary)
    assert "odd" in (tmp_path / "w/log.txt").read_text()
    with Workdir(tmp_path / "w", {"stage": "x"}) as w:  # a visit that finds nothing left to do
        assert w.summary(finished=True, steps=3)["warnings"] == ["odd"]
    assert not [h for h in logging.getLogger("mouselift_jax").handlers if "log.txt" in str(h)]


def test_a_run_is_whole_while_all_that_it_made_is_there(tmp_path):
    assert not record.is_whole(tmp_path)
    for finished in (False, True):
        with Workdir(tmp_path, {"stage": "x"}) as workdir:
            (workdir / "a.txt").write_text("made")
            workdir.summary(finished=finished, artefacts={"a": "a.txt"})
        assert record.is_whole(tmp_path) == finished
    (tmp_path / "a.txt").unlink()
    assert not record.is_whole(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "videos/0.mp4"])
def test_a_folder_that_no_run_made_is_left_alone(tmp_path, name):
    """A recording, a project, a home: nothing of them may be overwritten."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="no run made: nothing is written") as told:
        Workdir(tmp_path, {"stage": "x"}).__enter__()
    assert f"--workdir={tmp_path / 'x'}" in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / name).read_text() == "{}"


def test_a_schedulers_output_may_lie_in_a_new_runs_folder(tmp_path):
    (tmp_path / "slurm-12.out").write_text("started")
    with Workdir(tmp_path, {"stage": "x"}):
        pass


def plan_of(path, config, capsys, **options):
    """Exit code and words of `--plan=quick` of a stage that has nothing against itself."""
    stage = type("S", (), {"plan": staticmethod(lambda config, path: Plan("x"))})
    code = command._plan(stage, config, path, command.Options(plan="quick", **options))
    return code, capsys.readouterr().out


def test_a_plan_says_what_the_run_would_say(tmp_path, capsys, monkeypatch):
    config = common.stage("x")
    assert plan_of(tmp_path / "new", config, capsys)[0] == 0 and not (tmp_path / "new").exists()
    with Workdir(tmp_path / "used", config):
        code, text = plan_of(tmp_path / "used", config, capsys)
        assert code == 2 and "in use by another run" in text
    with Workdir(tmp_path / "other", common.stage("y")):
        pass
    assert "a run of y" in plan_of(tmp_path / "other", config, capsys)[1]
    changed = common.stage("x")
    changed.seed = 3
    assert "seed: 0 -> 3" in plan_of(tmp_path / "used", changed, capsys)[1]
    monkeypatch.setattr("os.access", lambda *_: False)
    code, text = plan_of(tmp_path / "new", config, capsys)
    assert code == 2 and f"{tmp_path} is read-only for you" in text


def test_a_training_that_would_never_end_is_told_with_what_fits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patience, "speed", lambda: 1e11)
    monkeypatch.setattr(command, "environment", lambda path, options: True)
    started = []
    monkeypatch.setattr(find_stage("gslrm"), "run", lambda *_: started.append(1))

    def told(variant, **options):
        config = gslrm.get_config(variant)
        code = command.run(config, str(tmp_path / variant), command.Options(**options))
        return code, capsys.readouterr().err

    code, text = told("base")
    assert code == 2 and "configs/gslrm.py:tiny" in text and "for 20000" in text and not started
    assert not (tmp_path / "base").exists()
    assert told("tiny")[0] == 0 and told("base", anyway=True)[0] == 0 and len(started) == 2
    monkeypatch.setattr(patience, "speed", lambda: 1e15)  # a processor of another time
    assert told("base")[0] == 0 and len(started) == 3


def test_the_plan_of_a_base_training_names_all_that_stops_it(tmp_path):
    config = gslrm.get_config("base")
    config.samples = str(write_samples(tmp_path / "set", n=2, size=16, n_val=1))
    stops = find_stage("gslrm").plan(config, tmp_path / "run").stops
    assert [error.where for error in stops] == ["config.perceptual_from"]
    config.loss.perceptual = 0.0
    assert not find_stage("gslrm").plan(config, tmp_path / "run").stops


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError):
            Workdir(path, {"stage": "x"}).__enter__()


def test_resolve_samples(tmp_path):
    made = write_samples(tmp_path / "run" / "samples", n=2, size=16, n_val=1)
    assert resolve_samples(made) == made
    (tmp_path / "run/summary.json").write_text(
        json.dumps({"finished": True, "artefacts": {"samples": "samples"}})
    )
    assert resolve_samples(tmp_path / "run") == made
    (tmp_path / "run/summary.json").write_text(
        json.dumps({"finished": False, "artefacts": {"samples": "samples"}})
    )
    with pytest.raises(LayoutError, match="has not finished"):
        resolve_samples(tmp_path / "run")
    (tmp_path / "rec/videos_undist").mkdir(parents=True)
    with pytest.raises(LayoutError, match="recording, not a sample set") as told:
        resolve_samples(tmp_path / "rec")
    assert "configs/prepare.py" in str(told.value)
    with pytest.raises(LayoutError, match="did you mean 'run'"):
        resolve_samples(tmp_path / "runn")
    (tmp_path / ".cache").mkdir()
    with pytest.raises(LayoutError, match="known: rec, run") as told:
        resolve_samples(tmp_path / "elsewhere")
    assert ".cache" not in str(told.value)
    with pytest.raises(LayoutError, match="there is nothing in"):
        resolve_samples(tmp_path / ".cache" / "a")
    with pytest.raises(LayoutError, match="is not there"):
        resolve_samples(tmp_path / "nowhere" / "a")
    with pytest.raises(ConfigError, match="config.samples"):
        resolve_samples(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="no sample set here"):
        resolve_samples(tmp_path / "empty")
    (tmp_path / "my rec/videos").mkdir(parents=True)
    with pytest.raises(LayoutError) as told:  # the command can be pasted
        resolve_samples(tmp_path / "my rec")
    assert f"'--config.recording={tmp_path / 'my rec'}'" in str(told.value)


def test_the_videos_of_a_run_make_no_recording_of_it(tmp_path):
    """infer leaves turntable.mp4 or videos/; `prepare` is no cure for giving its folder."""
    (tmp_path / "infer/videos").mkdir(parents=True)
    (tmp_path / "infer/turntable.mp4").write_bytes(b"film")
    (tmp_path / "infer/summary.json").write_text('{"stage": "infer", "artefacts": {}}')
    with pytest.raises(LayoutError, match="no sample set here") as told:
        resolve_samples(tmp_path / "infer")
    assert "configs/prepare.py" not in str(told.value)


def test_sets_made_elsewhere_are_samples(tmp_path):
    made = write_samples(tmp_path / "set", n=2, size=16, n_val=1)
    for name in ("manifest.json", "train.txt", "val.txt"):
        (made / name).unlink()
    assert resolve_samples(made) == made and len(SampleSet.open(made)) == 2
    one = made / "sample_000001"
    assert resolve_samples(one) == one and SampleSet.open(one).ids() == ("sample_000001",)
    for part in ("a", "b"):
        (made / f"data_{part}_train.txt").write_text("sample_000000\n")
    with pytest.raises(LayoutError, match="several lists of train"):
        SampleSet.open(made)
    assert len(SampleSet.open(made / "data_a_train.txt")) == 1


def test_an_empty_split_is_an_error(tmp_path):
    samples = SampleSet.open(write_samples(tmp_path / "set", n=2, size=16, n_val=0))
    assert select(samples, "all", "") == ["sample_000000", "sample_000001"]
    with pytest.raises(LayoutError, match="split 'val' is empty"):
        select(samples, "val", "")


def test_misspelt_words_of_a_config_are_told_together():
    config = infer.get_config("tiny")
    command.check_choices(config)
    config.dtype, config.axes = "flaot32", "opncv"
    with pytest.raises(ProblemList) as told:
        command.check_choices(config)
    assert "did you mean 'float32'" in str(told.value)
    assert "did you mean 'opencv'" in str(told.value)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_run_of_no_steps_is_refused(steps):
    config = gslrm.get_config("tiny")
    config.train.steps = steps
    with pytest.raises(ConfigError, match=f"nothing to do in {steps} steps") as told:
        command.check_choices(config)
    assert "config.train.steps" in str(told.value) and "1 or more" in str(told.value)
    config.train.steps, config.train.batch_size = 1, 0
    with pytest.raises(ConfigError, match="config.train.batch_size"):
        command.check_choices(config)


def test_what_to_type_next_can_be_pasted_whatever_folders_are_called():
    stage, configs = find_stage("gslrm"), importlib.import_module("configs.gslrm")
    config = configs.get_config("tiny")
    config.samples = "my mouse/samples"
    infer, _ = (shlex.split(line) for line in next_commands(stage, config, Path("my runs/a")))
    assert infer[2:] == [
        "--config=configs/infer.py:tiny", "--config.samples=my mouse/samples",
        "--config.gslrm=my runs/a", "--workdir=my runs/infer",
    ]  # fmt: skip


def test_a_command_that_is_given_again_has_each_key_once():
    given = "python launch.py --config=c.py:tiny --config.train.steps=2 '--workdir=my run'"
    again = record.each_key_once(f"{given} --config.train.steps=4")
    assert again == "python launch.py --config=c.py:tiny --config.train.steps=4 '--workdir=my run'"


def test_the_next_command_takes_a_folder_that_is_free_or_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    told = f"python launch.py --config=configs/infer.py --config.samples=a --workdir={tmp_path}/i"
    assert in_a_free_folder(told) == told
    config = infer.get_config()
    config.samples = "a"
    with Workdir(tmp_path / "i", config):
        pass
    assert in_a_free_folder(told) == told  # it would go on there
    assert in_a_free_folder(told.replace("=a ", "=b ")).endswith(f"--workdir={tmp_path}/i_2")
    assert in_a_free_folder("python -m mouselift_jax view x") == "python -m mouselift_jax view x"


def test_the_network_that_comes_next_is_one_that_can_be_trained_here(monkeypatch):
    stage, configs = find_stage("prepare"), importlib.import_module("configs.prepare")

    def told(variant):
        return next_commands(stage, configs.get_config(variant), Path("runs/p"))

    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    assert "configs/gslrm.py:tiny " in told("fill")[1]
    assert len(told("base")) == 1  # a toy network would see 40 px of mouse
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert all(
        "configs/gslrm.py --config.loss.perceptual=0 " in told(v)[1] for v in ("fill", "base")
    )


def test_plan_reads_well():
    text = Plan("gslrm", reads=["a", "b"], writes=["c"], steps="3 updates").describe()
    assert text.splitlines()[0] == "plan of stage gslrm" and "3 updates" in text


def test_unknown_stage_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'gslrm'"):
        find_stage("gslmr")


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_what_to_type_next(name):
    stage, variants = find_stage(name), importlib.import_module(f"configs.{name}").VARIANTS
    assert stage.NEXT
    for variant in {"base", "tiny"} & set(variants):
        config = importlib.import_module(f"configs.{name}").get_config(variant)
        for line in next_commands(stage, config, Path("runs/x")):
            words = shlex.split(line)
            if "-m" in words:
                build_parser(words[3]).parse_args(words[4:])
                continue
            given = dict(w.removeprefix("--").split("=", 1) for w in words[2:])
            file, _, kind = given.pop("config").partition(":")
            known = runpy.run_path(file)["get_config"](kind or "base")
            assert given.pop("workdir") != "runs/x" and given
            for key in given:
                section = known
                for part in key.removeprefix("config.").split("."):
                    assert part in section, line
                    section = section[part]


def test_flag_errors_name_the_key_that_was_meant():
    def told(*argv):
        return str(command.flag_error(AttributeError("x"), ["launch.py", *argv]))

    base = "--config=configs/gslrm.py:tiny"
    assert "train.optim.lr" in told(base, "--config.train.lr=1")
    assert "configs/prepare.py" in told(base, "--config.recording=here")
    assert "did you mean 'data.size'" in told(base, "--config.data.siez=1")


@pytest.mark.parametrize(
    "given, key, takes",
    [
        ("train.steps=abc", "train.steps=300", "a whole number"),
        ("train.optim.lr=fast", "train.optim.lr=0.001", "a number"),
        ("model.min_log_scale=x", "model.min_log_scale=-4.5", "a number"),
        ("loss.masked=perhaps", "loss.masked=True", "True or False"),
        ("train=5", "train.accum_steps=...", "it is a section"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_words(given, key, takes, monkeypatch):
    argv = ["launch.py", "--config=configs/gslrm.py:tiny", f"--config.{given}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises((flags.Error, ValueError, TypeError)) as raised:
        values(argv)
    told = str(command.flag_error(raised.value, argv))
    assert takes in told and f"--config.{key}" in told and "literal" not in told


def test_lists_of_cameras_take_numbers():
    config = gslrm.get_config("tiny")
    config.data.heldout_cameras = ("front",)
    with pytest.raises(ConfigError, match="whole numbers"):
        command.check_choices(config)
    config.data.heldout_cameras = (3,)
    command.check_choices(config)


def test_a_platform_that_is_not_there_is_named(tmp_path, monkeypatch):
    def devices():
        raise AssertionError  # what jax 0.10 does where no plugin of that name is installed

    monkeypatch.setattr("jax.devices", devices)
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    with pytest.raises(BackendError, match="--platform=gpu") as told:
        command.environment(tmp_path, command.Options(platform="gpu", plan="quick"))
    assert "doctor" in str(told.value) and "no JAX build for gpu" in str(told.value)


def test_a_variant_with_a_misspelt_key_is_an_error():
    config = common.stage("x")
    with pytest.raises((AttributeError, KeyError)):
        common.variant(config, "bad", {"base": {}, "bad": {"seeed": 3}})


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ConfigError("wrong", fix="this"), 2, "Fix: this"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "lowmem"),
        (OSError(28, "No space left on device"), 2, "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "your share of the disk is full"),
        (StopRequested(75, "saved at step 3"), 75, "saved at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (None, 0, "next:   go on in "),
    ],
)
def test_exit_codes(tmp_path, monkeypatch, capsys, error, code, said):
    class Stage:
        NEXT = ("go on in {workdir}",)

        @staticmethod
        def run(config, workdir):
            if error is not None:
                raise error

    monkeypatch.setattr(command, "find_stage", lambda name: Stage)
    monkeypatch.setattr(command, "environment", lambda path, options: True)
    assert command.run(common.stage("x"), str(tmp_path / "w"), command.Options()) == code
    assert said in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    class Stage:
        @staticmethod
        def run(config, workdir):
            raise ZeroDivisionError

    monkeypatch.setattr(command, "find_stage", lambda name: Stage)
    monkeypatch.setattr(command, "environment", lambda path, options: True)
    with pytest.raises(ZeroDivisionError):
        command.run(common.stage("x"), str(tmp_path / "w"), command.Options())
