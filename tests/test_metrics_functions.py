"""The pure functions of the metrics, against reference numbers and independent mathematics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import assert_close_rel, load_golden

from camera_utils import Camera, camera_for, check_camera_labels, ray_map
from metrics import equivariance
from metrics.equivariance import apply_fractional_rotation, rotation_filter
from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import kernel_distance
from metrics.perceptual_path_length import reduce_image, trimmed_mean
from metrics.precision_recall import precision_recall

GOLDEN = load_golden("metrics.npz")


def moments(rows):
    rows = rows.astype(np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False, ddof=0)


def random_covariance(seed, size, rank):
    rows = np.random.RandomState(seed).randn(rank, size)
    return rows.T @ rows / rank


# --- features

def test_published_numbers():
    gen, real = GOLDEN["features_gen"], GOLDEN["features_real"]
    assert frechet_distance(*moments(gen), *moments(real)) == pytest.approx(float(GOLDEN["fid"]), rel=1e-6)
    precision, recall = precision_recall(gen, real)
    assert precision == pytest.approx(float(GOLDEN["precision"]), abs=1e-6) and recall == pytest.approx(float(GOLDEN["recall"]), abs=1e-6)
    assert inception_score(GOLDEN["probs"]) == pytest.approx((float(GOLDEN["is_mean"]), float(GOLDEN["is_std"])), rel=1e-9)
    # One subset of all rows there are: no choice of rows is left.
    assert kernel_distance(gen, real[:600], num_subsets=1, max_subset_size=600) == pytest.approx(float(GOLDEN["kid_single_subset_600"]), rel=1e-5)


def test_kernel_distance_uses_the_pairs_of_its_definition():
    x, y = np.random.RandomState(0).randn(2, 5, 3)
    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3
    same = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(5) for j in range(5) if i != j) / 20
    cross = sum(kernel(a, b) for a in x for b in y) / 25
    assert kernel_distance(x, y, num_subsets=3, max_subset_size=5) == pytest.approx(same - 2 * cross, rel=1e-9)


def test_frechet_distance_equals_sqrtm():
    mu = np.random.RandomState(0).randn(2, 40)
    a, b = random_covariance(1, 40, 200), random_covariance(2, 40, 200)
    expected = np.square(mu[0] - mu[1]).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(mu[0], a, mu[1], b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_singular_covariances():
    # In a common eigenbasis it is known exactly: sum of (sqrt a - sqrt b)^2.
    basis = np.linalg.qr(np.random.RandomState(3).randn(64, 64))[0]
    a, b = np.zeros(64), np.zeros(64)
    a[:10], b[5:20] = np.arange(1, 11), 2.0
    zero = np.zeros(64)
    distance = frechet_distance(zero, basis * a @ basis.T, zero, basis * b @ basis.T)
    assert distance == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-6)
    s = random_covariance(4, 64, 7)
    assert frechet_distance(zero, s, zero, s) < 1e-5 * np.trace(s)
    assert frechet_distance(zero, np.zeros([64, 64]), zero, s) == pytest.approx(np.trace(s))


def test_precision_and_recall_of_known_sets():
    rng = np.random.RandomState(0)
    cloud = rng.randn(300, 2).astype(np.float32)
    far = cloud + 100
    assert precision_recall(cloud, cloud) == (1, 1)
    assert precision_recall(far, cloud) == (0, 0)
    # Half of the generated rows lie elsewhere: half the precision, full recall.
    assert precision_recall(np.concatenate([cloud, far]), cloud, block=128) == (0.5, 1)


def test_trimmed_mean_and_reduction():
    assert trimmed_mean(np.array([1e9, *[2.0] * 198, -1e9])) == 2
    images = torch.arange(2 * 512 * 512, dtype=torch.float64).reshape(1, 2, 512, 512)
    assert torch.equal(reduce_image(images)[0, 0, 0, 0], images[0, 0, :2, :2].mean()) and reduce_image(images[:, :, :300]).shape[2] == 300


def test_torch_fidelity_agrees():
    fidelity = _torch_fidelity()
    gen, real = (torch.from_numpy(GOLDEN[f"features_{name}"]) for name in ("gen", "real"))
    fid = fidelity.metric_fid.fid_statistics_to_metric(*(dict(mu=m, sigma=s) for m, s in map(_sample_moments, (gen, real))), verbose=False)
    # torch-fidelity divides the covariances by N - 1.
    ours = frechet_distance(*_sample_moments(gen), *_sample_moments(real))
    assert ours == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    kid = fidelity.metric_kid.kid_features_to_metric(gen, real[:600], kid_subsets=1, kid_subset_size=600, verbose=False, rng_seed=0, kid_kernel="poly",
                                                     kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    assert kernel_distance(gen.numpy(), real[:600].numpy(), 1, 600) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    prc = fidelity.metric_prc.prc_features_to_metric(gen, real, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    assert precision_recall(gen, real) == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)


def _sample_moments(rows):
    rows = rows.numpy().astype(np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def _torch_fidelity():
    """Its functions on features; skipped by name where the package is not installed."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
        try:
            library.define(op)               # torchvision's CUDA wheel asks for them as it is imported on a CPU torch
        except RuntimeError:
            pass
    return pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


# --- image operators

@pytest.mark.parametrize("name", ["integer_translation", "fractional_translation", "fractional_rotation", "fractional_pseudo_rotation"])
def test_image_operators_as_published(name):
    operator = getattr(equivariance, f"apply_{name}")
    image, mask = operator(torch.from_numpy(GOLDEN["eq/x"]), *GOLDEN[f"eq/{name}/args"].tolist())
    assert_close_rel(image, GOLDEN[f"eq/{name}/img"], 2e-4, name)
    assert np.array_equal(mask.numpy(), GOLDEN[f"eq/{name}/mask"])


def wave(size, motion=None):
    """A smooth image, seen through a motion: [1, 1, size, size] float32."""
    p = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    y, x = torch.meshgrid(p, p, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)])
    x, y, _ = torch.einsum("ij,jhw->ihw", torch.eye(3, dtype=torch.float64) if motion is None else motion, points)
    return (torch.sin(9 * x + 14 * y + 0.3) + torch.cos(17 * x - 6 * y)).float()[None, None]


@pytest.mark.parametrize("motion, operator", [
    (equivariance.translation_of(0.13, -0.21), lambda x: equivariance.apply_fractional_translation(x, 0.13, -0.21)),
    (equivariance.translation_of(0.125, -0.25), lambda x: equivariance.apply_integer_translation(x, 0.125, -0.25)),
    (equivariance.rotation_of(0.7), lambda x: apply_fractional_rotation(x, 0.7)),
])
def test_motions_move_as_the_operators_do(motion, operator):
    image, mask = operator(wave(64))
    assert mask.mean() > 0.3
    assert ((image - wave(64, motion)).abs() * mask).max() < 0.02


def test_rotation_filter_passes_constants():
    f = rotation_filter(0.4, up=2)
    assert f.shape == (23, 23) and all(f[i::2, j::2].sum().item() == pytest.approx(1, abs=1e-5) for i in range(2) for j in range(2))


# --- cameras that move with the image

def odd_camera():
    c = camera_for("ffhq", 0.3, 0.1, dtype=torch.float64).to_label().clone()
    c[0, 16:22] = torch.tensor([3.9, 0.1, 0.45, 0.0, 4.3, 0.52])
    return c


def test_shifted_camera_has_the_shifted_ray_map():
    c, size = odd_camera(), 32
    moved = ray_map(equivariance.move_cameras(c, equivariance.translation_of(4 / size, -2 / size)), size, size)
    expected, mask = equivariance.apply_integer_translation(ray_map(c, size, size), 4 / size, -2 / size)
    assert mask.mean() > 0.7 and ((moved - expected) * mask).abs().max() < 1e-12


@pytest.mark.parametrize("angle", [np.pi / 2, 0.7, -2.0])
def test_rolled_camera_has_the_turned_ray_map(angle):
    c, size = odd_camera(), 48
    label = equivariance.move_cameras(c, equivariance.rotation_of(angle))
    check_camera_labels(label.numpy())
    camera = Camera.from_label(label)
    assert torch.allclose(camera.forward, Camera.from_label(c).forward) and torch.allclose(camera.origin, Camera.from_label(c).origin)
    moved, maps = ray_map(label, size, size), ray_map(c, size, size)
    if angle == np.pi / 2:
        assert (moved - torch.rot90(maps, 1, (2, 3))).abs().max() < 1e-12
    expected, mask = apply_fractional_rotation(maps.float(), angle)
    assert mask.mean() > 0.3 and ((moved - expected) * mask).abs().max() < 2e-3


def test_no_motion_leaves_the_camera():
    assert torch.allclose(equivariance.move_cameras(odd_camera(), equivariance.rotation_of(0.0)), odd_camera(), atol=1e-14)
