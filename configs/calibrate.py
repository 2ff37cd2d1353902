"""A recording's calibration, mended by the animal that all cameras see.

    python launch.py --config=configs/calibrate.py --config.recording=RECORDING \
        --workdir=runs/calibrate
    python launch.py --config=configs/prepare.py --config.recording=RECORDING \
        --config.prepare.calibration=runs/calibrate --workdir=runs/prepare

Time: a few seconds of one core with keypoints (six cameras, 60 frames), about half a minute with
silhouettes, most of it for reading the masks. Memory: below 1 GB. docs/calibrate.md says when to
use it. The result counts only when frames that were not used say so; else the calibration comes
back unchanged.
"""

from configs import common

VARIANTS = {
    "base": {},
    "silhouettes": {"calibrate.evidence": "silhouettes"},
    "both": {"calibrate.evidence": "both"},
    "intrinsics": {"calibrate.free": ("pose", "focal", "aspect", "centre")},
    "lens": {"calibrate.free": ("pose", "focal", "centre", "distortion")},
    "time": {"calibrate.free": ("pose", "focal", "time")},
}


def get_config(name=None):
    """The config of one variant."""
    config = common.stage("calibrate")
    with config.unlocked():
        config.recording = common.path()  # folder of a recording
        config.calibrate = c = common.ConfigDict()
        c.evidence = "auto"  # auto (keypoints where there are any) | keypoints | silhouettes | both
        # What may change: pose, focal, aspect (fy / fx), centre (cx, cy), distortion (k1, k2),
        # time (a constant offset of a camera's clock; needs keypoints). What the recording cannot
        # tell stays as given.
        c.free = ("pose", "focal")
        c.n_frames = 60  # frames to fit, spread over the arena; a third as many are kept to judge
        c.least_confidence = 0.3  # keypoints of less do not count
        c.gap_s = 0.2  # frames nearer to those that judge are not used to fit
        c.cameras = ""  # numbers or names of the cameras to use, e.g. 0,2,4; empty = all
        c.length_between = ()  # two keypoints whose true distance is known, by number: (0, 5)
        c.length_mm = 0.0  # that distance; it sets the rig's scale, which no picture tells
        c.floor = False  # True: the world stands on the floor where the animal walks: z = 0, z up
        c.trim = "error"  # error | shortest: files with different numbers of frames
        c.unit = ""  # mm | m: unit of the calibration; empty = find out
        c.pixel_origin = ""  # 0 | 0.5 | 1: the first pixel's centre; empty = its format's
    return common.variant(config, name, VARIANTS)
