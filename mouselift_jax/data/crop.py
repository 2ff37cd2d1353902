"""Pixels and cameras changed together: the only place of the project that resamples pictures.

Every function takes a picture with its camera and returns both. The geometry comes from `Camera`'s
pure methods, which hand out the pixel map M (pixel centres at +0.5); this module applies M with
OpenCV, low-pass filtered where the picture shrinks, and with colour weighted by alpha where there
is one, so that nothing behind the animal leaks into its outline. Pictures are [H,W] or [H,W,C],
uint8 or float32; four channels mean RGB with straight alpha.
"""

from __future__ import annotations

import cv2
import numpy as np

from mouselift_jax.data.distortion import Lens, distort_pixels
from mouselift_jax.errors import ShapeError
from mouselift_jax.geometry.camera import Camera

# Sampling a picture r times smaller with bilinear weights aliases; a Gaussian of this many source
# pixels per sqrt(r^2 - 1) before it keeps fine fur from turning into noise.
BLUR_PER_SHRINK = 0.5
ALIGN = 12  # divisible by the usual whole reductions 2, 3, 4, 6
BLUR_FROM = 1.25  # below this reduction the bilinear weights themselves are filter enough


def crop(
    image: np.ndarray, camera: Camera, x0: float, y0: float, width: int, height: int
) -> tuple[np.ndarray, Camera]:
    """The window that starts at pixel position (x0, y0); outside the picture it is 0.

    Args:
        image: [H,W] or [H,W,C], of the camera's size.
        camera: its camera.
        x0: left edge of the window, pixels; whole numbers copy pixels, others resample.
        y0: top edge, pixels.
        width: of the window, pixels.
        height: of the window, pixels.
    """
    _check(image, camera)
    camera, M = camera.cropped(x0, y0, width, height)
    if float(x0).is_integer() and float(y0).is_integer():
        return _copy_window(image, int(x0), int(y0), width, height), camera
    return apply_map(image, M, width, height), camera


def resize(image: np.ndarray, camera: Camera, width: int, height: int) -> tuple[np.ndarray, Camera]:
    """The whole picture at another size.

    Averaged over areas along a side that shrinks, interpolated along one that grows. Nothing lies
    beyond the whole picture, so its border keeps its colour.
    """
    _check(image, camera)
    camera, _ = camera.resized(width, height)
    if image.shape[:2] == (height, width):
        return image.copy(), camera
    least = min(width, image.shape[1]), min(height, image.shape[0])
    out = image if least == image.shape[1::-1] else _shrunk(image, *least)
    if least != (width, height):
        out = _with_alpha_weights(
            out, lambda im: cv2.resize(im, (width, height), interpolation=cv2.INTER_LINEAR)
        )
    return out, camera


def warp(
    image: np.ndarray,
    camera: Camera,
    R_new_from_old: np.ndarray,
    K_new: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, Camera]:
    """Turn the camera about its centre and give it new intrinsics; pixels outside are 0.

    Exact for every scene, because a camera that only turns sees the same rays.

    Args:
        image: [H,W] or [H,W,C], of the camera's size.
        camera: its camera (one, not a batch).
        R_new_from_old: rotation [3,3] from old to new camera axes.
        K_new: intrinsics [3,3] of the new picture, pixels.
        width: of the new picture, pixels.
        height: of the new picture, pixels.
    """
    _check(image, camera)
    camera, M = camera.rotated(R_new_from_old, K_new, width, height)
    return apply_map(image, np.asarray(M), width, height), camera


def apply_map(image: np.ndarray, M: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample a picture through a pixel map.

    Args:
        image: [H,W] or [H,W,C], uint8 or float32.
        M: homography [3,3] from old to new pixel coordinates, pixel centres at +0.5.
        width: of the result, pixels.
        height: of the result, pixels.

    Returns:
        The picture [height,width(,C)]; 0 where it looks past the old one's border.
    """
    return _with_alpha_weights(image, lambda im: _warp_filtered(im, M, width, height))


def homography_for_opencv(M: np.ndarray) -> np.ndarray:
    """The same pixel map for coordinates with pixel centres at integers, as OpenCV counts."""
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    return back @ np.asarray(M, np.float64) @ half


def shrink_factor(M: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Old pixels per new pixel (root of the area ratio) of the map M at pixels xy [...,2]."""
    # The Jacobian determinant of a homography is det M over the cube of its third coordinate.
    w = xy @ M[2, :2] + M[2, 2]
    return np.sqrt(np.abs(w) ** 3 / max(abs(np.linalg.det(M)), 1e-30))


def map_points(M: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Pixel coordinates [...,2] carried by the pixel map M."""
    p = xy @ M[:, :2].T + M[:, 2]
    return p[..., :2] / p[..., 2:]


def _shrunk(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Area averages; of a cut-out shrunk by whole factors only the animal's box is worked on."""

    def sample(part: np.ndarray, w: int, h: int) -> np.ndarray:
        return _with_alpha_weights(
            part, lambda im: cv2.resize(im, (w, h), interpolation=cv2.INTER_AREA)
        )

    fx, fy = image.shape[1] // width, image.shape[0] // height
    whole = (fx * width, fy * height) == (image.shape[1], image.shape[0])
    if image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8 or not whole:
        return sample(image, width, height)
    out = np.zeros((height, width, 4), np.uint8)
    x, y, w, h = cv2.boundingRect(cv2.extractChannel(image, 3))
    if w and h:
        x0, y0, x1, y1 = x // fx, y // fy, -(-(x + w) // fx), -(-(y + h) // fy)
        part = image[y0 * fy : y1 * fy, x0 * fx : x1 * fx]
        out[y0:y1, x0:x1] = sample(part, x1 - x0, y1 - y0)
    return out


def _warp_filtered(image: np.ndarray, M: np.ndarray, width: int, height: int) -> np.ndarray:
    """Low-pass filter as much as the map shrinks at the picture it makes, then sample linearly."""
    seen = map_points(np.linalg.inv(M), np.array([width / 2.0, height / 2.0]))
    x = float(np.clip(seen[0], 0, image.shape[1]))
    y = float(np.clip(seen[1], 0, image.shape[0]))
    shrink = float(shrink_factor(M, np.array([x, y])))
    whole = int(shrink)
    if whole >= 2:
        # A box average over whole pixels first: exact, and the fastest filter OpenCV has.
        image, M = _box_reduced(image, M, whole)
        shrink /= whole
    if shrink > BLUR_FROM:
        image = cv2.GaussianBlur(image, (0, 0), BLUR_PER_SHRINK * np.sqrt(shrink**2 - 1.0))
    return cv2.warpPerspective(
        image, homography_for_opencv(M), (width, height), flags=cv2.INTER_LINEAR
    )


def _box_reduced(image: np.ndarray, M: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Average factor x factor pixels; the map then starts from the smaller picture."""
    h, w = image.shape[:2]
    pad_y, pad_x = -h % factor, -w % factor
    if pad_y or pad_x:
        image = cv2.copyMakeBorder(image, 0, pad_y, 0, pad_x, cv2.BORDER_CONSTANT)
    small = cv2.resize(
        image,
        (image.shape[1] // factor, image.shape[0] // factor),
        interpolation=cv2.INTER_AREA,
    )
    return small, M @ np.diag([factor, factor, 1.0])


def _with_alpha_weights(image: np.ndarray, sample: object) -> np.ndarray:
    """Run a resampler on premultiplied colours where the picture has alpha."""
    if image.ndim != 3 or image.shape[2] != 4:
        out = sample(image)
        return out[..., None] if image.ndim == 3 and out.ndim == 2 else out
    is_byte = image.dtype == np.uint8
    rgba = image.astype(np.float32)
    top = np.float32(255.0 if is_byte else 1.0)
    rgba[..., :3] *= rgba[..., 3:] / top
    return straight_alpha(sample(rgba), is_byte)


def straight_alpha(premultiplied: np.ndarray, is_byte: bool) -> np.ndarray:
    """Straight from premultiplied alpha, both RGBA float32 [H,W,4]; colour 0 where alpha is 0.

    Args:
        premultiplied: colours times alpha / top, and alpha, where top is 255 or 1.
        is_byte: values up to 255, returned as uint8; else up to 1, returned as float32.
    """
    top = np.float32(255.0 if is_byte else 1.0)
    alpha = premultiplied[..., 3:]
    tiny = 0.5 if is_byte else 1e-6  # below half a level the byte is 0, and with it the colour
    visible = alpha >= tiny
    rgb = premultiplied[..., :3] * (top / np.maximum(alpha, tiny)) * visible
    out = np.concatenate([rgb, alpha * visible], axis=-1)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8) if is_byte else np.clip(out, 0.0, 1.0)


def _copy_window(image: np.ndarray, x0: int, y0: int, width: int, height: int) -> np.ndarray:
    out = np.zeros((height, width) + image.shape[2:], image.dtype)
    h, w = image.shape[:2]
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + width, w), min(y0 + height, h)
    if right > left and bottom > top:
        out[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
    return out


def _check(image: np.ndarray, camera: Camera) -> None:
    if image.ndim not in (2, 3) or image.shape[:2] != (camera.height, camera.width):
        raise ShapeError(
            "a picture and its camera differ in size",
            expected=f"[{camera.height},{camera.width}] or [{camera.height},{camera.width},C]",
            found=f"{list(image.shape)}",
            fix="give the camera that belongs to this very picture",
        )
    if image.dtype not in (np.uint8, np.float32):
        raise ShapeError(
            "pictures are uint8 or float32", found=str(image.dtype), fix="convert the picture first"
        )


def cutout(
    picture: np.ndarray,
    alpha: np.ndarray,
    M: np.ndarray,
    width: int,
    height: int,
    box: tuple[int, int, int, int],
) -> np.ndarray:
    """Carry an animal through a pixel map, without touching the rest of the picture.

    The same result as `apply_map` on the whole RGBA picture, at the cost of the animal's box.

    Args:
        picture: [H,W,3] uint8, BGR as OpenCV decodes it.
        alpha: [H,W] uint8.
        M: homography [3,3] from old to new pixel coordinates, pixel centres at +0.5.
        width: of the result, pixels.
        height: of the result, pixels.
        box: x0, y0, x1, y1 (end exclusive) that holds every pixel of alpha > 0.

    Returns:
        [height,width,4] uint8, RGB with straight alpha.
    """
    out = np.zeros((height, width, 4), np.uint8)
    h, w = alpha.shape
    # A margin for the filters, at zeros; on a grid of `ALIGN` so that averaging over whole pixels
    # groups the same pixels whatever the box.
    x0, y0 = max((box[0] - 2) // ALIGN * ALIGN, 0), max((box[1] - 2) // ALIGN * ALIGN, 0)
    x1, y1 = min(box[2] + 2, w), min(box[3] + 2, h)
    if box[2] <= box[0] or box[3] <= box[1]:
        return out
    corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]], np.float64)
    to = map_points(M, corners)
    left, top = np.maximum(np.floor(to.min(0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(to.max(0)).astype(int) + 1, (width, height))
    if right <= left or bottom <= top:
        return out
    shift = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0], [0.0, 0.0, 1.0]])
    part = np.ascontiguousarray(alpha[y0:y1, x0:x1])
    # Bytes suffice: a premultiplied byte is off by half a level of what is seen.
    rgba = cv2.cvtColor(picture[y0:y1, x0:x1], cv2.COLOR_BGR2RGBA)  # alpha 255, times alpha / 255
    premultiplied = cv2.multiply(rgba, cv2.merge((part, part, part, part)), scale=1 / 255)
    size = (int(right - left), int(bottom - top))
    warped = _warp_filtered(premultiplied, shift @ M @ back, *size)
    seen = cv2.extractChannel(warped, 3)
    edge = np.flatnonzero(seen - 1 < np.uint8(254))  # neither 0 (which wraps to 255) nor 255
    pixels = warped.reshape(-1, 4)
    ring = pixels[edge].astype(np.float32)
    color = ring[:, :3] * (255.0 / ring[:, 3:]) + 0.5
    pixels[edge] = np.concatenate([np.minimum(color, 255), ring[:, 3:]], axis=1).astype(np.uint8)
    out[top:bottom, left:right] = cv2.bitwise_and(warped, warped, mask=seen)
    return out


def undistortion_maps(camera: Camera, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Maps for `cv2.remap` that turn a camera's raw pictures into the pinhole pictures of its K."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    raw = distort_pixels(np.stack([x, y], -1), np.asarray(camera.K), lens) - 0.5
    return cv2.convertMaps(
        raw[..., 0].astype(np.float32), raw[..., 1].astype(np.float32), cv2.CV_16SC2
    )
