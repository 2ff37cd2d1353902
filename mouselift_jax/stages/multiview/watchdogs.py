"""Signs that the multi-view network learns the wrong thing, each with its cause and remedy.

Plain functions on arrays, run at validation, not in the training step. Pictures are
[N,V,H,W,3] in [0,1], slot 0 is the reference view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

PROMPT_WIDTH = 1024  # of the SD2 text tower; 768 is CLIP ViT-L's, which the network cannot read
# Views count as collapsed when they differ from one another by less than this share of what the
# true views differ by; a network that has begun to turn the subject is well above one half.
COLLAPSE_SHARE = 0.35
BLANK_STD = 0.02  # of all pixels of a picture: below, it shows no subject
CONVERGED_PSNR, CONVERGED_SSIM = 25.0, 0.9  # dB and SSIM that a trained network is to reach
STILL_IMPROVING_DB = 0.3  # over the second half of the history: below, training has stalled
STILL_PARTING = 0.1  # likewise of watch/view_spread, which is 1 when views differ as they should
VIEW_GAP_DB = 5.0  # a view this far below the median view has not been learned


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One sign of trouble.

    Attributes:
        code: stable name.
        what: what was seen, with the number.
        cause: why that happens.
        remedy: what to do.
    """

    code: str
    what: str
    cause: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a training run stands.

    Attributes:
        kind: converged | slow | failed | some_views | too_early.
        reason: the numbers behind it.
        remedy: the next thing to try.
        next: the command for it, with {command} of the run, its folder {run}, its {samples}, {lr}
            (half of the run's) and {steps} (twice the run's).
    """

    kind: str
    reason: str
    remedy: str
    next: str


MORE = "{command} --config.train.steps={steps}"
FACELIFT = "{command} --config.prompt_embeds=PROMPTS_FACELIFT --workdir={run}_facelift"
NEXT = {  # for each alarm of `check_views`
    "blank": "{command} --config.train.optim.lr={lr} --workdir={run}_lr",
    "collapsed": "{command} --config.reference=fixed --workdir={run}_fixed",
}


def check_prompts(embeds: np.ndarray, n_views: int, width: int = PROMPT_WIDTH) -> list[Alarm]:
    """Alarms about prompt embeddings [V,T,C]: wrong width or count, zeros, all alike."""
    source = "make them with configs/prompts.py, or take the file that comes with the weights"
    if embeds.ndim != 3 or embeds.shape[0] != n_views or embeds.shape[-1] != width:
        cause = "the file was made for another network or another number of views"
        if embeds.ndim == 3 and embeds.shape[-1] == 768:
            cause = "the file was made with CLIP ViT-L (768 wide); the network reads SD2's 1024"
        found = f"prompt embeddings are {list(embeds.shape)}, not [{n_views}, tokens, {width}]"
        return [Alarm("prompts_shape", found, cause, source)]
    alarms = []
    if not np.isfinite(embeds).all():
        alarms.append(
            Alarm(
                "prompts_not_finite", "prompt embeddings hold NaN or infinity", "bad file", source
            )
        )
    zero = [i for i, e in enumerate(embeds) if not np.any(e)]
    if zero:
        alarms.append(
            Alarm(
                "prompts_zero",
                f"the prompt embeddings of slots {zero} are all zero",
                "a missing file was replaced by zeros when the set was made",
                source,
            )
        )
    elif n_views > 1:
        spread = np.abs(embeds - embeds.mean(0, keepdims=True)).max()
        if spread < 1e-4 * max(np.abs(embeds).max(), 1e-12):
            alarms.append(
                Alarm(
                    "prompts_alike",
                    "all slots have the same prompt embedding",
                    "the network cannot know which view it is to draw",
                    source,
                )
            )
    return alarms


def check_order(
    azimuths_deg: Sequence[float], prompt_turns_deg: Sequence[float] | None = None
) -> list[Alarm]:
    """Alarms when slots do not go round the subject as prompts and weights expect.

    Args:
        azimuths_deg: azimuth of each slot's camera, counter-clockwise seen from above.
        prompt_turns_deg: turn from the front, clockwise, that each slot's prompt names; None skips.
    """
    azimuths = np.asarray(azimuths_deg, np.float64)
    turns = (azimuths[0] - azimuths) % 360.0
    alarms = []
    if (np.diff(turns) <= 0).any():
        alarms.append(
            Alarm(
                "views_order",
                f"slots turn by {np.round(turns).astype(int).tolist()} degrees from slot 0, "
                "not steadily clockwise",
                "views were ordered by camera number, not by azimuth",
                "prepare the samples again; prompts, targets and cameras must share one order",
            )
        )
    if prompt_turns_deg is not None:
        off = np.abs((turns - np.asarray(prompt_turns_deg) + 180.0) % 360.0 - 180.0)
        if off.max() > 60.0:
            worst = int(off.argmax())
            alarms.append(
                Alarm(
                    "prompts_register",
                    f"slot {worst} stands at {turns[worst]:.0f} degrees from slot 0, its prompt "
                    f"says {prompt_turns_deg[worst]:.0f}",
                    "prompts and cameras are in different orders",
                    "take prompts worded for this set: configs/prompts.py with config.samples",
                )
            )
    return alarms


def view_spread(views: np.ndarray) -> float:
    """How much the views of one subject differ: RMS over all pairs of views, mean over N."""
    n, v = views.shape[:2]
    flat = views.reshape(n, v, -1).astype(np.float64)
    # Mean squared difference over ordered pairs = 2 v / (v - 1) times the variance over views.
    variance = flat.var(axis=1).mean(-1) * 2 * v / (v - 1)
    return float(np.sqrt(variance).mean())


def check_views(generated: np.ndarray, truth: np.ndarray) -> tuple[list[Alarm], dict[str, float]]:
    """Alarms about generated views against the true ones [N,V,H,W,3], and the figures behind.

    Returns:
        alarms, and metrics watch/view_spread (generated over true; 1 is right),
        watch/blank_share, watch/copy_share.
    """
    generated = np.asarray(generated, np.float32)
    truth = np.asarray(truth, np.float32)
    share = view_spread(generated) / max(view_spread(truth), 1e-9)
    blank = generated.std(axis=(2, 3, 4)) < BLANK_STD
    true_blank = truth.std(axis=(2, 3, 4)) < BLANK_STD
    # A view is a copy when it is nearer to the reference picture than to its own target.
    to_reference = ((generated - truth[:, :1]) ** 2).mean((2, 3, 4))
    to_target = ((generated - truth) ** 2).mean((2, 3, 4))
    between = ((truth - truth[:, :1]) ** 2).mean((2, 3, 4))
    copies = ((to_reference < to_target) & (between > 1e-6))[:, 1:]
    metrics = {
        "watch/view_spread": share,
        "watch/blank_share": float((blank & ~true_blank).mean()),
        "watch/copy_share": float(copies.mean()) if copies.size else 0.0,
    }
    alarms = []
    if metrics["watch/blank_share"] > 0.5:
        mean = float(generated[blank].mean())
        alarms.append(
            Alarm(
                "blank",
                f"{metrics['watch/blank_share']:.0%} of the generated views show one flat colour "
                f"(mean {mean:.2f})",
                "the background fills most of each picture and was learned first; or the learning "
                "rate is too high, or latents are not scaled",
                "go on if this is within the first tenth of the training; else halve "
                "--config.train.optim.lr, or prepare with a larger subject",
            )
        )
    elif share < COLLAPSE_SHARE:
        alarms.append(
            Alarm(
                "collapsed",
                f"the generated views differ by {share:.0%} of what the true views differ by; "
                f"{metrics['watch/copy_share']:.0%} are nearer to the reference than to their "
                "target",
                "the network copies the reference into every slot: random reference views, "
                "prompts that are nearly alike, or too little training",
                "use --config.reference=fixed and the style facelift of configs/prompts.py",
            )
        )
    return alarms, metrics


def verdict(
    history: Sequence[dict[str, float]], per_view_psnr: Sequence[float], alarms: Sequence[Alarm]
) -> Verdict:
    """How the run stands, from its validations so far.

    Args:
        history: one dict a validation, oldest first, with "step", "val/psnr" and "val/ssim", and
            "watch/view_spread" where it is known.
        per_view_psnr: dB of each slot at the newest validation.
        alarms: of the newest validation.
    """
    psnr = [h["val/psnr"] for h in history]
    last, ssim = psnr[-1], history[-1]["val/ssim"]
    views = np.asarray(per_view_psnr, np.float64)
    behind = [i for i, p in enumerate(views) if p < np.median(views) - VIEW_GAP_DB]
    numbers = f"PSNR {last:.1f} dB, SSIM {ssim:.3f} at step {history[-1]['step']:.0f}"
    if last >= CONVERGED_PSNR and ssim >= CONVERGED_SSIM and not alarms and not behind:
        return Verdict(
            "converged",
            numbers,
            "go on with synthesis",
            "python launch.py --config=configs/synth.py --config.mvdiff={run} "
            "--config.samples={samples} --workdir={run}_synth",
        )
    if len(psnr) < 3:
        seen = f"{numbers}; {len(psnr)} of the 3 validations that a verdict needs"
        return Verdict("too_early", seen, "let it run on", MORE)
    if behind:
        return Verdict(
            "some_views",
            f"{numbers}; slots {behind} are {VIEW_GAP_DB:.0f} dB or more below the others",
            "train first with the prompts of the style facelift, then continue from that run with "
            "your own: --config.init_from=RUN",
            FACELIFT,
        )
    gain = last - max(psnr[: (len(psnr) + 1) // 2])
    if gain > STILL_IMPROVING_DB:
        return Verdict("slow", f"{numbers}, still rising by {gain:.1f} dB", "let it run on", MORE)
    spread = [min(h.get("watch/view_spread", 1.0), 1.0) for h in history]
    before = max(spread[: (len(spread) + 1) // 2])
    if spread[-1] - before > STILL_PARTING:
        # One blob in every slot scores well where most of a picture is background.
        found = f"{numbers}, not rising, but the views still come apart: they differ by"
        found += f" {spread[-1]:.0%} of what the true views differ by, before {before:.0%}"
        return Verdict("slow", found, "let it run on", MORE)
    if alarms:
        found = f"{numbers}; {alarms[0].what}"
        return Verdict("failed", found, alarms[0].remedy, NEXT[alarms[0].code])
    return Verdict(
        "slow",
        f"{numbers}, and it has stopped rising",
        "use the prompts of the style facelift; check `watch/` in metrics.jsonl and the samples "
        "with `python -m mouselift_jax check`",
        "python -m mouselift_jax check {samples}",
    )
