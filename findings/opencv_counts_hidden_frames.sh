#!/usr/bin/env bash
# OpenCV's frame count of a video cut without re-encoding is that of frames it never shows.
#
# The likely guess: a video trimmed with `ffmpeg -ss T -i in.mp4 -c copy out.mp4` holds the frames
# from T on (or from the key frame before it), CAP_PROP_FRAME_COUNT counts them, and as many decode.
# What happens: the frames from the key frame to T stay in the file behind an edit list. The count is
# that of the stored samples, the decoder drops the hidden ones: 40 are counted, 27 decode, in all
# cameras alike, and frame 0 is the one at T. In a Matroska file with longer sound the count is the
# sound's length times the frame rate (121 for 40 pictures); in one that was written to a pipe it is
# -276701161105643264.
# Why it matters here: labs cut recordings so. Whatever plans by the count (frames spread over a
# recording, train and validation split, "the video is damaged") is wrong, in every camera by as much.
# Source: ISO/IEC 14496-12, 8.6.6; modules/videoio/src/cap_ffmpeg_impl.hpp (get_total_frames);
# shared by many reports, e.g. github.com/opencv/opencv/issues/15352
#
# Needs python3. Run: bash findings/opencv_counts_hidden_frames.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v; v/bin/pip install -q opencv-python-headless==4.12.0.88 imageio-ffmpeg==0.6.0
cat > count.py <<'PY'
import subprocess
import cv2, imageio_ffmpeg, numpy as np
ff = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
def run(*words, **more): return subprocess.run([*ff, *words], check=True, **more)
raw = np.stack([np.full((64, 96, 3), 5 * t, np.uint8) for t in range(40)]).tobytes()
run("-f", "rawvideo", "-pix_fmt", "bgr24", "-s", "96x64", "-r", "30", "-i", "-", "-c:v", "libx264",
    "-g", "20", "-bf", "0", "-pix_fmt", "yuv420p", "whole.mp4", input=raw)
run("-ss", "0.43", "-i", "whole.mp4", "-c", "copy", "cut.mp4")
run("-i", "whole.mp4", "-f", "lavfi", "-i", "sine=duration=4", "-c:v", "copy", "-c:a", "aac", "sound.mkv")
open("live.mkv", "wb").write(run("-i", "whole.mp4", "-c", "copy", "-f", "matroska", "-", stdout=-1).stdout)
print("opencv", cv2.__version__)
for name in ("whole.mp4", "cut.mp4", "sound.mkv", "live.mkv"):
    capture, n = cv2.VideoCapture(name), 0
    counted = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    while capture.grab(): n += 1
    print(name, counted, n)
PY
v/bin/python count.py | tee seen
expected="whole.mp4 40 40 cut.mp4 40 27 sound.mkv 121 40 live.mkv -276701161105643264 40 "
[ "$(tail -4 seen | tr '\n' ' ')" = "$expected" ] || { echo "CHANGED: not $expected"; exit 1; }
