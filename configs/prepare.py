"""Samples from a recording: six (or more) synchronised videos, masks and a calibration.

    python launch.py --config=configs/prepare.py --config.recording=RECORDING --workdir=runs/prepare
    python launch.py --config=configs/prepare.py:fill --config.recording=... --workdir=runs/fill

Time: about 0.08 s of one core per sample (six cameras of 1152x1024 with masks), so 2,000
consecutive frames take about 1.5 minutes on 2 cores; frames skipped over cost half of that each.
Memory: 0.5 GB, whatever the length of the recording. Measured by tests/benchmarks/bench_prepare.py.
Any later stage takes runs/prepare as --config.samples.

pretrained or fill? With the published field of view (base) the rays are those the published weights
know, but a mouse is only about 170 of 512 pixels long. fill uses a longer focal length: about 1.45
times the pixels per millimetre, at the price of rays the published weights have never seen; choose
it when training from scratch.
"""

from configs import common

VARIANTS = {
    "base": {},
    "fill": {"prepare.fov": "fill", "prepare.aim": "box"},
    "crop": {"prepare.mode": "crop"},
    "as_is": {"prepare.mode": "as_is"},
    "tiny": {"prepare.fov": "fill", "prepare.aim": "box", "prepare.size": 128},
}


def get_config(name=None):
    """The config of one variant."""
    config = common.stage("prepare")
    with config.unlocked():
        config.recording = common.path()  # folder of a recording; several are joined by commas
        config.prepare = c = common.ConfigDict()
        # --- geometry ---
        c.mode = (
            "look_at"  # look_at | crop | as_is; original* reproduce the original's, inconsistent
        )
        c.size = 512  # side of the pictures, pixels
        c.fov = "pretrained"  # pretrained (f = 549 px at 512) | fill (longer f, larger animal)
        c.fill = 0.75  # fill: share of the picture that subject_mm takes
        c.subject_mm = 150.0  # fill: length to make room for, mm, with the tail as usually held
        c.aim = "centre"  # centre (the 3D centre in the middle) | box (each silhouette's box)
        c.radius = 2.7  # mean camera distance, scene units; the published rig's
        c.scale = 0.0  # scene units per mm; 0 = radius / mean camera distance
        c.equal_size = False  # look_at: longer f for farther cameras
        c.reference_camera = -1  # camera of slot 0; -1 = the first one
        c.heading = "none"  # none | keypoints | pca: turn the animal to face the front camera
        c.heading_keypoints = (2, 5)  # front and back keypoint (nose, tail root)
        # --- recording ---
        c.trim = "error"  # error | shortest: files with different numbers of frames
        c.unit = ""  # mm | m: unit of the calibration; empty = find out
        c.calibration = ""  # a run of configs/calibrate.py, or a file; empty = the recording's own
        c.cameras = ""  # numbers or names of the cameras to use, e.g. 0,2,4; empty = all
        c.up = ""  # z | -y | cameras | floor | x,y,z: up in the calibration; empty = z, or find out
        c.pixel_origin = ""  # 0 (OpenCV) | 0.5 | 1 (MATLAB): first pixel's centre; empty = format's
        # --- masks ---
        c.masks = "auto"  # auto | files | alpha | threshold | background_model | keypoints | rembg
        c.mask_threshold = 80  # threshold: grey level between animal and background
        c.mask_animal = "dark"  # threshold: dark | bright animal
        c.mask_difference = 30  # background_model: levels that differ from the empty scene
        c.animal = (
            ""  # of several: largest | followed (from the first frame on); empty = there is one
        )
        c.mask_clean = False  # keep the animal's blob only and fill its holes
        # --- frames ---
        c.frames = ""  # a:b, a:b:step or numbers, joined by commas; empty = all
        c.every = 1  # every n-th of them
        c.n_samples = 2000  # spread evenly over them; 0 = all
        c.exclude = ()  # frames left out, e.g. (5900, 11800, 17700) where a recording was cut
        c.exclude_margin = 1  # and frames this near
        c.min_mask_px = 200.0  # a smaller mask counts as empty, pixels of the recording
        c.min_sharpness = 0.0  # variance of the Laplacian on the animal; 0 = keep blurred frames
        c.max_speed_mm_s = 3000.0  # a faster centre is a jump: the sample is left out; 0 = keep
        # --- colour, work ---
        c.match_gain = False  # equalise the cameras' colours on the animal
        c.cache = ""  # folder to keep decoded frames in and take them from; empty = none
        c.faults = "stop"  # stop | warn, when a hull misses its masks and `check` finds why
        c.threads = 0  # 0 = one per core
        config.split = s = common.ConfigDict()
        s.by = "time"  # time | recording
        s.val_fraction = 0.1  # time: share of the samples for validation
        s.gap_s = 0.5  # time: samples nearer to a validation block are used by neither side
        s.n_blocks = 0  # time: validation blocks; 0 = 1 for short recordings, up to 5 for long ones
        s.val_recordings = ()  # recording: names of the folders that are for validation
    return common.variant(config, name, VARIANTS)
