r"""A small web page: photo in, six views and a splat out, with the viewer in it.

Needs weights for both stages and the extra [demo] (gradio). For the demo that needs neither weights
nor a browser: `make demo`.

Examples:
  python -m mouselift_jax demo --mvdiff runs/mvdiff --gslrm runs/gslrm
  python -m mouselift_jax demo --mvdiff checkpoints/mvdiffusion --gslrm checkpoints/gslrm \
      --cameras data/rigs/canonical.json --prompt-embeds checkpoints/prompts

It listens on this machine only and prints the ssh -L line; --host opens it to the network.
"""

from __future__ import annotations

import argparse
import html
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VIEWER_HEIGHT = 520  # pixels
FIELDS = {"background": "background", "fill": "size of the animal"}  # of the page, by key
BACKGROUNDS = ("auto", "alpha", "plain", "rembg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--mvdiff", required=True, metavar="DIR", help="weights: photo -> views")
    parser.add_argument("--gslrm", required=True, metavar="DIR", help="weights: views -> splats")
    parser.add_argument("--cameras", metavar="FILE", help="of the views [beside the weights]")
    parser.add_argument("--prompt-embeds", metavar="DIR", help="[those of the mvdiff run]")
    parser.add_argument(
        "--background", default="auto", choices=BACKGROUNDS, help="how the animal is found in it"
    )
    parser.add_argument("--steps", type=int, default=50, help="of the sampler [%(default)s]")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    page = make_page(reconstructor(args), about_weights(args.mvdiff, args.gslrm), args.background)
    from mouselift_jax.errors import ConfigError
    from mouselift_jax.report.live import addresses

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family) as probe:  # gradio looks for it only once everything is set up
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            raise ConfigError(
                "nothing can listen there",
                where=f"--host={args.host} --port={args.port}",
                found=error.strerror,
                fix=f"--port={args.port + 1}, or stop what listens there",
            ) from error
    sys.stdout.write(addresses(args.port) + "\nCtrl-C ends it.\n")
    sys.stdout.flush()
    page.launch(server_name=args.host, server_port=args.port, quiet=True, share=False)
    return 0


def about_weights(mvdiff: str, gslrm: str) -> str:
    """What the page says of the weights: that they are toys, or worse than no network."""
    from mouselift_jax.report.verdict import outcome_of
    from mouselift_jax.runs.record import read_json, read_summary

    said = []
    for name, folder in (("the views", mvdiff), ("the splats", gslrm)):
        variant = str((read_json(Path(folder) / "config.json") or {}).get("variant") or "")
        if {"tiny", "quick"} & set(variant.split(",")):
            said.append(f"The weights that make {name} are toys ({variant}): they show that it "
                        "runs, and nothing of the animal.")  # fmt: skip
        elif outcome_of(read_summary(folder)) == "worse":
            said.append(f"The weights that make {name} did worse on hidden views than what needs "
                        "no network.")  # fmt: skip
    return " ".join(said)


def in_page_words(text: str) -> str:
    """A message of the stages with the page's fields in place of flags."""
    for key, field in FIELDS.items():
        text = re.sub(
            rf"(?:--)?config\.generate\.{key}=(\S+)", rf'"\1" in the field "{field}"', text
        )
        text = re.sub(rf"(?:--)?config\.generate\.{key}\b", f'the field "{field}"', text)
    text = re.sub(r"--config\.image=FILE", "another photo", text)
    return re.sub(
        r"(?:--)?config\.(?:\w+\.)*(\w+)(=\S+)?", r"what this page was started with (\1)", text
    )


Answer = tuple[np.ndarray, str, Path]  # picture of the views, viewer page, .ply


def reconstructor(args: argparse.Namespace) -> Callable[..., Answer]:
    """`f(photo, background, fill, warn)`; networks are loaded once."""
    import jax
    from ml_collections import ConfigDict

    from mouselift_jax.report.pictures import contact_sheet
    from mouselift_jax.report.viewer import export_html
    from mouselift_jax.splats.filters import RECIPES, apply_filters
    from mouselift_jax.splats.ply import save_ply
    from mouselift_jax.stages import infer
    from mouselift_jax.stages.items.from_photos import FromImages

    config = ConfigDict(
        {
            "mvdiff": args.mvdiff, "gslrm": args.gslrm, "cameras": args.cameras, "image": None,
            "prompt_embeds": args.prompt_embeds, "dtype": args.dtype, "limit": 0, "size": 0,
            "seed": 0, "render": None, "face_box": "", "refine": {"steps": 0},
            "gslrm_checkpoint": "best", "mvdiff_checkpoint": "best",
            "generate": {
                "steps": args.steps, "guidance": 3.0, "eta": 1.0, "background": args.background,
                "place": "animal", "fill": 0.0, "keep_reference": True, "white": 0.94,
            },
        }
    )  # fmt: skip
    kept: dict[str, Any] = {}

    def reconstruct(
        photo: Path, background: str, fill: float, warn: Callable[[str], None]
    ) -> Answer:
        config.image = str(photo)
        config.generate.background, config.generate.fill = background, float(fill)
        source = FromImages(config, kept.get("generator"), warn)
        item = source.load(source.ids[0])
        kept["generator"] = source.generator  # the networks stay for the next photo
        if "lifter" not in kept:
            kept["lifter"] = infer.make_lifter(config)
        gaussians = jax.device_get(kept["lifter"](item)[0])
        splats = apply_filters(gaussians, RECIPES["mouse"])
        folder = Path(tempfile.mkdtemp(prefix="mouselift_"))
        save_ply(folder / "splats.ply", splats, scene_scale=item.scene_scale)
        page = export_html(folder / "splats.html", [splats], title=photo.stem)
        sheet = contact_sheet(list(item.images), labels=item.labels, columns=6, size=192)
        return sheet.pixels, page.read_text(), folder / "splats.ply"

    return reconstruct


def make_page(
    reconstruct: Callable[..., Answer], weights: str = "", background: str = "auto"
) -> Any:
    """The gradio page round a function of a photo; `weights` is what it says of these."""
    from mouselift_jax.errors import MissingExtraError, MouseLiftError

    try:
        import gradio as gr
    except ImportError as error:
        raise MissingExtraError("gradio", "demo", "the web page") from error

    def go(
        photo: str | None, background: str = background, fill: float = 0.0
    ) -> tuple[np.ndarray, str, str]:
        if photo is None:
            raise gr.Error("Give a photo first.")

        def warn(text: str) -> None:
            gr.Warning(in_page_words(text))

        try:
            views, page, ply = reconstruct(Path(photo), background, fill, warn)
        except MouseLiftError as error:  # what the user can mend is told in the page
            raise gr.Error(in_page_words(str(error))) from error
        frame = (
            f'<iframe srcdoc="{html.escape(page)}" style="width:100%;height:{VIEWER_HEIGHT}px;'
            'border:0" title="viewer"></iframe>'
        )
        return views, frame, str(ply)

    with gr.Blocks(title="mouselift_jax") as page:
        gr.Markdown("# mouselift_jax\nOne photo to six views to 3D Gaussians.")
        if weights:
            gr.Markdown(f"**{weights}**")
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="filepath", label="photo", image_mode=None)
                ground = gr.Dropdown(
                    BACKGROUNDS, value=background, label=FIELDS["background"],
                    info="auto: alpha where the photo has it, else a plain background",
                )  # fmt: skip
                fill = gr.Slider(
                    0.0, 1.0, value=0.0, step=0.05, label=FIELDS["fill"],
                    info="share of the picture that it fills; 0 = as the weights were taught",
                )  # fmt: skip
            with gr.Column():
                views = gr.Image(label="the views it imagined", interactive=False)
                ply = gr.File(label="splats.ply")
        viewer = gr.HTML()
        button = gr.Button("Reconstruct", variant="primary")
        inputs = [photo, ground, fill]
        button.click(go, inputs, [views, viewer, ply], api_name="reconstruct")
    return page
