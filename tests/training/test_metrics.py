"""Metrics against scikit-image, SciPy and hand-made cases."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mouselift_jax.training import metrics


def pair(shape=(2, 40, 36, 3), seed=0):
    rng = np.random.default_rng(seed)
    a = rng.random(shape).astype(np.float32)
    return a, np.clip(a + rng.normal(0, 0.1, shape), 0, 1).astype(np.float32)


def test_psnr_and_ssim_equal_scikit_image():
    a, b = pair()
    psnr = [peak_signal_noise_ratio(y, x, data_range=1.0) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr(a, b), psnr, rtol=1e-5)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=True)
    ssim = [
        structural_similarity(x, y, data_range=1.0, channel_axis=-1, win_size=11, **options)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(a, b), ssim, atol=2e-5)


def test_psnr_clips_and_identical_pictures_reach_the_cap():
    a, b = pair()
    np.testing.assert_allclose(
        metrics.psnr(a * 3 - 1, b), metrics.psnr(np.clip(a * 3 - 1, 0, 1), b)
    )
    np.testing.assert_allclose(metrics.psnr(a, a), metrics.PSNR_CAP)


def test_interior_psnr_counts_pixels_away_from_both_outlines():
    a, b = pair()
    yy, xx = np.mgrid[:40, :36]
    m1 = ((yy - 20) ** 2 + (xx - 18) ** 2 < 12**2)[None, ..., None].repeat(2, 0)
    m2 = ((yy - 18) ** 2 + (xx - 20) ** 2 < 13**2)[None, ..., None].repeat(2, 0)
    got = metrics.interior_psnr(a, np.float32(m1), b, np.float32(m2))
    both = [ndimage.binary_erosion(x[0, ..., 0], np.ones((5, 5)), border_value=1) for x in (m1, m2)]
    inside = both[0] & both[1]
    for i in range(2):
        mse = np.square(a[i] - b[i])[inside].mean()
        flat = np.square(b[i][inside].mean(0) - b[i][inside]).mean()
        assert float(got.psnr[i]) == pytest.approx(-10 * np.log10(mse), rel=1e-5)
        assert float(got.mean_color_psnr[i]) == pytest.approx(-10 * np.log10(flat), rel=1e-4)
        assert int(got.n_pixels[i]) == inside.sum()
    empty = metrics.interior_psnr(a, np.float32(m1) * 0, b, np.float32(m2))
    assert np.isnan(empty.psnr).all() and (empty.n_pixels == 0).all()


def test_masked_psnr_sees_the_mask_only():
    a, b = pair((1, 4, 4, 3))
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[0, 1, 2] = 1
    want = -10 * np.log10(np.square(a - b)[0, 1, 2].mean())
    assert float(metrics.masked_psnr(a, b, mask)[0]) == pytest.approx(want, rel=1e-5)


def test_mask_iou():
    a = np.zeros((3, 4, 4, 1), np.float32)
    b = np.zeros_like(a)
    a[0, :2], b[0, 1:3] = 1.0, 0.7
    a[1] = 1.0
    np.testing.assert_allclose(metrics.mask_iou(a, b), [1 / 3, 0.0, 1.0])


@pytest.mark.shared
def test_metrics_equal_the_measured_ones(shared):
    m = load_file(shared / "goldens/gslrm/tiny_losses.safetensors")
    a, b = (np.moveaxis(m[k], 1, -1) for k in ("pred", "target"))
    np.testing.assert_allclose(metrics.ssim(a, b), m["metric_ssim_skimage"], atol=2e-5)
    np.testing.assert_allclose(metrics.psnr(a, b), m["metric_psnr_clipped"], rtol=1e-5)
