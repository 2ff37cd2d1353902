"""Validation of the multi-view network: it samples views, compares them, and says what is wrong."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mouselift_jax.data.batches.loader import Views, make_loader
from mouselift_jax.data.inputs import must_exist
from mouselift_jax.data.samples.sample_set import SampleSet
from mouselift_jax.pipelines.views import Models, Networks, sample_views
from mouselift_jax.report.pictures import contact_sheet
from mouselift_jax.runs.record import command_line, each_key_once, in_own_keys
from mouselift_jax.runs.rows import read_rows
from mouselift_jax.stages.multiview.batches import turned
from mouselift_jax.stages.multiview.frozen import Towers
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from mouselift_jax.stages.multiview.watchdogs import Alarm, Verdict, check_views, verdict
from mouselift_jax.training import metrics as metric
from mouselift_jax.training.state import eval_params
from mouselift_jax.weights.pretrained import load_pretrained

log = logging.getLogger("mouselift_jax")
SHOWN = 3  # samples in the report


class Judge:
    """Samples views of validation samples with the moving average of the weights.

    Attributes:
        pictures: of the newest validation: truth, and one row for each guidance.
        captions: of the pictures.
        alarms: of the newest validation.
        verdict: of the newest validation.
        per_view: PSNR of each slot, dB.
    """

    def __init__(
        self,
        config: MultiviewSettings,
        samples: Path,
        networks: Networks,
        towers: Towers,
        folder: Path,
    ) -> None:
        self.config, self.networks = config, networks
        self.frozen, self.prompts = towers.params, towers.prompts
        self.samples, self.folder = samples, folder
        self.distances = {"psnr": metric.psnr, "ssim": metric.ssim} | read_lpips(config)
        sample_set = SampleSet.open(samples)
        ids = sample_set.ids("val")[: config.eval.samples]
        self.count, self.captions = len(ids), [sample_set.caption(i) for i in ids[:SHOWN]]
        self.pictures: list[np.ndarray] = []
        self.alarms: list[Alarm] = []
        self.verdict: Verdict | None = None
        self.per_view: list[float] = []

    def batches(self) -> list[dict[str, np.ndarray]]:
        """The validation samples, always the same, with the references of step 0."""
        config = self.config
        loader = make_loader(
            self.samples,
            "val",
            seed=config.seed,
            views=Views("first", config.model.n_views),
            size=config.data.size,
            shuffle=False,
            repeat=False,
            limit=self.count,
        )
        return [turned(config, batch, i) for i, batch in enumerate(loader)]

    def __call__(self, state: Any, step: int) -> dict[str, float]:
        """Figures val/psnr, val/ssim and, with its weights, val/lpips.

        Each at the last guidance, and with a suffix (val/psnr_g1) at each.
        """
        config = self.config
        params = {**self.frozen, "unet": eval_params(state)}
        models = Models(self.networks, params)
        batches = self.batches()
        truth = np.concatenate([b["images"] for b in batches])
        figures = {f"val/{key}": 0.0 for key in self.distances}  # reports show these first
        rows = {"truth": truth}
        for guidance in config.eval.guidances:
            found = np.stack(
                [self._sample(models, b, i, float(guidance)) for i, b in enumerate(batches)]
            )
            rows[f"guidance {guidance:g}"] = found
            scores = {k: np.asarray(f(found, truth)) for k, f in self.distances.items()}
            for key, value in scores.items():
                figures[f"val/{key}_g{guidance:g}"] = float(value.mean())
                figures[f"val/{key}"] = float(value.mean())
            self.per_view = [float(p) for p in scores["psnr"].mean(0)]
        self.alarms, watch = check_views(found, truth)
        history = [r for r in read_rows(self.folder / "metrics.jsonl") if "val/psnr" in r]
        history = [r for r in history if r["step"] < step]
        self.verdict = verdict(
            [*history, {**figures, **watch, "step": step}], self.per_view, self.alarms
        )
        for alarm in self.alarms:
            log.warning("%s. Cause: %s. Try: %s", alarm.what, alarm.cause, alarm.remedy)
        log.info("verdict: %s (%s). %s", *_words(self.verdict))
        log.info("next: %s", self.next_command())
        self.pictures = [
            contact_sheet(
                [row[i][v] for row in rows.values() for v in range(truth.shape[1])],
                labels=[f"{name}, slot {v}" for name in rows for v in range(truth.shape[1])],
                size=128,
                columns=truth.shape[1],
            )
            for i in range(len(self.captions))
        ]
        return figures | watch

    def named_pictures(self) -> dict[str, np.ndarray]:
        """The pictures of the newest validation by name."""
        return {f"val/{i}": image for i, image in enumerate(self.pictures)}

    def next_command(self) -> str:
        """The command that the newest verdict suggests."""
        text = self.verdict.next.format(
            command=command_line(),
            run=shlex.quote(str(self.folder)),
            samples=shlex.quote(str(self.samples)),
            lr=self.config.train.optim.lr / 2,
            steps=2 * self.config.train.steps,
        )
        return each_key_once(in_own_keys(text, self.folder))

    def _sample(
        self, models: Models, batch: dict[str, np.ndarray], index: int, guidance: float
    ) -> np.ndarray:
        poses = batch["poses"][0] if "poses" in batch else None
        return sample_views(
            models,
            batch["images"][0, 0],
            self.prompts[batch["order"][0]],
            steps=self.config.eval.steps,
            guidance=guidance,
            eta=self.config.eval.eta,
            rng=jax.random.fold_in(jax.random.key(self.config.seed), index),
            poses=poses,
        )


def read_lpips(config: MultiviewSettings) -> dict[str, Any]:
    """LPIPS of stacks of pictures [N,V,H,W,3] -> [N,V], where its weights are given."""
    source = config.perceptual_from
    if not source:
        return {}
    module, params = load_pretrained(must_exist(source, "perceptual_from"), "lpips")
    one = jax.jit(lambda a, b: module.apply({"params": params}, a, b))
    return {"lpips": lambda a, b: np.stack([one(x, y) for x, y in zip(a, b, strict=True)])}


def _words(found: Verdict) -> tuple[str, str, str]:
    return found.kind.replace("_", " "), found.reason, found.remedy
