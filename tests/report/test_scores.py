import pytest

from mouselift_jax.report.scores import summarise, verdicts


def table(**methods):
    """Rows of four samples and two cameras from (IoU, interior PSNR) of each method."""
    return [
        {"sample": f"s{i}", "camera": camera, "method": method, "iou": iou, "interior_psnr": psnr,
         "psnr": psnr, "ssim": 0.9, "specks": 0.01, "mean_color_psnr": 20.0}
        for method, (iou, psnr) in methods.items() for i in range(4) for camera in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "network, said",
    [
        ((0.9, 24.0), "loses to `fit`"),
        ((0.97, 30.0), "beats `fit`"),
        ((0.97, 24.0), "wins one and loses one against `fit`"),
        ((0.95, 28.0), "is not surely different from `fit`"),
    ],
)
def test_network_and_fit_are_compared_on_the_same_views(network, said):
    rows = table(gslrm=network, fit=(0.95, 28.0), hull=(0.85, 22.0))
    words = verdicts(rows, ("gslrm", "fit", "hull"), where="cameras 0, 1", block=1)
    assert [v.outcome for v in words[:2]] == ["better", "better"] and said in words[2].text


def test_differences_are_of_samples_that_both_methods_drew():
    rows = table(fit=(0.9, 25.0), hull=(0.8, 20.0))
    rows = [r for r in rows if not (r["method"] == "fit" and r["sample"] == "s0")]
    for row in rows:
        if row["sample"] == "s0":
            row["iou"] = 0.0  # would lower the hull's mean, not the difference
    made, metrics = summarise(rows, ("fit", "hull"), 1)
    assert metrics["hull/iou"] == pytest.approx(0.6)
    assert metrics["fit_minus_hull/iou"] == pytest.approx(0.1)
    assert metrics["heldout/specks"] == pytest.approx(1.0)  # percent
    assert [line[0] for line in made.rows] == ["fit", "hull", "true mean colour", "fit minus hull"]
