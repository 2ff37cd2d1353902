#!/usr/bin/env bash
# One COLMAP lens counts its coefficients from k0, all others from k1: k1 .. k3 read by name are one off.
#
# The likely guess: a coefficient k1 is the one of the third power of the angle, whatever the model;
# a reader that maps COLMAP's names to OpenCV's (fisheye k1 .. k4) works for every fisheye model, and
# what is called k0 is a factor of the first power.
# What happens: RAD_TAN_THIN_PRISM_FISHEYE (Project Aria's; camera model 11, since COLMAP 3.11) has
# k0 .. k5, p0, p1, s0 .. s3; its k0 is of the third power: with k4, k5, p and s zero, k0 .. k3 are
# cv2.fisheye's k1 .. k4. OPENCV_FISHEYE and THIN_PRISM_FISHEYE of the same file format begin with k1.
# Read by name, pixels of a lens of 60 degrees half angle are off by tens of pixels, and nothing fails.
# Why it matters here: cameras.bin of Aria and of other wide lenses is read as a rig's calibration.
# Source: colmap src/colmap/sensor/models.h (RadTanThinPrismFisheyeModel)
#
# Needs python3. Run: bash findings/colmap_counts_k_from_zero.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v; v/bin/pip install -q pycolmap==4.2.1 opencv-python-headless==4.12.0.88
cat > k.py <<'PY'
import cv2, numpy as np, pycolmap
k, f, c = [0.05, -0.02, 0.004, -0.001], (500.0, 510.0), (320.0, 240.0)
angle = np.linspace(0.1, np.radians(60), 9)
points = np.stack([np.tan(angle), 0.4 * np.tan(angle), np.ones(9)], 1)
K = np.array([[f[0], 0, c[0]], [0, f[1], c[1]], [0, 0, 1]])
def colmap(model, *more):
    camera = pycolmap.Camera(model=model, width=640, height=480, params=[*f, *c, *more], camera_id=1)
    return np.array([camera.img_from_cam(p) for p in points])
def opencv(k):
    return cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), K, np.array(k))[0][:, 0]
aria = colmap("RAD_TAN_THIN_PRISM_FISHEYE", *k, *[0.0] * 8)
names = pycolmap.Camera.create_from_model_name(1, "RAD_TAN_THIN_PRISM_FISHEYE", 500, 640, 480).params_info
print("names", names)
print("model", int(pycolmap.CameraModelId.RAD_TAN_THIN_PRISM_FISHEYE))
print("its k0 .. k3 are k1 .. k4 of cv2.fisheye:", np.abs(aria - opencv(k)).max() < 1e-9)
print("OPENCV_FISHEYE's k1 .. k4 are:", np.abs(colmap("OPENCV_FISHEYE", *k) - opencv(k)).max() < 1e-9)
print("read by name, off by more than 10 px:", np.abs(aria - opencv([*k[1:], 0.0])).max() > 10)
PY
v/bin/python k.py | tee seen
[ "$(cat seen)" = "names fx, fy, cx, cy, k0, k1, k2, k3, k4, k5, p0, p1, s0, s1, s2, s3
model 11
its k0 .. k3 are k1 .. k4 of cv2.fisheye: True
OPENCV_FISHEYE's k1 .. k4 are: True
read by name, off by more than 10 px: True" ] || { echo "CHANGED"; exit 1; }
