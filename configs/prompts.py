"""Prompt embeddings of the six views, encoded by the pipeline's own text tower.

    python launch.py --config=configs/prompts.py --list-styles
    python launch.py --config=configs/prompts.py:mouse_elevated \
        --config.init_from=DIR_OF_CONVERTED_PIPELINE --workdir=runs/prompts

Seconds on any machine; the text tower takes 1.4 GB. The result (runs/prompts) goes to
--config.prompt_embeds of mvdiff, synth and infer. Use the same file in all three. The released
network was trained with the style facelift, which converges fastest; most labs need only the
prompt file that comes with it.
"""

from configs import common

VARIANTS = {
    "base": {},
    "mouse_elevated": {"style": "mouse_elevated"},
    "realistic": {"style": "realistic"},
    "hybrid": {"style": "hybrid"},
    "simple": {"style": "simple"},
    "with_angles": {"style": "with_angles"},
}


def get_config(name=None):
    """The config of one variant."""
    config = common.stage("prompts")
    with config.unlocked():
        config.style = "facelift"  # a style of data/prompts/styles.json (--list-styles)
        config.styles = common.path()  # another file of styles; empty = the one of the project
        config.init_from = common.path()  # converted pipeline with text_encoder and tokenizer
        config.samples = common.path()  # sample set whose cameras give the angles (with_angles)
    return common.variant(config, name, VARIANTS)
