import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mouselift_jax.errors import ConfigError, TrainingError
from mouselift_jax.runs.progress import Progress
from mouselift_jax.runs.rows import MetricWriter, read_rows
from mouselift_jax.training import loop
from mouselift_jax.training.checkpoint import Checkpoints, checksum, state_items
from mouselift_jax.training.preempt import StopRequested
from mouselift_jax.training.run_params import load_run_params
from mouselift_jax.training.trainer import Trainer
from tests.training import toy_run


def finished(folder, steps=12):
    _, state, _ = toy_run.run(folder, steps)
    return int(checksum(state_items(state)))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_run_goes_on_exactly(tmp_path, number, code):
    whole = finished(tmp_path / "whole")

    def feed_and_stop(step):
        for batch in toy_run.batches(step):
            if step == 7:
                os.kill(os.getpid(), number)
            step += 1
            yield batch

    trainer = Trainer(toy_run.task(), toy_run.config(12))
    with pytest.raises(StopRequested) as stop:
        trainer.fit(tmp_path / "cut", feed_and_stop, style="none")
    assert stop.value.code == code and "step 8 of 12" in stop.value.said
    assert finished(tmp_path / "cut") == whole
    steps = [r["step"] for r in read_rows(tmp_path / "cut/metrics.jsonl")]
    assert steps == list(range(1, 13))


def test_a_step_moves_nothing_between_host_and_device():
    trainer, feed = Trainer(toy_run.task(), toy_run.config(3)), toy_run.batches(0)
    state, _ = trainer.step(trainer.create(), trainer.put(next(feed)))  # compiles
    batch = trainer.put(next(feed))
    with jax.transfer_guard("disallow"):
        state, metrics = trainer.step(state, batch)
    assert int(state.step) == 2 and np.isfinite(metrics["train/loss"])


def test_an_evaluation_is_left_when_asked_to_stop(tmp_path):
    """What was trained is saved at once, and the same command evaluates again."""
    asked = []

    def evaluate(state, step):
        if not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the evaluation went on")
        return {"heldout/psnr": 20.0}

    hooks = loop.Hooks(evaluate=evaluate)
    config = toy_run.config(6, eval_every=4, save_every=0)
    with pytest.raises(StopRequested, match="step 4 of 6") as stop:
        Trainer(toy_run.task(), config).fit(tmp_path, toy_run.batches, hooks=hooks, style="none")
    assert stop.value.code == 75
    _, metrics = Trainer(toy_run.task(), config).fit(
        tmp_path, toy_run.batches, hooks=hooks, style="none"
    )
    assert metrics["heldout/psnr"] == 20.0
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "6"]


def test_a_longer_run_keeps_the_compiled_step():
    """Also with another learning rate: neither is part of the program."""
    changes = {"optim.lr": 3e-3, "optim.warmup_steps": 2, "optim.end_lr_fraction": 0.5}
    short = Trainer(toy_run.task(), toy_run.config(12)).lower().as_text()
    assert Trainer(toy_run.task(), toy_run.config(24, **changes)).lower().as_text() == short
    # the text does say what the program is
    assert Trainer(toy_run.task(), toy_run.config(12, accum_steps=4)).lower().as_text() != short


def test_handlers_are_given_back():
    from mouselift_jax.training.preempt import Preemption

    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as p:
        os.kill(os.getpid(), signal.SIGINT)
        assert p.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)  # the second one is meant
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_not_finite_stops_saves_and_says_how_to_replay(tmp_path):
    """The step that fails is repeated by the same command, from the state just before it."""
    base = toy_run.task().loss

    def poisoned(params, batch, *, rng, step):
        value, metrics = base(params, batch, rng=rng, step=step)
        return jnp.where(step == 7, jnp.nan, value), metrics

    for _ in range(2):
        with pytest.raises(TrainingError, match="not finite at step 7") as told:
            toy_run.run(tmp_path, 12, loss=poisoned)
        assert "--debug" in str(told.value)
        assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())[-1] == 7


def test_waiting_on_data_is_said_with_the_remedy(tmp_path):
    said = []
    trainer = Trainer(toy_run.task(), toy_run.config(9, log_every=2))

    def slow(step):
        return toy_run.batches(step, wait_s=0.05)

    trainer.fit(tmp_path, slow, hooks=loop.Hooks(warn=said.append), style="none")
    assert len(said) == 1 and "config.data.workers" in said[0]


def test_evaluations_and_pictures_happen_when_due(tmp_path):
    seen, drawn = [], []

    def evaluate(state, step):
        seen.append(step)
        return {"heldout/psnr": 20.0 + step}

    def pictures(state, step):
        drawn.append(step)
        return {"train/views": np.zeros((8, 8, 3))}

    config = toy_run.config(
        9, eval_every=4, picture_every=5, save_every=4, keep=1, keep_best="heldout/psnr"
    )
    hooks = loop.Hooks(evaluate=evaluate, pictures=pictures)
    _, metrics = Trainer(toy_run.task(), config).fit(
        tmp_path, toy_run.batches, hooks=hooks, style="none"
    )
    assert seen == [4, 8, 9] and drawn == [1, 5, 9]
    assert metrics["heldout/psnr"] == 29.0
    assert sum(p.name.startswith("events.out") for p in tmp_path.iterdir()) == 1


def test_a_finished_run_does_nothing(tmp_path):
    whole = finished(tmp_path)
    assert finished(tmp_path) == whole
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 12


def test_profile(tmp_path):
    trainer = Trainer(toy_run.task(), toy_run.config(4))
    trainer.fit(tmp_path, toy_run.batches, style="none", profile="1:3")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ConfigError, match="not a range of steps"):
        loop.profile_range("5:3", tmp_path)


def test_frozen_weights_stay_and_cost_no_optimiser(tmp_path):
    trainer, state, _ = toy_run.run(tmp_path, 6, **{"optim.freeze": ("^up/",)})
    fresh = trainer.create()
    np.testing.assert_array_equal(state.frozen["up"]["kernel"], fresh.frozen["up"]["kernel"])
    assert set(state.params) == {"down"}
    sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) < 3 * sum(x.size for x in jax.tree.leaves(state.params))
    with pytest.raises(ConfigError, match="no weight has such a path"):
        toy_run.run(tmp_path / "b", 6, **{"optim.freeze": ("upp",)})


def test_weights_to_start_from(tmp_path):
    trainer = Trainer(toy_run.task(), toy_run.config(3))
    given = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), trainer.shapes)
    state = trainer.create(given)
    np.testing.assert_array_equal(state.params["up"]["kernel"], given["up"]["kernel"])
    wrong = given | {"up": {"kernel": np.zeros((3, 3), np.float32), "bias": given["up"]["bias"]}}
    with pytest.raises(Exception, match=r"up/kernel: \(3, 3\), expected"):
        trainer.create(wrong)


def test_progress_leaves_compile_and_pauses_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mouselift_jax.runs.progress.time.monotonic", lambda: clock[0])
    p = Progress(101, style="none")
    with p:
        clock[0] += 60.0  # compilation
        p.update()
        assert p.eta_s is None
        for _ in range(10):
            clock[0] += 2.0
            p.update()
            with p.pause():
                clock[0] += 30.0  # evaluation
        assert p.rate == pytest.approx(0.5) and p.eta_s == pytest.approx(180.0)


def test_progress_styles(capsys):
    with Progress(2, style="json", title="t") as p:
        p.update(loss=1.0)
        p.update(loss=0.5)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-1]["done"] == 2 and rows[-1]["loss"] == 0.5
    with Progress(2, style="plain", every_s=0) as p:
        p.update(loss=0.5)
        p.update()  # between two rows of figures: the last ones stay in sight
    assert "2/2  loss 0.5" in capsys.readouterr().err
    with Progress(2, style="rich", title="train") as p:
        p.update(2, loss=1.0)
    assert "2/2" in capsys.readouterr().err


def test_metrics_of_a_resumed_run_are_told_once(tmp_path):
    with MetricWriter(tmp_path) as w:
        for step in range(1, 8):
            w.scalars(step, {"train/loss": 1.0 / step, "val/psnr": float("nan")})
        w.scalars(8, {"train/loss": float("nan")})
        w.text(1, "config", "x")
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 9, "train/l')  # a line cut by a kill
    with MetricWriter(tmp_path, resume_step=5) as w:
        assert w.last == {"train/loss": 0.2}
        w.scalars(6, {"train/loss": 0.1})
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_low_rank_training_changes_only_its_additions(tmp_path):
    from configs import common
    from mouselift_jax.training.run_params import load_run_params
    from mouselift_jax.training.state import eval_params

    low_rank = common.lora()
    low_rank.rank, low_rank.targets = 2, ("up/kernel",)
    trainer = Trainer(toy_run.task(), toy_run.config(6), low_rank=low_rank)
    state, _ = trainer.fit(tmp_path, toy_run.batches, style="none")
    fresh = trainer.create()
    assert set(state.params["up"]) == {"lora_a", "lora_b"} and "down" not in state.params
    np.testing.assert_array_equal(state.frozen["up"]["kernel"], fresh.frozen["up"]["kernel"])
    folded = eval_params(state)
    assert set(folded["up"]) == {"kernel", "bias"}
    assert float(jnp.abs(folded["up"]["kernel"] - fresh.frozen["up"]["kernel"]).max()) > 0
    stored = load_run_params(tmp_path / "checkpoints").params
    assert "lora_a" in stored["up"]
    plain = jax.device_get(eval_params(fresh))
    again = trainer.create(plain)  # start from weights without additions
    np.testing.assert_array_equal(again.frozen["down"]["kernel"], plain["down"]["kernel"])


def test_the_best_is_saved_where_no_save_was_due(tmp_path):
    figures = {3: 21.0, 6: 25.0, 9: 22.0, 12: 23.0}
    hooks = loop.Hooks(evaluate=lambda state, step: {"heldout/psnr": figures[step]})
    config = toy_run.config(12, eval_every=3, save_every=5, keep=1, keep_best="heldout/psnr")
    Trainer(toy_run.task(), config).fit(tmp_path, toy_run.batches, hooks=hooks, style="none")
    found = load_run_params(tmp_path / "checkpoints")
    assert found.step == 6
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [6, 12]


def test_a_best_that_the_evaluation_does_not_know_is_told_once(tmp_path):
    said = []
    hooks = loop.Hooks(
        evaluate=lambda state, step: {"heldout/psnr": 1.0},
        warn=lambda text: said.append(text),
    )
    config = toy_run.config(2, eval_every=0, keep_best="heldout/pnsr")
    Trainer(toy_run.task(), config).fit(tmp_path, toy_run.batches, hooks=hooks, style="none")
    assert len(said) == 1 and "heldout/pnsr" in said[0] and "only heldout/psnr" in said[0]


def test_the_clock_saves_judges_and_logs_besides_the_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    saved, judged = [], []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a: (saved.append(step), save(self, step, *a))
    )

    def slow(step):
        for batch in toy_run.batches(step):
            now[0] += 60.0  # a step takes a minute
            yield batch

    config = toy_run.config(
        12, save_every=0, log_every=0, save_minutes=5, eval_minutes=4, log_minutes=3
    )
    hooks = loop.Hooks(evaluate=lambda state, step: judged.append(step) or {"a": 1.0})
    Trainer(toy_run.task(), config).fit(tmp_path, slow, hooks=hooks, style="none")
    assert saved == [5, 10, 12] and judged == [4, 8, 12]
    rows = [r["step"] for r in read_rows(tmp_path / "metrics.jsonl") if "train/loss" in r]
    assert rows == [3, 6, 9, 12]


def test_without_minutes_the_clock_does_nothing(tmp_path, monkeypatch):
    clock = loop._Clock(loop.Schedule(10))
    monkeypatch.setattr(loop.time, "monotonic", lambda: 1e9)
    assert clock.due() == 0


def test_a_failed_update_is_not_saved_under_the_next_number(tmp_path):
    """Update 3 fails where a save is due: its folder must not be taken by the state of step 2."""

    def feed(step):
        for batch in toy_run.batches(step):
            if step == 2:
                batch["x"][:] = np.nan
            step += 1
            yield batch

    config = toy_run.config(6, save_every=3)
    with pytest.raises(TrainingError, match="not finite at step 2"):
        Trainer(toy_run.task(), config).fit(tmp_path, feed, style="none")
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2]


def test_an_evaluation_brings_its_own_pictures(tmp_path):
    judged, drawn = [], []
    hooks = loop.Hooks(
        evaluate=lambda state, step: judged.append(step) or {"a": 1.0},
        evaluated=dict,
        pictures=lambda state, step: drawn.append(step) or {},
    )
    config = toy_run.config(4, picture_every=2, eval_every=4)
    Trainer(toy_run.task(), config).fit(tmp_path, toy_run.batches, hooks=hooks, style="none")
    assert judged == [4] and drawn == [1, 2]
