"""Cameras: reference poses, angles, stored statistics, and what edits of the image do to the camera."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden

import camera_utils
from camera_utils import Camera, camera_for, camera_stats, check_camera_labels, load_camera_file, project
from camera_utils.trajectories import Keyframes, Orbit, Spiral, Sweep, trajectory
from dnnlib.util import UserError

GOLDEN = load_golden("cameras.npz")
CASES = [json.loads(str(case)) for case in GOLDEN["cases"]]


def assert_cameras(camera):
    """Finite, rotations, positive focal lengths, normalised intrinsics."""
    check_camera_labels(camera.to_label().numpy(), allow_geometry=True)


def random_camera(n=5, seed=0, dtype=torch.float64):
    """Cameras with everything in general position: roll, skew, off-centre principal points, two focal lengths."""
    rng = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(n, 3, 3, generator=rng, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    pose = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    lens = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    lens[:, [0, 1], [0, 1]] = 0.8 + 3 * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    lens[:, :2, 2] = 0.2 + 0.6 * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    lens[:, 0, 1] = 0.2 * torch.randn(n, generator=rng, dtype=torch.float64)
    return Camera(pose, lens).to(dtype)


# --- reference numbers

@pytest.mark.parametrize("index", range(len(CASES)))
def test_samplers_match_the_reference(index):
    arguments = dict(CASES[index])
    function = camera_utils
    for part in arguments.pop("sampler").split("."):
        function = getattr(function, part)
    expected = GOLDEN[f"{index}/c2w"] if f"{index}/c2w" in GOLDEN else GOLDEN[f"{index}/intrinsics"]
    result = function(**arguments)
    assert result.dtype == torch.float32
    assert_close_rel(result, expected, 1e-6)


def test_old_notebooks_find_the_samplers():
    from training import camera_utils as old
    assert old.LookAtPoseSampler is camera_utils.LookAtPoseSampler and old.FOV_to_intrinsics is camera_utils.FOV_to_intrinsics


@pytest.mark.parametrize("name, extra, draw", [
    ("GaussianCameraPoseSampler", {}, lambda: torch.randn(6, 1)),
    ("LookAtPoseSampler", dict(lookat_position=(0, 0, 0)), lambda: torch.randn(6, 1)),
    ("UniformCameraPoseSampler", {}, lambda: torch.rand(6, 1) * 2 - 1),
])
def test_samplers_draw_horizontal_then_vertical(name, extra, draw):
    torch.manual_seed(3)
    pose = getattr(camera_utils, name).sample(1.4, 1.7, **extra, horizontal_stddev=0.3, vertical_stddev=0.15, radius=2.7, batch_size=6)
    torch.manual_seed(3)
    yaw = camera_utils.h_to_yaw(draw() * 0.3 + 1.4)
    pitch = camera_utils.v_to_pitch(draw() * 0.15 + 1.7)
    expected = Camera.look_at(yaw[:, 0].double(), pitch[:, 0].double(), 2.7)
    assert_close_rel(pose, expected.cam2world, 2e-6)


def test_truncation_holds_draws_within_two_sigma():
    torch.manual_seed(0)
    arguments = dict(horizontal_mean=math.pi / 2, vertical_mean=math.pi / 2, lookat_position=[0, 0, 0.2], horizontal_stddev=0.2, vertical_stddev=0.1,
                     radius=2.7, batch_size=2000)
    free, held = (Camera(pose, torch.eye(3).repeat(2000, 1, 1)).yaw_pitch()
                  for pose in (camera_utils.LookAtPoseSampler.sample(**arguments),
                               torch.manual_seed(0) and camera_utils.LookAtPoseSampler.sample(**arguments, truncation=True)))
    inside = (free[0].abs() < 0.399) & (camera_utils.pitch_to_v(free[1]).sub(math.pi / 2).abs() < 0.199)
    assert 0.85 < inside.float().mean() < 0.97
    torch.testing.assert_close(held[0][inside], free[0][inside])
    assert held[0].abs().max() == pytest.approx(0.4, abs=1e-5) and free[0].abs().max() > 0.5
    assert camera_utils.pitch_to_v(held[1]).sub(math.pi / 2).abs().max() == pytest.approx(0.2, abs=1e-5)


def test_blender_samplers_have_z_up():
    torch.manual_seed(1)
    sphere = camera_utils.UniformBlenderPoseSampler.sample(radius=1.3, batch_size=4000)
    torch.manual_seed(1)
    h, v = torch.rand(4000, 1), torch.rand(4000, 1)
    torch.testing.assert_close(sphere, camera_utils.UniformBlenderPoseSampler.sample_hv(h, v, radius=1.3, batch_size=4000))
    assert sphere[:, 2, 0].abs().max() < 1e-6 and (sphere[:, 2, 1] < 1e-6).all()                    # right is level, down points down
    torch.testing.assert_close(sphere[:, :3, 3], -1.3 * sphere[:, :3, 2], atol=1e-5, rtol=0)      # they look at the origin
    assert sphere[:, 2, 3].mean().abs() < 0.05 and sphere[:, 2, 3].std() == pytest.approx(1.3 / math.sqrt(3), abs=0.03)
    upper = camera_utils.UniformBlenderPoseSampler.sample_upper_hemi(radius=1, batch_size=20000)
    elevation_deg = torch.rad2deg(torch.asin(upper[:, 2, 3]))
    assert elevation_deg.min() == pytest.approx(-28.65, abs=0.1) and elevation_deg.max() == pytest.approx(61.35, abs=0.6)


def test_poles_are_finite():
    for v in (0, 1):
        assert camera_utils.UniformBlenderPoseSampler.sample_hv(0.3, v).isfinite().all()
    for v in (-1.0, 0.0, math.pi, 5.0):
        assert camera_utils.GaussianCameraPoseSampler.sample(1.5, v).isfinite().all()
    pose = Camera.look_at(0.4, torch.tensor([math.pi / 2, -math.pi / 2]), 2.0, dtype=torch.float64).cam2world[:, :3, :3]
    torch.testing.assert_close(pose @ pose.mT, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))


# --- angles

def test_front_camera_axes():
    camera = Camera.look_at(0, 0, 2.7, focal=4.2647)
    expected = torch.tensor([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    torch.testing.assert_close(camera.cam2world[0], expected, atol=1e-7, rtol=0)
    right, above = (Camera.look_at(yaw, pitch, 2.7).origin[0] for yaw, pitch in ((0.3, 0), (0, 0.3)))
    assert right[0] > 0.7 and above[1] > 0.7


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("pivot", [(0, 0, 0), (0.1, -0.2, 0.3)])
def test_look_at_and_yaw_pitch_agree(up, pivot):
    yaw = torch.linspace(-3.1, 3.1, 41, dtype=torch.float64)
    pitch = torch.linspace(-1.5, 1.5, 41, dtype=torch.float64).flip(0)
    camera = Camera.look_at(yaw, pitch, 1.7, pivot, focal=2.0, up=up)
    assert_cameras(camera)
    for angle, expected in zip(camera.yaw_pitch(up), (yaw, pitch)):
        torch.testing.assert_close(angle, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(camera.origin.norm(dim=1), torch.full_like(yaw, 1.7))
    centre, depth = project(camera, torch.tensor(pivot, dtype=torch.float64).expand(41, 3))
    torch.testing.assert_close(centre, torch.full_like(centre, 0.5))
    assert (depth > 0).all()
    vertical = {"y": 1, "z": 2}[up]
    assert camera.cam2world[:, vertical, 0].abs().max() < 1e-12 and (camera.cam2world[:, vertical, 1] < 0).all()


def test_look_at_broadcasts_and_lets_gradients_through():
    yaw = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    focal = torch.tensor([1.0, 2, 3])
    camera = Camera.look_at(yaw, 0.1, torch.tensor(2.7), pivot=torch.zeros(3, 3), focal=focal, principal_point=(0.4, 0.6), focal_y=5)
    assert len(camera) == 3 and camera.to_label().dtype == torch.float64
    torch.testing.assert_close(camera.intrinsics[1], torch.tensor([[2, 0, 0.4], [0, 5, 0.6], [0, 0, 1]], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a: Camera.look_at(a, a / 3, 2.7, (0, 0, 0.2)).cam2world, yaw)


def test_conversion_of_v_agrees_with_the_sampler():
    for v in (0.2, 1.0, math.pi / 2, 2.5):
        camera = Camera(camera_utils.GaussianCameraPoseSampler.sample(1.1, v, radius=2.0), torch.eye(3)[None])
        yaw, pitch = camera.yaw_pitch()
        assert pitch.item() == pytest.approx(camera_utils.v_to_pitch(v), abs=1e-6)
        assert yaw.item() == pytest.approx(camera_utils.h_to_yaw(1.1), abs=1e-6)
        assert camera_utils.pitch_to_v(camera_utils.v_to_pitch(v)) == pytest.approx(v)
        assert camera_utils.yaw_to_h(camera_utils.h_to_yaw(v)) == pytest.approx(v)
    v = torch.tensor([0.2, 3.0], dtype=torch.float64)
    torch.testing.assert_close(camera_utils.pitch_to_v(camera_utils.v_to_pitch(v)), v)
    assert abs(camera_utils.v_to_pitch(0.5) - (math.pi / 2 - 0.5)) > 0.3                            # v is no angle


# --- labels, batches

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_label_round_trip(dtype):
    labels = random_camera(dtype=dtype).to_label()
    assert labels.shape == (5, 25) and labels.dtype == dtype
    assert torch.equal(Camera.from_label(labels).to_label(), labels)
    assert torch.equal(Camera.from_label(labels[2]).to_label(), labels[2:3])


def test_label_is_row_major():
    camera = Camera.from_label(list(range(25)))
    assert camera.cam2world[0, 0].tolist() == [0, 1, 2, 3] and camera.intrinsics[0, 0].tolist() == [16, 17, 18]


def test_selection_and_joining():
    camera = random_camera()
    assert [len(camera[i]) for i in (0, -1, slice(1, 4), [0, 2], torch.arange(5) > 2)] == [1, 1, 3, 2, 2]
    assert torch.equal(Camera.cat(list(camera)).to_label(), camera.to_label())
    with pytest.raises(IndexError):
        camera[5]
    assert camera.to(torch.float32).to_label().dtype == torch.float32


def test_wrong_shapes_are_named():
    with pytest.raises(AssertionError, match=r"\[3, 24\]"):
        Camera.from_label(torch.zeros(3, 24))
    with pytest.raises(AssertionError, match=r"\[2, 3, 3\]"):
        Camera(torch.zeros(3, 4, 4), torch.zeros(2, 3, 3))
    with pytest.raises(UserError, match="label 1.*no rotation"):
        flat = Camera(torch.diag(torch.tensor([0.0, 0, 0, 1]))[None].double(), torch.eye(3)[None].double())
        assert_cameras(Camera.cat([random_camera(1), flat]))


# --- edits of the image

def test_mirror_is_an_involution_and_sees_the_mirrored_scene():
    camera = random_camera()
    assert_close_rel(camera.mirror().mirror().to_label(), camera.to_label(), 1e-15)
    points = camera.origin[:, None] + torch.randn(5, 7, 3, dtype=torch.float64)
    seen, depth = project(camera, points)
    seen_mirrored, depth_mirrored = project(camera.mirror(), points * torch.tensor([-1.0, 1, 1]))
    torch.testing.assert_close(depth_mirrored, depth)
    torch.testing.assert_close(seen_mirrored, torch.stack([1 - seen[..., 0], seen[..., 1]], dim=-1))
    assert_cameras(camera.mirror())


def test_mirror_turns_yaw_only():
    camera = camera_for("ffhq", 0.3, 0.1, dtype=torch.float64)
    torch.testing.assert_close(camera.mirror().to_label(), camera_for("ffhq", -0.3, 0.1, dtype=torch.float64).to_label())


def test_crop_and_padding_follow_the_image():
    camera = random_camera()
    points = camera.origin[:, None] + torch.randn(5, 7, 3, dtype=torch.float64)
    seen, _ = project(camera, points)
    for left, top, width, height in ((0.25, 0.1, 0.5, 0.7), (-0.5, 0, 2, 1)):
        expected = (seen - torch.tensor([left, top])) / torch.tensor([width, height])
        torch.testing.assert_close(project(camera.crop(left, top, width, height), points)[0], expected)
    back = camera.crop(0.25, 0.1, 0.5, 0.7).crop(-0.5, -0.1 / 0.7, 2, 1 / 0.7)
    torch.testing.assert_close(back.to_label(), camera.to_label())


# --- statistics and named data sets

@pytest.mark.parametrize("name", list(camera_utils.DATASETS))
def test_stats_recover_the_data_set(name):
    row = camera_utils.DATASETS[name]
    rng = np.random.RandomState(0)
    yaw, pitch = (torch.tensor(rng.uniform(*ends, 2000)) for ends in (row.yaw_range, row.pitch_range))
    stats = camera_stats(row.camera(yaw, pitch, principal_point=(0.48, 0.51)).to_label().float().numpy())
    assert json.loads(json.dumps(stats)) == stats
    assert stats["pivot"] == pytest.approx(row.pivot, abs=1e-4) and stats["radius"] == pytest.approx(row.radius, rel=1e-5)
    assert stats["focal"] == pytest.approx(row.focal, rel=1e-5) and stats["principal_point"] == pytest.approx([0.48, 0.51], rel=1e-5)
    assert stats["yaw_range"] == pytest.approx(row.yaw_range, abs=0.02) and stats["pitch_range"] == pytest.approx(row.pitch_range, abs=0.02)
    assert stats["pitch_mean"] == pytest.approx(pitch.mean().item(), abs=1e-4)
    assert stats["num_labels"] == 2000 and len(stats["examples"]) == 256 and stats["up"] == row.up
    rebuilt = Camera.from_stats(stats, yaw, pitch, dtype=torch.float64)
    assert_close_rel(rebuilt.to_label(), row.camera(yaw, pitch, principal_point=(0.48, 0.51)).to_label(), 1e-4)


def test_stats_of_few_or_equal_labels():
    label = camera_for("ffhq", 0.2, 0.1).to_label()
    stats = camera_stats(label.repeat(3, 1))
    assert stats["yaw_range"] == pytest.approx([0.2, 0.2], abs=1e-6) and len(stats["examples"]) == 3
    assert_close_rel(Camera.from_stats(stats, 0.2, 0.1).to_label(), label, 1e-5)                      # any pivot on the axis will do
    assert camera_stats(label[0:1].tolist())["num_labels"] == 1
    rolled = camera_for("ffhq", 0.0, 0.0)
    roll = torch.tensor([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert camera_stats(Camera(rolled.cam2world @ roll, rolled.intrinsics).to_label())["up"] == "y"   # though no part of right is along z


def test_stats_of_cameras_behind_and_of_a_world_with_z_up():
    yaw = torch.linspace(math.pi - 0.5, math.pi + 0.5, 11)
    stats = camera_stats(camera_for("ffhq", yaw, 0).to_label())
    assert np.ptp(stats["yaw_range"]) == pytest.approx(1, abs=1e-5) and abs(abs(stats["yaw_mean"]) - math.pi) < 1e-5
    torch.manual_seed(0)
    pose = camera_utils.UniformBlenderPoseSampler.sample_upper_hemi(radius=1.3, batch_size=500)
    camera = Camera(pose, camera_utils.FOV_to_intrinsics(45).repeat(500, 1, 1))
    stats = camera_stats(camera.to_label())
    assert stats["up"] == "z"
    assert_close_rel(Camera.from_stats(stats, *camera.yaw_pitch("z")).cam2world, pose, 1e-5)


# What stands at these angles, by hand: the axis of the position, and right, down and forward of the camera.
STANDS = {
    ("y", 0.0): ((0, 0, 1), (1, 0, 0), (0, -1, 0), (0, 0, -1)),
    ("y", 0.5): ((1, 0, 0), (0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    ("z", 0.0): ((0, -1, 0), (1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ("z", 0.5): ((1, 0, 0), (0, 1, 0), (0, 0, -1), (-1, 0, 0)),
}


@pytest.mark.parametrize("name, up", dict(ffhq="y", afhq="y", cars="z", heads="y", **{"procedural-cars": "y"}).items())
def test_each_data_set_has_its_own_up_axis(name, up):
    row = camera_utils.dataset_cameras(name)
    assert row.up == up
    for turn in (0.0, 0.5):
        position, *axes = torch.tensor(STANDS[up, turn], dtype=torch.float64)
        camera = dataclasses.replace(row, pivot=(0, 0, 0)).camera(turn * math.pi, 0.0, dtype=torch.float64)
        expected = torch.cat([torch.stack([*axes, row.radius * position], dim=1), torch.tensor([[0, 0, 0, 1.0]])])
        torch.testing.assert_close(camera.cam2world[0], expected, atol=1e-12, rtol=0)
    yaw, pitch = torch.tensor([[-2.0, 0.4, 3.0], [0.1, 0.9, -0.3]], dtype=torch.float64)
    for angle, wanted in zip(row.camera(yaw, pitch).yaw_pitch(row.up), (yaw, pitch)):
        torch.testing.assert_close(angle, wanted)
    mirrored = row.camera(yaw, pitch).mirror()                       # the plane of symmetry is x = 0 in both worlds
    torch.testing.assert_close(mirrored.to_label(), row.camera(-yaw, pitch).to_label())


def test_cars_are_the_cameras_of_the_released_sampler():
    """EG3D's SRN cars: UniformBlenderPoseSampler at radius 1.3, a diagonal field of view of 45 degrees."""
    h, v = torch.rand(2, 50, 1, generator=torch.Generator().manual_seed(0))
    pose = camera_utils.UniformBlenderPoseSampler.sample_hv(h, v, radius=1.3, batch_size=50)
    yaw = 2 * math.pi * h[:, 0] + math.pi / 2                        # counted from -y, the sampler's azimuth from +x
    cars = camera_for("cars", yaw, torch.asin(2 * v[:, 0] - 1))
    torch.testing.assert_close(cars.cam2world, pose, atol=2e-5, rtol=0)
    torch.testing.assert_close(cars.intrinsics[0], camera_utils.FOV_to_intrinsics(45), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["cars", "procedural-cars"])
@pytest.mark.parametrize("path", ["orbit", "spiral", "sweep"])
def test_paths_stay_upright_in_the_world_of_their_data_set(name, path):
    row = camera_utils.dataset_cameras(name)
    camera = trajectory(path, row.camera, row.yaw_range, row.pitch_range)(torch.linspace(0, 1, 40))
    vertical = {"y": 1, "z": 2}[row.up]
    assert camera.cam2world[:, vertical, 0].abs().max() < 1e-5 and (camera.cam2world[:, vertical, 1] < 0).all()
    assert (camera.origin[:, vertical] > 0).all()                   # above the ground


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("yaw_half", [0.0, 0.02, 0.1, 0.4, 3.0])
@pytest.mark.parametrize("pitch", [(-0.1, 0.1), (0.2, 0.3), (-0.4, -0.2)])
def test_stats_tell_the_up_axis_of_few_and_of_narrow_views(up, yaw_half, pitch):
    for count in (1, 2, 60):
        yaw, elevation = torch.linspace(-yaw_half, yaw_half, count), torch.linspace(*pitch, count)
        stats = camera_stats(Camera.look_at(yaw, elevation, 1.3, focal=1.7, up=up).to_label())
        assert stats["up"] == up
        assert stats["pitch_mean"] == pytest.approx(elevation.mean().item(), abs=1e-5)


def test_differences_from_statistics_are_listed():
    row = camera_utils.dataset_cameras("cars")
    stats = camera_stats(row.camera(torch.linspace(-3, 3, 50), torch.linspace(0.1, 1, 50)).to_label())
    assert row.differences(stats) == []
    assert row.differences(dict(stats, radius=1.31, focal=1.69)) == []                  # as rounding and means have it
    assert camera_utils.dataset_cameras("procedural-cars").differences(stats) == [("up axis", "y", "z")]
    assert camera_utils.dataset_cameras("ffhq").differences(stats) == [("up axis", "y", "z"), ("radius", "2.7", "1.3"),
                                                                      ("focal length", "4.2647", "1.707")]
    assert camera_utils.dataset_cameras("heads").differences({}) == []                  # of an older snapshot


def test_unknown_data_set_is_answered_with_the_closest():
    with pytest.raises(UserError, match="'fhq'.*did you mean ffhq"):
        camera_for("fhq", 0, 0)
    assert camera_for("cars", 1.0, 0.5).origin.norm().item() == pytest.approx(1.3, abs=1e-6)


# --- paths

def make_path(name):
    make = functools.partial(camera_for, "ffhq", dtype=torch.float64)
    return trajectory(name, make, (-0.4, 0.6), (-0.2, 0.1))


@pytest.mark.parametrize("name", ["orbit", "spiral", "sweep"])
def test_paths_stay_within_their_ranges_and_close(name):
    path = make_path(name)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    camera = path(t)
    assert_cameras(camera)
    yaw, pitch = camera.yaw_pitch()
    for angle, (low, high) in ((yaw, (-0.4, 0.6)), (pitch, (-0.2, 0.1))):
        assert low - 1e-9 <= angle.min() < low + 0.05 and high - 0.05 < angle.max() <= high + 1e-9
    assert path.closed == bool(torch.allclose(camera.to_label()[0], camera.to_label()[-1], atol=1e-12))
    fine = path(torch.linspace(0, 1, 2001, dtype=torch.float64))
    steps, fine_steps = ((origin[1:] - origin[:-1]).norm(dim=1) for origin in (camera.origin, fine.origin))
    assert fine_steps.max().item() == pytest.approx(steps.max().item() / 10, rel=0.05)                # a jump would not shrink


def test_full_turn():
    turn = Orbit(functools.partial(camera_for, "cars"), (-math.pi, math.pi), (0.1, 0.5))
    camera = turn(torch.linspace(0, 1, 9))
    torch.testing.assert_close(camera.to_label()[0], camera.to_label()[-1], atol=1e-5, rtol=0)
    assert camera.origin[2, 0] > 1.2                                                                 # a quarter: towards +x
    torch.testing.assert_close(camera.yaw_pitch("z")[1], torch.full([9], 0.3), atol=1e-5, rtol=0)
    steps = (camera.origin[1:] - camera.origin[:-1]).norm(dim=1)
    assert steps.max() - steps.min() < 1e-5


def test_unknown_path_is_answered_with_the_closest():
    with pytest.raises(UserError, match="did you mean spiral"):
        trajectory("spirale", camera_for, (0, 1))
    assert isinstance(make_path("sweep"), Sweep) and isinstance(make_path("spiral"), Spiral)


def test_keyframes_pass_through_their_cameras(tmp_path):
    camera = random_camera(4)
    (tmp_path / "c.json").write_text(json.dumps(camera.to_label().tolist()))
    for closed in (False, True):
        path = Keyframes(camera, closed)
        knots = torch.linspace(0, 1, 5, dtype=torch.float64)[:4] if closed else torch.linspace(0, 1, 4, dtype=torch.float64)
        torch.testing.assert_close(path(knots).to_label(), camera.to_label(), atol=1e-6, rtol=0)
        assert_cameras(path(torch.linspace(0, 1, 50, dtype=torch.float64)))
        end = path(torch.ones(1, dtype=torch.float64)).to_label()
        torch.testing.assert_close(end, camera.to_label()[0 if closed else -1][None], atol=1e-6, rtol=0)
    loaded = Keyframes.from_file(tmp_path / "c.json")
    torch.testing.assert_close(loaded(torch.tensor([0.0])).to_label(), camera.to_label()[:1].float())


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-7, math.pi])
def test_keyframes_turn_evenly(angle):
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[1, :3, :3] = torch.matrix_exp(angle * cross)
    path = Keyframes(Camera(pose, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)))
    turned = path(torch.tensor([0.25, 0.75], dtype=torch.float64)).cam2world[:, :3, :3]
    cosine = (turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    torch.testing.assert_close(cosine, torch.cos(torch.tensor([angle / 4, angle * 3 / 4], dtype=torch.float64)), atol=1e-9, rtol=0)
    if angle < 3.14:
        torch.testing.assert_close(turned[0], torch.matrix_exp(angle / 4 * cross), atol=1e-8, rtol=0)


# --- camera files

def test_camera_files(tmp_path):
    labels = random_camera(3, dtype=torch.float32).to_label()
    path = tmp_path / "cameras.json"
    for data, expected in ((labels[0].tolist(), labels[:1]), (labels.tolist(), labels),
                           ({"labels": [[f"{i}.png", label] for i, label in enumerate(labels.tolist())]}, labels)):
        path.write_text(json.dumps(data))
        assert torch.equal(load_camera_file(path).to_label(), expected)


@pytest.mark.parametrize("text, said", [
    ("{", "not JSON"), ("[]", "no camera"), ("3", "holds 3"), ('{"label": []}', 'under "labels"'), ('{"labels": null}', 'under "labels"'),
    ("[1, 2, 3]", "3 numbers, expected 25"), ('[["a"]]', "not a list of numbers"), ("[[1, 2], 3]", "2 numbers"), ("[true]", "not a list"),
    ('{"labels": [["a.png", [1, 2]]]}', "a.png: 2 numbers"), (json.dumps([float("nan")] * 25), "nan"), (json.dumps([10 ** 400] * 25), "is inf"),
    (json.dumps([0.0] * 25), "last row"),
])
def test_bad_camera_files_end_with_one_line(tmp_path, text, said):
    path = tmp_path / "cameras.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_camera_file(path)
    assert str(path) in error.value.message and said in error.value.message and "\n" not in error.value.message


def test_missing_camera_file(tmp_path):
    with pytest.raises(UserError, match="none.json"):
        load_camera_file(tmp_path / "none.json")
