"""One line of explanation for each technical word that a page uses."""

from __future__ import annotations

import re

GLOSSARY = {
    r"PSNR": "PSNR: how alike two pictures are, in decibels, from the mean squared error; 6 dB "
    "more is half the error.",
    r"interior[ _]PSNR|inside (it|the animal)": "interior PSNR: PSNR of the pixels alone that are "
    "animal in both pictures and 2 px from either outline, so that neither the white background "
    "nor the outline counts.",
    r"mean colou?r": "mean colour: the PSNR of painting the animal in its true mean colour; what "
    "is not above it shows no texture.",
    r"IoU": "silhouette IoU: the animal's area in both pictures over the area in either; 1 is a "
    "perfect outline.",
    r"SSIM": "SSIM: likeness of local structure, 1 is the same picture.",
    r"specks": "specks: share of the interior's pixels that are off by more than a quarter of the "
    "scale in some colour, as when the far side shines through.",
    r"(visual )?hull(?! cover)": "visual hull: the largest body that fits all silhouettes, painted "
    "from the pictures; it needs no learning, so whatever is not better is of no use.",
    r"hull cover": "hull cover: share of a camera's mask that the body carved by the other cameras "
    "fills; 1 when calibration and masks agree.",
    r"size_px|size px": "size_px: the longer side of the animal's box, in pixels of the samples.",
    r"wobbles?": "wobble: spread of the enclosed volume over the frames; an animal keeps its "
    "volume, so it is error.",
    r"held[- ]?out|hidden (view|camera)": "hidden (held out): a view or camera that the method was "
    "not given, so that it can judge.",
    r"95 %": "[low, high]: where the mean lies with 95 % confidence, by "
    "drawing the frames anew (bootstrap).",
    r"reprojection|epipolar": "reprojection error: pixels between where a point is seen and where "
    "the cameras, being right, would see it.",
}


def explained(text: str) -> list[str]:
    """The lines for those words that occur in a text, whatever their case."""
    text = text.replace("_", " ")
    return [line for word, line in GLOSSARY.items() if re.search(rf"\b(?:{word})", text, re.I)]
