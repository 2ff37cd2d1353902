"""What each finding is called, how bad it is, what to do about it, and what follows from it."""

from __future__ import annotations

from typing import Any

from mouselift_jax.data.findings import Finding

# What an impossible calibration makes of everything that is held against it.
_DISAGREEMENT = ("keypoints_inconsistent", "masks_inconsistent", "hull_cover", "content_jump")

# What a camera that runs out of time makes of the rest.
_TIMELY = (
    "frame_count", "frame_rate", "keypoints_inconsistent", "mask_flicker", "hull_cover",
    "frames_doubled",
)  # fmt: skip

# What masks that are not of the animal make of pictures and calibrations held against them.
_OF_PICTURES = (
    "video_offset", "video_cropped", "video_mirrored", "cameras_swapped", "masks_swapped",
    "intrinsics_wrong", "translation_units", "rotation_transposed", "extrinsics_convention",
)  # fmt: skip

# And faults of time, sizes and origins that are tried on such masks.
_OF_OUTLINES = (
    *_DISAGREEMENT, *_OF_PICTURES, "mask_empty", "mask_flicker", "mask_not_animal", "frames_lost",
    "frames_doubled", "clock_drift", "pieces_exchanged", "picture_resized", "video_turned",
    "principal_points",
)  # fmt: skip

# Findings that vanish when their cause is mended.
CAUSED_BY = {
    "video_offset": (
        "frame_count",
        "frame_rate",
        "keypoints_inconsistent",
        "mask_flicker",
        "mask_empty",
        "frames_doubled",
    ),
    "frames_lost": _TIMELY,
    "frames_doubled": _TIMELY,
    "clock_drift": _TIMELY,
    "pieces_exchanged": (*_TIMELY, "content_jump"),
    "frame_rate": ("frame_count", "video_offset", *_TIMELY),
    "picture_resized": ("picture_size", "intrinsics", "looks_away", *_DISAGREEMENT),
    "video_turned": ("picture_size", "intrinsics", *_DISAGREEMENT),
    "principal_points": ("keypoints_inconsistent",),
    "video_cropped": ("picture_size", "intrinsics", "keypoints_inconsistent"),
    "video_mirrored": ("keypoints_inconsistent",),
    "cameras_swapped": ("keypoints_inconsistent", "picture_size", "intrinsics", "looks_away"),
    "masks_swapped": ("keypoints_inconsistent", "picture_size"),
    "translation_units": ("translation_units", "looks_away", "keypoints_inconsistent"),
    "rotation_transposed": ("looks_away", "translation_units", "keypoints_inconsistent"),
    "extrinsics_convention": ("looks_away", "translation_units", "keypoints_inconsistent"),
    "intrinsics_wrong": ("intrinsics", "picture_size", "keypoints_inconsistent"),
    "masks_inconsistent": ("keypoints_inconsistent", "hull_cover", "content_jump"),
    "calibration_off": _DISAGREEMENT,
    "handedness": (*_DISAGREEMENT, "world_not_z_up"),
    "rotation_invalid": (*_DISAGREEMENT, "world_not_z_up"),
    "intrinsics": _DISAGREEMENT,
    "mask_levels": (*_OF_OUTLINES, "mask_inverted"),
    "mask_inverted": _OF_OUTLINES,
    "mask_not_animal": _OF_OUTLINES,
    "several_animals": _OF_OUTLINES,
}

IMPOSSIBLE = ("handedness", "rotation_invalid", "intrinsics", "mask_levels")
NO_SILHOUETTES = ("mask_inverted", "mask_not_animal", "several_animals")
# One camera's fault of these kinds is met by all others: they may be blamed in its place.
BLAMES_OTHERS = ("calibration_off", "mask_levels", *NO_SILHOUETTES)
SYMPTOMS = ("keypoints_inconsistent", "hull_cover", "masks_inconsistent")


def describe(code: str, cameras: tuple[int, ...], evidence: dict[str, Any]) -> Finding:
    """The finding for a fault, in words."""
    severity, message, fix = _WORDS[code](cameras, evidence)
    return Finding(code, severity, message, tuple(cameras), fix, evidence)


def _names(cameras: tuple[int, ...]) -> str:
    if len(cameras) == 1:
        return f"camera {cameras[0]}"
    return "cameras " + ", ".join(map(str, cameras[:-1])) + f" and {cameras[-1]}"


def _gain(e: dict[str, Any]) -> str:
    """How much the correction would help."""
    for before, after, what in (
        ("tangent_px_before", "tangent_px_after", "silhouettes miss each other by {:.2f} px, "),
        ("keypoint_px_before", "keypoint_px_after", "keypoints miss by {:.2f} px, "),
        (
            "edge_strength_before",
            "edge_strength_after",
            "edges under the mask outline {:.2f}, ",
        ),
    ):
        if e.get(before) is not None and e.get(after) is not None:
            return " (" + what.format(e[before]) + f"{e[after]:.2f} once corrected)"
    return ""


def _swapped(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    what = "the colour videos" if e.get("altered") == "pictures" else "the videos (or calibrations)"
    fix = "exchange the two video files, or their entries in the calibration"
    if "rolled" in e or "reversed" in e:
        partner = cameras[round(e["rolled"])] if "rolled" in e else cameras[-1]
        how = "each from another one on" if "rolled" in e else "one of them backwards"
        message = (
            f"videos and calibrations are numbered differently, {how}: video {cameras[0]} belongs "
            f"to the calibration of camera {partner}, and so on{_gain(e)}"
        )
        return "error", message, "put the entries of the calibration in the order of the videos"
    return "error", f"{what} of {_names(cameras)} are exchanged{_gain(e)}", fix


def _masks_swapped(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = f"the masks of {_names(cameras)} are exchanged{_gain(e)}"
    return "error", message, "exchange the two mask files"


def _units(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    factor = e["factor"]
    message = f"T of {_names(cameras)} is {factor:g} times too large{_gain(e)}"
    return "error", message, f"divide T by {factor:g} (millimetres and metres are mixed)"


def _transposed(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = f"R of {_names(cameras)} is transposed{_gain(e)}"
    return "error", message, "transpose R back: it must take world to camera, x_cam = R X + T"


def _convention(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    names = {
        "camera_to_world": "is camera-to-world instead of world-to-camera",
        "centre_as_translation": "has the camera's centre in place of T",
        "opengl_axes": "has OpenGL camera axes instead of OpenCV's",
    }
    which = next(text for key, text in names.items() if key in e)
    message = f"the pose of {_names(cameras)} {which}{_gain(e)}"
    return "error", message, "export the calibration as x_cam = R X + T with OpenCV axes"


def _offset(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    n = round(e["frames"])
    what = {"pictures": "the pictures", "masks": "the masks"}.get(e.get("altered"), "the videos")
    sense = f"{abs(n)} frame(s) {'ahead of' if n > 0 else 'behind'}"
    other = {"pictures": "its masks", "masks": "its pictures"}.get(e.get("altered"), "the others")
    message = f"{what} of {_names(cameras)} run {sense} {other}{_gain(e)}"
    way = "drop the first {} frame(s) of all others" if n > 0 else "drop its first {} frame(s)"
    return "error", message, way.format(abs(n)) + ", or export it again from the trigger's start"


def _mirrored(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    how = "upside down" if "vertical" in e else "left to right"
    what = {"pictures": "the pictures", "masks": "the masks"}.get(e.get("altered"), "the videos")
    fix = "export without mirroring (ffmpeg -vf hflip mirrors back)"
    return "error", f"{what} of {_names(cameras)} are mirrored {how}{_gain(e)}", fix


def _cropped(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    if "black_margin" in e:
        sides = ", ".join(f"{k} {v:.0%}" for k, v in e["black_margin"].items() if v > 0)
        message = f"the pictures of {_names(cameras)} are cropped: black margins ({sides})"
        return "warning", message, "export whole frames; what was cut off cannot be prepared"
    what = {"pictures": "the pictures", "masks": "the masks"}.get(e.get("altered"), "the videos")
    scale = abs(e.get("scale_x", 1.0) - 1) > 0.02 or abs(e.get("scale_y", 1.0) - 1) > 0.02
    how = "cropped and resized" if scale else "cropped or shifted"
    by = f"shift ({e['shift_x']:.0f}, {e['shift_y']:.0f}) px"
    by += f", scale ({e['scale_x']:.3f}, {e['scale_y']:.3f})" if scale else ""
    message = f"{what} of {_names(cameras)} are {how}: {by} brings them back{_gain(e)}"
    return "error", message, "export whole frames, or shift and scale K of this camera to match"


def _intrinsics(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    factor = e["factor"]
    if "principal_point_off_x" in e:
        by = f"focal lengths {e['factor_x']:.3f} and {e['factor_y']:.3f} times the true ones, "
        by += "principal point off by "
        by += f"({e['principal_point_off_x']:.0f}, {e['principal_point_off_y']:.0f}) px"
        message = f"K of {_names(cameras)} is wrong: {by}{_gain(e)}"
        return "error", message, "correct K by these numbers, or calibrate this camera again"
    message = f"the focal length of {_names(cameras)} is {factor:.3f} times the true one{_gain(e)}"
    fix = f"divide fx and fy by {factor:.4f}, or calibrate again"
    if len(cameras) > 2:
        message += "; all cameras alike, as when K and pictures come from different undistortions"
        fix += "; K must be the new camera matrix (alpha) that the videos were undistorted with"
    return "error", message, fix


def _what(e: dict[str, Any]) -> str:
    return {"pictures": "the pictures", "masks": "the masks"}.get(e.get("altered"), "the videos")


def _lost(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    n, at = round(e["frames"]), e.get("at", 0)
    before, after = round(e.get("before", 0)), round(e.get("after", 0))
    more = f" ({round(e['steps'])} such steps)" if e.get("steps", 1) > 1 else ""
    where = f"at about frame {at}{more}: before it they run {before}, after it {after} ahead"
    message = f"{_what(e)} of {_names(cameras)} lost {n} frame(s) {where}{_gain(e)}"
    fix = f"export this camera again, or use only the frames before: --config.prepare.frames=0:{at}"
    return "error", message, fix


def _doubled(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    if "repeats" in e:
        message = (
            f"the videos of {_names(cameras)} repeat {e['repeats']} picture(s) "
            f"({e['share']:.0%} of those looked at) while the other cameras go on, first at frame "
            f"{e['at']}"
        )
        if e["share"] > 0.3:
            message += ": it recorded at a lower rate, and pictures were repeated to fill up"
        return (
            "error" if e["share"] > 0.3 else "warning", message,
            "leave these frames out (--config.prepare.exclude=...), or export the camera again",
        )  # fmt: skip
    n, at = round(e["frames"]), e.get("at", 0)
    before, after = round(e.get("before", 0)), round(e.get("after", 0))
    more = f" ({round(e['steps'])} such steps)" if e.get("steps", 1) > 1 else ""
    message = (
        f"{_what(e)} of {_names(cameras)} hold {n} frame(s) too many at about frame {at}{more}: "
        f"before it they run {-before}, after it {-after} behind{_gain(e)}"
    )
    fix = f"export this camera again, or use only the frames before: --config.prepare.frames=0:{at}"
    return "error", message, fix


def _drift(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    rate = 1.0 / max(1.0 - e["rate"], 1e-6)
    message = (
        f"{_what(e)} of {_names(cameras)} run at another rate than the others: one of their frames "
        f"lasts {rate:.4g} of the others', {abs(e['frames']):.1f} frames over those looked at"
        f"{_gain(e)}"
    )
    fix = (
        "record with one trigger, or resample this camera to the others' rate (ffmpeg -vf "
        "setpts, -r); trim=shortest does not help"
    )
    return "error", message, fix


def _exchanged(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = (
        f"two pieces of {_what(e)} of {_names(cameras)} are exchanged: what begins at frame "
        f"{e.get('at', 0)} belongs at the start{_gain(e)}"
    )
    return "error", message, "join the pieces again in the order of their names' numbers"


def _resized(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    fx, fy = e["factor_x"], e["factor_y"]
    by = f"{fx:.4g}" if abs(fx - fy) < 1e-3 else f"{fx:.4g} (across) and {fy:.4g} (down)"
    message = f"the pictures of {_names(cameras)} are {by} times the size of their calibration"
    fix = (
        f"export the pictures at their own size, or multiply fx, cx by {fx:.4g}, fy, cy by {fy:.4g}"
    )
    return "error", message + _gain(e), fix


def _turned(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    degrees = round(e["degrees"])
    message = f"{_what(e)} of {_names(cameras)} are turned by {degrees} degrees{_gain(e)}"
    way = {180: "hflip,vflip", 90: "transpose=2", 270: "transpose=1"}[degrees]
    return "error", message, f"export without turning (ffmpeg -vf {way} turns back)"


def _points(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = (
        f"the principal points of all cameras are off by the same ({e['x']:.2f}, {e['y']:.2f}) px"
        f"{_gain(e)}: they are counted from another origin, as MATLAB's pixels are counted from 1"
    )
    fix = f"take ({e['x']:.2f}, {e['y']:.2f}) off cx, cy of every camera"
    if e.get("pixel_origin"):
        fix = (
            f"--config.prepare.pixel_origin={e['pixel_origin']} (check --pixel-origin "
            f"{e['pixel_origin']}) reads them so; or " + fix
        )
    return "warning" if max(abs(e["x"]), abs(e["y"])) < 3 else "error", message, fix


def _inconsistent(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = (
        f"silhouettes and calibration disagree by {e['tangent_px']:.1f} px, most in "
        f"{_names(cameras)}, and no single correction explains it"
    )
    return "error", message, "look at the contact sheet: masks, calibration of this camera, timing"


def _hull(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    cover = e.get("least")
    if cover is not None and cover < 0.5:
        message = (
            f"the other cameras' visual hull covers only {cover:.3f} of the mask of "
            f"{_names(cameras)}: pictures and calibration do not belong together"
        )
        fix = "compare the size of the pictures with the calibration's, the cameras' order, units"
        return "error", message, fix
    message = (
        f"the other cameras' visual hull leaves part of the mask of {_names(cameras)} uncovered"
    )
    return "warning", message, "are masks cut off or holey? is the animal outside some picture?"


def _keypoints(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    if "on_masks" in e:
        message = (
            f"only {e['on_masks']:.0%} of the points in space fall on the masks: they are of "
            "another calibration, another time or another animal"
        )
        return "warning", message, "triangulate them again by this calibration, or remove the file"
    message = (
        f"keypoints of {_names(cameras)} disagree with the calibration while masks agree{_gain(e)};"
        f" likely {e['likely']}, or keypoints older than the videos"
    )
    return "warning", message, "detect the keypoints again; prepare does not need them"


def _absent(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = "no masks: silhouettes cannot be held against the calibration"
    fix = "--config.prepare.masks=background_model (static cameras), keypoints, threshold or rembg"
    return "info", message, fix


def _empty(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = f"{_names(cameras)}: the mask is empty in {e['count']} of the frames looked at"
    return "warning", message, "prepare skips these frames; segment them again to keep them"


def _flicker(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = f"{_names(cameras)}: the mask flickers in {e['count']} frame(s)"
    return "warning", message, "look at these frames; parts of the animal may be missing"


def _jump(cameras: tuple[int, ...], e: dict[str, Any]) -> tuple[str, str, str]:
    message = f"the recording was cut: the animal jumps at frame {', '.join(map(str, e['frames']))}"
    return "warning", message, "prepare skips frames at jumps; keep clips from crossing them"


_WORDS = {
    "cameras_swapped": _swapped,
    "masks_swapped": _masks_swapped,
    "translation_units": _units,
    "rotation_transposed": _transposed,
    "extrinsics_convention": _convention,
    "video_offset": _offset,
    "video_mirrored": _mirrored,
    "video_cropped": _cropped,
    "intrinsics_wrong": _intrinsics,
    "frames_lost": _lost,
    "frames_doubled": _doubled,
    "clock_drift": _drift,
    "pieces_exchanged": _exchanged,
    "picture_resized": _resized,
    "video_turned": _turned,
    "principal_points": _points,
    "masks_inconsistent": _inconsistent,
    "hull_cover": _hull,
    "keypoints_inconsistent": _keypoints,
    "masks_absent": _absent,
    "mask_empty": _empty,
    "mask_flicker": _flicker,
    "content_jump": _jump,
}
