"""Of two cameras with one pose, keypoints say whose it is."""

import dataclasses

from mouselift_jax.data.check.duplicates import tell_which
from mouselift_jax.data.findings import Finding


def test_keypoints_say_whose_pose_it_is(recording):
    for right, wrong in ((2, 5), (5, 2)):
        cameras = list(recording.cameras)
        cameras[wrong] = cameras[right]
        finding = Finding("calibration_duplicate", "error", "twice", (2, 5), "one of them")
        tell_which(dataclasses.replace(recording, cameras=tuple(cameras)), [finding])
        assert f"it is camera {right}'s" in finding.message
        assert f"leave camera {wrong} out" in finding.fix and f"{wrong}" not in finding.fix[-12:]
    finding = Finding("calibration_duplicate", "error", "twice", (2, 5), "one of them")
    tell_which(dataclasses.replace(recording, keypoints=None), [finding])
    assert finding.fix == "one of them"
