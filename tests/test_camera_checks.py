"""The diagnosis of camera labels: every mistake is named, and no valid set is refused."""

import time

import numpy as np
import pytest
import torch
from test_cameras import random_camera

from camera_utils import Camera, FOV_to_intrinsics, UniformBlenderPoseSampler, camera_for, check_camera_labels, dataset_cameras
from camera_utils.checks import closest_point_to_axes
from dnnlib.util import UserError

TO_OPENGL = np.diag([1.0, -1, -1, 1])


def valid(name, count=200, seed=0, yaw=None, pitch=None, pivot=None):
    """float32 labels [M, 25] of a named data set, angles uniform over its ranges unless given."""
    rng, row = np.random.RandomState(seed), dataset_cameras(name)
    yaw, pitch = (torch.tensor(rng.uniform(*(ends if ends is not None else default), count)) for ends, default in
                  ((yaw, row.yaw_range), (pitch, row.pitch_range)))
    camera = Camera.look_at(yaw, pitch, row.radius, row.pivot if pivot is None else pivot, row.focal, up=row.up)
    return camera.to_label().float().numpy()


def with_pose(labels, change):
    """`change` maps cam2world [M, 4, 4] to what is stored instead."""
    pose = change(labels[:, :16].reshape(-1, 4, 4).astype(np.float64))
    return np.concatenate([pose.reshape(-1, 16), labels[:, 16:]], axis=1).astype(np.float32)


def names_of(labels):
    return [f"00000/img{i:08d}.png" for i in range(len(labels))]


def refusal(labels, **kwargs):
    with pytest.raises(UserError) as error:
        check_camera_labels(labels, names_of(labels), **kwargs)
    message = error.value.message
    assert "\n" not in message and len(message) < 450, message
    return message


# --- values

def changed(index, values, labels=None):
    labels = valid("ffhq") if labels is None else labels
    labels[7, index] = values
    return labels


@pytest.mark.parametrize("labels, said", [
    (changed(3, np.nan), "number 4 of the 25 in its camera label is nan"),
    (changed(24, np.inf), "number 25 of the 25 in its camera label is inf"),
    (changed(slice(0, 16), np.eye(4).ravel() * 2), "last row of its camera matrix is (0, 0, 0, 2)"),
    (changed(slice(0, 16), camera_for("ffhq", 0.3, 0.1).cam2world[0].T.reshape(-1)), "looks transposed"),
    (changed(slice(0, 3), (0.5, 0, 0)), "no rotation"),
    (changed(slice(0, 16), np.diag([0, 0, 0, 1.0]).ravel()), "no rotation"),
    (changed(slice(0, 16), np.diag([3, 3, 3, 1.0]).ravel()), "scales by 3"),
    (changed(slice(0, 16), np.diag([1, 1, -1, 1.0]).ravel()), "mirrors (determinant -1"),
    (changed(slice(16, 25), (1365, 0, 256, 0, 1365, 256, 0, 0, 1)), "look like pixels (focal length (1365, 1365), principal point (256, 256))"),
    (changed(slice(16, 25), (1365, 0, 0.5, 0, 1365, 0.5, 0, 0, 1)), "look like pixels"),
    (changed(slice(16, 25), (4.26, 0, 16, 0, 4.26, 16, 0, 0, 1)), "look like pixels"),
    (changed(slice(16, 25), (4.26, 0, 0, 0, 4.26, 0, 0.5, 0.5, 1)),
     "last row of its intrinsics is (0.5, 0.5, 1), expected (0, 0, 1); it looks transposed"),
    (changed(slice(16, 25), 0), "last row of its intrinsics is (0, 0, 0)"),
    (changed(slice(16, 25), (0, 0, 0.5, 0, 0, 0.5, 0, 0, 1)), "focal length is (0, 0)"),
    (changed(slice(16, 25), (4.26, 0, 0.5, 0, -4.26, 0.5, 0, 0, 1)), "focal length is (4.26, -4.26)"),
    (changed(slice(16, 25), (4.26, 0, 0.5, 0.2, 4.26, 0.5, 0, 0, 1)), "row 1, column 0 of its intrinsics is 0.2"),
])
def test_wrong_values_are_named_with_their_image(labels, said):
    for kwargs in ({}, dict(allow_geometry=True)):                  # the flag is for judgements, not for values
        message = refusal(labels, **kwargs)
        assert message.startswith("00000/img00000007.png: ") and said in message
        assert "--camera-check" not in message


def test_the_first_image_is_named_and_the_others_counted():
    labels = valid("ffhq")
    labels[[5, 9, 11], 3] = np.nan
    message = refusal(labels)
    assert message.startswith("00000/img00000005.png") and "2 further" in message
    with pytest.raises(UserError, match="^label 5: "):
        check_camera_labels(labels)


def test_labels_of_another_length():
    with pytest.raises(UserError, match=r"\[3, 16\].*expected 25 numbers"):
        check_camera_labels(np.zeros([3, 16]))


def test_rounded_labels_pass():
    assert check_camera_labels(np.round(valid("ffhq"), 3)) == []


# --- geometry: mistakes

SETS = {
    "heads": dict(name="heads"), "ffhq": dict(name="ffhq"), "cars": dict(name="cars"),
    "procedural cars": dict(name="procedural-cars"), "few": dict(name="ffhq", count=10),
    "around": dict(name="heads", yaw=(-np.pi, np.pi), pitch=(-1.2, 1.2)), "from the side": dict(name="heads", yaw=(0.9, 1.6)),
    "one latitude": dict(name="procedural-cars", pitch=(0.5, 0.5)),
    "off-centre": dict(name="cars", pivot=(0.1, -0.15, 0.1)),
}


def z_up(count=300, seed=0):
    torch.manual_seed(seed)
    return Camera(UniformBlenderPoseSampler.sample_upper_hemi(1.3, count), FOV_to_intrinsics(45).repeat(count, 1, 1)).to_label().numpy()


def noisy(labels, seed=0, angle=0.01):
    """Gaze and roll shaken by about `angle` [rad], as estimated poses are."""
    rng = np.random.RandomState(seed)

    def shake(pose):
        turns = torch.tensor(rng.randn(len(pose), 3) * angle)
        cross = torch.linalg.cross(turns[:, None].expand(-1, 3, 3), torch.eye(3, dtype=torch.float64).expand(len(pose), 3, 3), dim=2).mT
        pose[:, :3, :3] = pose[:, :3, :3] @ torch.matrix_exp(cross).numpy()
        return pose

    return with_pose(labels, shake)


@pytest.mark.parametrize("key", SETS)
@pytest.mark.parametrize("shaken", [False, True])
def test_world_to_camera_is_named(key, shaken):
    labels = valid(**SETS[key])
    labels = with_pose(noisy(labels) if shaken else labels, np.linalg.inv)
    message = refusal(labels)
    assert "look like world-to-camera:" in message and "00000/img00000000.png" in message and "--camera-check=off" in message
    check_camera_labels(labels, names_of(labels), allow_geometry=True)


@pytest.mark.parametrize("key", SETS)
@pytest.mark.parametrize("shaken", [False, True])
def test_opengl_axes_are_named(key, shaken):
    labels = valid(**SETS[key])
    labels = with_pose(noisy(labels) if shaken else labels, lambda pose: pose @ TO_OPENGL)
    message = refusal(labels)
    assert "look like OpenGL axes" in message and "--camera-check=off" in message
    assert check_camera_labels(labels, names_of(labels), allow_geometry=True) == []
    assert "outward" in check_camera_labels(labels, names_of(labels), allow_outward=True)[0]


@pytest.mark.parametrize("key", SETS)
def test_both_mistakes_at_once_are_named(key):
    labels = with_pose(valid(**SETS[key]), lambda pose: np.linalg.inv(pose @ TO_OPENGL))
    assert "world-to-camera with OpenGL axes" in refusal(labels)


@pytest.mark.parametrize("pivot", [(5, 3, 2), (0, 6, 0)])
def test_world_to_camera_is_named_where_the_scene_is_far_from_the_origin(pivot):
    labels = valid("heads", yaw=(-np.pi, np.pi))
    labels[:, [3, 7, 11]] += np.array(pivot, dtype=np.float32)
    assert "look like world-to-camera:" in refusal(with_pose(labels, np.linalg.inv))


def test_mistakes_in_a_world_with_z_up():
    assert check_camera_labels(z_up()) == []
    assert "look like world-to-camera:" in refusal(with_pose(z_up(), np.linalg.inv))
    assert "look like OpenGL axes" in refusal(with_pose(z_up(), lambda pose: pose @ TO_OPENGL))


# --- geometry: nothing wrong

@pytest.mark.parametrize("key", SETS)
@pytest.mark.parametrize("seed", range(4))
def test_valid_sets_pass(key, seed):
    labels = valid(**SETS[key], seed=seed)
    for angle in (0.0, 0.01, 0.1):
        assert check_camera_labels(noisy(labels, seed, angle)) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
def test_small_sets_pass(count):
    for seed in range(40):
        for name in ("ffhq", "cars", "procedural-cars"):
            assert check_camera_labels(valid(name, count=count, seed=seed)) == []
        random = random_camera(count, seed=seed, dtype=torch.float32)
        check_camera_labels(random.to_label().numpy())              # no error: nothing can be said of them


def test_random_valid_sets_pass():
    """Any pivot near the origin, part of the sphere, number of cameras and noise."""
    for seed in range(250):
        rng = np.random.RandomState(seed)
        count, noise = int(rng.choice([4, 5, 8, 20, 200])), rng.choice([0, 0.01, 0.05])
        middle, half = rng.uniform((-np.pi, -1.2), (np.pi, 1.2)), rng.uniform((0.1, 0.02), (np.pi, 0.3))
        (yaw, pitch), pivot = np.stack([middle - half, middle + half], axis=1), rng.randn(3) * rng.choice([0, 0.1, 0.3])
        name = rng.choice(["heads", "cars", "procedural-cars"])
        labels = noisy(valid(name, count, seed, yaw, pitch, pivot), seed, noise)
        assert check_camera_labels(labels) == [], seed


@pytest.mark.parametrize("count", [5, 8, 12])
def test_narrow_shaken_sets_pass(count):
    """Axes that differ little more than they are wrong meet anywhere: nothing follows from where."""
    for seed in [64, 73, 91, 190, 257, 482, *range(100)]:
        labels = valid("cars", count, seed, yaw=(-0.3, 0.3), pitch=(0.2, 0.3))
        assert check_camera_labels(noisy(labels, seed, 0.05)) == [], seed


def test_equal_and_parallel_cameras_pass():
    one = valid("ffhq", count=1)
    assert check_camera_labels(np.repeat(one, 50, axis=0)) == []
    assert check_camera_labels(with_pose(np.repeat(one, 50, axis=0), lambda pose: pose @ TO_OPENGL)) == []          # cannot be told
    parallel = np.repeat(one, 50, axis=0)
    parallel[:, [3, 7, 11]] += np.random.RandomState(0).randn(50, 3)
    assert check_camera_labels(parallel) == []


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 1.6, 0), (0.3, 1, 0.5), (2, -1, 0.1), (5, 0, 5)])
def test_a_panorama_from_one_place_passes(place):
    labels = with_pose(valid("cars", count=400, yaw=(-np.pi, np.pi), pitch=(-0.7, 0.7)), lambda pose: np.concatenate([
        np.concatenate([pose[:, :3, :3], np.broadcast_to(np.array(place)[:, None], (len(pose), 3, 1))], axis=2), pose[:, 3:]], axis=1))
    assert check_camera_labels(labels) == []


def test_a_rig_that_looks_outward_passes_with_a_remark():
    """Cameras on a ring that turn their backs to its centre, upright, in OpenCV axes."""
    labels = with_pose(valid("procedural-cars"), lambda pose: pose @ np.diag([-1.0, 1, -1, 1]))
    assert labels[:, 5].mean() < 0
    assert "outward" in check_camera_labels(labels)[0]
    assert "look like world-to-camera:" in refusal(with_pose(labels, np.linalg.inv))


@pytest.mark.parametrize("pivot", [(5, 3, 2), (0, 0, 5), (-4, 0.5, 0), (0, 6, 0), (1, 1, -7)])
def test_scenes_far_from_the_world_origin_pass(pivot):
    for seed, yaw in ((0, (-np.pi, np.pi)), (1, (-0.4, 0.4))):
        labels = valid("heads", count=300, seed=seed, yaw=yaw)
        labels[:, [3, 7, 11]] += np.array(pivot, dtype=np.float32)
        assert check_camera_labels(labels) == []


def test_a_walk_through_a_scene_passes():
    """Positions and gazes without a common point."""
    for seed in range(30):
        rng = np.random.RandomState(seed)
        labels = valid("procedural-cars", count=100, seed=seed, yaw=(-np.pi, np.pi), pitch=(-0.3, 0.3))
        labels[:, [3, 7, 11]] = rng.uniform(-5, 5, [100, 3]) * (1, 0.2, 1)
        assert check_camera_labels(labels) == []


# --- the rest

def test_the_closest_point_of_axes():
    labels = valid("cars", pivot=(0.1, 0.2, -0.3)).astype(np.float64)
    pose = labels[:, :16].reshape(-1, 4, 4)
    point, spread = closest_point_to_axes(pose[:, :3, 3], pose[:, :3, 2])
    np.testing.assert_allclose(point, (0.1, 0.2, -0.3), atol=1e-5)
    assert spread > 0.3
    point, spread = closest_point_to_axes(np.array([[1.0, 2, 3]]), np.array([[0, 0, 1.0]]))
    np.testing.assert_allclose(point, (1, 2, 0), atol=1e-12)
    assert spread < 1e-12


def test_a_large_set_is_judged_at_once():
    labels = valid("ffhq", count=70_000)
    names = names_of(labels)
    start = time.process_time()
    check_camera_labels(labels, names)
    assert time.process_time() - start < 2                         # measured: 0.13 s
