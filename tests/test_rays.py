"""Ray maps: the published numbers, and for pinhole the geometry of a camera."""

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden
from test_cameras import random_camera

from camera_utils import (
    Camera,
    camera_for,
    image_grid,
    origin_direction,
    plucker,
    project,
    ray_basis,
    ray_directions,
    ray_map,
    ray_origins,
    two_plane,
)
from dnnlib.util import UserError
from training import plucker as published

GOLDEN = load_golden("rays_released.npz")
C2W, K = torch.tensor(GOLDEN["c2w"]), torch.tensor(GOLDEN["intrinsics"])
SIZES = [(4, 4), (5, 3), (16, 9), (1, 1), (8, 64)]


# --- published

@pytest.mark.parametrize("size", [4, 8, 17])
@pytest.mark.parametrize("kind", ["plucker", "origin_dir", "two_plane"])
def test_published_embeddings_match_the_reference(kind, size):
    function = getattr(published, f"{kind}_embedding")
    assert_close_rel(function(size, size, K, C2W), GOLDEN[f"{kind}/{size}"], 1e-6)


@pytest.mark.parametrize("size", [4, 8, 17])
def test_published_map_matches_the_reference(size):
    label = Camera(C2W, K).to_label()
    assert_close_rel(ray_map(label, size, size, "published"), GOLDEN[f"plucker/{size}"], 1e-6)
    assert torch.equal(ray_map(label, size, size, "published", sampling_rate=3.0), ray_map(label, size, size, "published"))


def test_published_map_is_as_accurate_where_it_is_large():
    label = Camera(C2W, K).to_label()
    exact = ray_map(label.double(), 512, 512, "published")
    assert_close_rel(ray_map(label, 512, 512, "published"), exact, 1e-6)
    assert_close_rel(published.plucker_embedding(512, 512, K, C2W), exact, 1e-6)


def test_intrinsics_of_zero_count_as_the_identity():
    expected = GOLDEN["plucker_zero_intrinsics/8"]
    assert_close_rel(published.plucker_embedding(8, 8, torch.zeros_like(K), C2W), expected, 1e-6)
    assert_close_rel(ray_map(Camera(C2W, torch.zeros_like(K)).to_label(), 8, 8, "published"), expected, 1e-6)
    assert_close_rel(published.plucker_embedding(8, 8, torch.eye(3).repeat(3, 1, 1), C2W), expected, 1e-6)
    label = Camera(C2W, torch.zeros_like(K)).to_label().requires_grad_()
    ray_map(label, 4, 4, "published").sum().backward()
    assert label.grad.isfinite().all() and label.grad[:, :16].abs().max() > 0


def test_published_maps_are_square():
    for call in (lambda: ray_map(Camera(C2W, K).to_label(), 4, 6, "published"), lambda: published.get_rays(4, 6, K, C2W)):
        with pytest.raises(UserError, match="4 x 6"):
            call()


def test_published_is_the_transposed_camera_with_coordinates_in_pixels():
    """The convention from its definition, ray by ray."""
    camera = random_camera(2)
    got = ray_map(camera.to_label(), 6, 6, "published")
    for n in range(2):
        for i, j in ((0, 0), (5, 1), (2, 4)):
            point = torch.tensor([i + 0.5, j + 0.5, 1], dtype=torch.float64)
            direction = camera.cam2world[n, :3, :3] @ torch.linalg.solve(camera.intrinsics[n], point)
            direction = direction / direction.norm()
            torch.testing.assert_close(got[n, :, i, j], torch.cat([direction, torch.linalg.cross(camera.origin[n], direction)]))


def test_get_rays_and_jitter():
    origins, directions = published.get_rays(8, 8, K, C2W)
    assert torch.equal(origins[:, :, 3, 5], C2W[:, :3, 3]) and origins.shape == directions.shape == (3, 3, 8, 8)
    assert_close_rel(plucker(origins, directions), GOLDEN["plucker/8"], 1e-6)
    torch.manual_seed(0)
    x, y = image_grid(8, 8, "published", jitter=True)
    cells = torch.arange(8.0)
    assert ((x - cells[:, None]) >= 0).all() and ((x - cells[:, None]) < 1).all() and (y - cells[None, :]).min() >= 0 and (y - cells).max() < 1
    assert (x - cells[:, None]).std() > 0.2
    for function in (published.plucker_embedding, published.origin_dir_embedding):
        assert not torch.equal(function(8, 8, K, C2W, jitter=True), function(8, 8, K, C2W))


# --- pinhole

def pixel_rays(camera, height, width, sampling_rate=None):
    """Directions and moments of the pinhole map, [N, H, W, 3] each."""
    rays = ray_map(camera.to_label(), height, width, sampling_rate=sampling_rate).permute(0, 2, 3, 1)
    direction, moment = rays[..., :3], rays[..., 3:]
    return direction, moment


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("sampling_rate", [None, 3.0, 40.0])
def test_a_point_on_the_ray_projects_to_the_pixel_centre(height, width, sampling_rate):
    """From the Plücker coordinates alone: the ray's point nearest to the world origin is d x m."""
    camera = random_camera()
    direction, moment = pixel_rays(camera, height, width, sampling_rate)
    nearest = torch.linalg.cross(direction, moment, dim=-1)
    along = ((camera.origin[:, None, None] - nearest) * direction).sum(dim=-1, keepdim=True)
    image, depth = project(camera, nearest + (along + 1.7) * direction)
    assert (depth > 0).all()
    rows, cols = np.arange(height) + 0.5, np.arange(width) + 0.5
    if sampling_rate is None:
        pixels = image * torch.tensor([width, height])
    else:
        pixels = (image - 0.5) * sampling_rate + torch.tensor([width / 2, height / 2])
    torch.testing.assert_close(pixels, torch.tensor(np.stack(np.meshgrid(cols, rows), axis=-1)).expand(5, -1, -1, -1), atol=1e-9, rtol=0)


def test_the_half_pixel_is_added_before_the_division():
    camera = camera_for("ffhq", 0, 0, dtype=torch.float64)
    corner = ray_map(camera.to_label(), 4, 8)[0, :3, 0, 0]
    expected = torch.tensor([(0.5 / 8 - 0.5) / 4.2647, -(0.5 / 4 - 0.5) / 4.2647, -1], dtype=torch.float64)
    torch.testing.assert_close(corner, expected / expected.norm())


def test_all_sizes_share_one_frustum():
    """The mean of a pixel's four quarters, as image points, is its centre; and a canvas with a margin contains the image's map."""
    label = random_camera().to_label()
    (x, y), (fine_x, fine_y) = image_grid(5, 7), image_grid(10, 14)
    torch.testing.assert_close(fine_x.reshape(7, 2).mean(dim=1), x[0])
    torch.testing.assert_close(fine_y.reshape(5, 2).mean(dim=1), y[:, 0])
    image, canvas = ray_map(label, 16, 16), ray_map(label, 36, 36, sampling_rate=16)
    torch.testing.assert_close(canvas[:, :, 10:26, 10:26], image)


def test_directions_have_unit_length_over_the_channels():
    rays = ray_map(random_camera(2).to_label(), 3, 5)
    torch.testing.assert_close(rays[:, :3].norm(dim=1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert (rays[:, :3].norm(dim=2) - 1).abs().max() > 0.1


def test_moment_is_origin_cross_direction():
    camera = random_camera()
    rays = ray_map(camera.to_label(), 4, 6).numpy()
    expected = np.cross(camera.origin.numpy()[:, None, None], rays[:, :3].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert_close_rel(rays[:, 3:], expected, 1e-12)
    assert np.abs(rays[:, 3:] - camera.origin.numpy()[:, :, None, None]).max() > 0.1
    moved = camera.cam2world.clone()
    moved[:, :3, 3] += 0.7 * torch.tensor(rays[:, :3, 1, 2])                                       # along the ray of one pixel
    torch.testing.assert_close(ray_map(Camera(moved, camera.intrinsics).to_label(), 4, 6)[:, :, 1, 2], torch.tensor(rays[:, :, 1, 2]))


def test_a_longer_lens_sees_less():
    wide, tele = (ray_map(Camera.look_at(0, 0, 2.7, focal=f, dtype=torch.float64).to_label(), 8, 8) for f in (1.0, 4.0))
    off_axis = [rays[0, :3, 0, 0] @ torch.tensor([0, 0, -1.0], dtype=torch.float64) for rays in (wide, tele)]
    assert off_axis[0] < 0.9 and off_axis[1] > 0.98
    ffhq = torch.rad2deg(torch.arccos(-ray_map(camera_for("ffhq", 0, 0, dtype=torch.float64).to_label(), 512, 512)[0, 2]))
    assert ffhq.max() == pytest.approx(9.4, abs=0.05)                                               # half the diagonal field of view


def test_published_rays_leave_the_frustum():
    """The numbers of docs/conventions.md and of the design."""
    camera = camera_for("ffhq", 0, 0, dtype=torch.float64)
    off_axis = torch.rad2deg(torch.arccos(-ray_map(camera.to_label(), 512, 512, "published")[0, 2]))
    assert (off_axis > 80).double().mean().item() == pytest.approx(0.998, abs=5e-4)


def test_mirrored_rays_are_reflected_rays():
    camera = random_camera()
    rays = ray_map(camera.to_label(), 4, 6)
    # Reflection in x turns d into S d; o x d, an axial vector, turns into -S (o x d).
    reflected = rays.flip(3) * torch.tensor([-1, 1, 1, 1, -1, -1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(ray_map(camera.mirror().to_label(), 4, 6), reflected)


def test_rays_of_a_crop_are_a_crop_of_the_rays():
    camera = random_camera()
    rays = ray_map(camera.to_label(), 8, 10)
    torch.testing.assert_close(ray_map(camera.crop(0.2, 0.25, 0.5, 0.5).to_label(), 4, 5), rays[:, :, 2:6, 2:7])
    padded = ray_map(camera.crop(-0.1, -0.5, 1.2, 2).to_label(), 16, 12)
    torch.testing.assert_close(padded[:, :, 4:12, 1:11], rays)


# --- any device, dtype and gradient

@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_gradients_reach_the_camera(convention):
    label = random_camera(2).to_label().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: ray_map(c, 3, 3, convention), label)
    assert torch.autograd.gradgradcheck(lambda c: ray_map(c, 2, 2, convention), label)
    used = torch.autograd.grad(ray_map(label, 3, 3, convention).square().cumsum(0).sum() + ray_map(label, 3, 3, convention).sum(), label)[0]
    # All of the pose and of the upper triangle of K matter, the constant rows do not.
    constant = torch.zeros(25, dtype=torch.bool)
    constant[[12, 13, 14, 15, 19, 22, 23, 24]] = True
    assert (used[:, constant] == 0).all() and (used[:, ~constant].abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_the_dtype_asked_for_with_float32_inside(convention, dtype):
    label = random_camera().to_label().to(dtype)
    rays = ray_map(label, 64, 64, convention)
    assert rays.dtype == dtype
    exact = ray_map(label.double(), 64, 64, convention)
    assert_close_rel(rays.double(), exact, 0.6 * torch.finfo(dtype).eps + 1e-6 * (dtype != torch.float64) + 1e-12)
    assert ray_map(label, 4, 4, convention, dtype=torch.float32).dtype == torch.float32
    embedding = published.plucker_embedding(64, 64, *(Camera.from_label(label).intrinsics, Camera.from_label(label).cam2world))
    assert embedding.dtype == dtype
    if convention == "published":
        assert_close_rel(embedding.double(), exact, 0.6 * torch.finfo(dtype).eps + 1e-6 * (dtype != torch.float64) + 1e-12)


@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_no_value_is_read_back_from_the_device(convention):
    """The meta device holds no values: a branch or an .item() that needs one raises there."""
    label = torch.empty(2, 25, device="meta")
    rays = ray_map(label, 8, 8, convention)
    assert rays.device.type == "meta" and rays.shape == (2, 6, 8, 8)
    assert published.plucker_embedding(8, 8, *(torch.empty(2, *s, device="meta") for s in ((3, 3), (4, 4)))).shape == (2, 6, 8, 8)
    with pytest.raises(RuntimeError):
        bool(label.sum() == 0)                                   # so the test can fail


def test_compiles_into_one_graph():
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile(lambda c: ray_map(c, 4, 4) + ray_map(c, 4, 4, "published"), backend=backend, fullgraph=True)
    label = Camera(C2W, K).to_label()
    torch.testing.assert_close(compiled(label), ray_map(label, 4, 4) + ray_map(label, 4, 4, "published"))
    assert len(seen) == 1


def test_autocast_leaves_the_precision_alone():
    label = random_camera(dtype=torch.float32).to_label()
    expected = ray_map(label, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ray_map(label, 8, 8), expected)


def test_empty_batch():
    assert ray_map(torch.zeros(0, 25), 4, 4).shape == (0, 6, 4, 4)


# --- the parts, each by itself

def test_parts_agree_with_the_map():
    camera = random_camera()
    x, y = image_grid(4, 6, dtype=torch.float64)
    origins, directions = ray_origins(camera, 4, 6), ray_directions(camera, x, y)
    torch.testing.assert_close(plucker(origins, directions), ray_map(camera.to_label(), 4, 6))
    assert torch.equal(origin_direction(origins, directions)[:, :3], camera.origin[:, :, None, None].expand(-1, -1, 4, 6))
    basis, _ = ray_basis(camera)
    torch.testing.assert_close(basis @ camera.intrinsics, camera.cam2world[:, :3, :3])


def test_two_plane_hits_lie_on_the_planes_and_the_ray():
    camera = random_camera()
    x, y = image_grid(4, 4, dtype=torch.float64)
    origins, directions = ray_origins(camera, 4, 4), ray_directions(camera, x, y)
    hits = two_plane(origins, directions).unflatten(1, (2, 3))                                       # [N, 2, 3, H, W]
    for plane in (0, 1):
        torch.testing.assert_close(hits[:, plane, 2], torch.full_like(hits[:, plane, 2], 2 * plane - 1))
        off = torch.linalg.cross(hits[:, plane] - origins, directions, dim=1)
        assert off.abs().max() < 1e-9 * hits.abs().max()


def test_project_shapes():
    camera = random_camera(3)
    one, many = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 4, 5, 3, dtype=torch.float64)
    assert project(camera, one)[0].shape == (3, 2) and project(camera, many)[0].shape == (3, 4, 5, 2) and project(camera, many)[1].shape == (3, 4, 5)
    torch.testing.assert_close(project(camera, many)[0][1], project(camera[1], many)[0][0])
