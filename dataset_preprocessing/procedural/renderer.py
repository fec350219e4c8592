"""Images of scenes from camera labels, and colours of arbitrary rays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset_preprocessing.procedural.intersection import image_boxes, trace
from dataset_preprocessing.procedural.scenes import Scene, stack
from dataset_preprocessing.procedural.shading import shade

BLOCK_RAYS = 1 << 15                # rays traced at a time: bounds the memory and keeps the work in the cache
_LEVEL = 256                        # supersamples are averaged as integers of this many steps per grey level


@dataclass(frozen=True)
class Rendered:
    """What rays see. The leading axes are those of the rays."""
    rgb:    np.ndarray              # [..., 3] display RGB in [0, 1]
    depth:  np.ndarray              # [...] world units along the ray; to the ground or far wall if no solid is hit
    hit:    np.ndarray              # [...] bool: a solid is hit
    part:   np.ndarray              # [...] int16 index of that solid in its scene, -1 for none
    normal: np.ndarray              # [..., 3] outward unit normal; zero on the far wall


def render(scenes: Scene | Sequence[Scene], camera_labels: np.ndarray, resolution: int | tuple[int, int],
           supersample: int = 2) -> np.ndarray:
    """Images uint8 [N, H, W, 3] of N scenes (or of one) from N camera labels.

    camera_labels: [N, 25] in EG3D's layout: OpenCV cam2world row-major, then intrinsics normalised by the image size;
    resolution: a side or (H, W). A pixel is the mean of supersample x supersample rays through its parts' centres.
    Computes its rays without `camera_utils.rays` (and torch), so that tests can compare the two.
    """
    labels = np.asarray(camera_labels, dtype=np.float64)
    assert labels.ndim == 2 and labels.shape[1] == 25, labels.shape
    scenes = [scenes] * len(labels) if isinstance(scenes, Scene) else list(scenes)
    assert len(scenes) == len(labels), (len(scenes), len(labels))
    height, width = (int(side) for side in np.broadcast_to(resolution, 2))
    assert height > 0 and width > 0 and supersample > 0, (height, width, supersample)
    out = np.empty((len(labels), height, width, 3), np.uint8)
    rows_at_once = min(max(BLOCK_RAYS // (width * supersample ** 2), 1), height)
    images_at_once = max(BLOCK_RAYS // (height * width * supersample ** 2), 1)
    for start in range(0, len(labels), images_at_once):
        images = slice(start, min(start + images_at_once, len(labels)))
        batch = stack(scenes[images])
        for top in range(0, height, rows_at_once):
            rows = (top, min(top + rows_at_once, height))
            out[images, rows[0]:rows[1]] = _render_rows(batch, labels[images], height, width, rows, supersample)
    return out


def _render_rows(batch, labels, height, width, rows, supersample):
    """The image rows rows[0] .. rows[1] - 1 of one block of images: uint8 [N, rows, W, 3]."""
    cam2world, intrinsics = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    y = (np.arange(rows[0] * supersample, rows[1] * supersample) + 0.5) / (height * supersample)     # image coordinates
    x = (np.arange(width * supersample) + 0.5) / (width * supersample)
    num, shape = len(labels), (len(labels), len(y), len(x))
    directions = _directions(cam2world, intrinsics, x, y).reshape(3, num, -1)                          # [3, N, P]
    origins = cam2world[:, :3, 3].T.astype(np.float32)[:, :, None]                                     # [3, N, 1]
    boxes = image_boxes(batch, cam2world, intrinsics)[..., None]                                       # [N, E, 4, 1]
    margin_x, margin_y = 1 / len(x), 1 / (height * supersample)
    in_columns = (x >= boxes[:, :, 0] - margin_x) & (x <= boxes[:, :, 1] + margin_x)                   # [N, E, W]
    in_rows = (y >= boxes[:, :, 2] - margin_y) & (y <= boxes[:, :, 3] + margin_y)                      # [N, E, rows]
    candidates = (in_rows[..., :, None] & in_columns[..., None, :]).swapaxes(0, 1).reshape(boxes.shape[1], num, -1)
    hits = trace(batch, origins, directions, candidates)
    rgb, _, _ = shade(batch, hits, origins, directions)
    # Integers make the mean independent of the order of its terms, so that a mirrored image is mirrored to the bit.
    levels = (rgb * np.float32(255 * _LEVEL) + np.float32(0.5)).astype(np.int32).reshape(3, *shape)
    total = sum(levels[:, :, i::supersample, j::supersample] for i in range(supersample) for j in range(supersample))
    step = supersample ** 2 * _LEVEL
    return np.moveaxis((total + step // 2) // step, 0, -1).astype(np.uint8)


def _directions(cam2world: np.ndarray, intrinsics: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit directions float32 [3, N, len(y), len(x)] of the rays through these image coordinates."""
    focal_x, skew, center_x = (intrinsics[:, 0, j, None] for j in range(3))
    focal_y, center_y = (intrinsics[:, 1, j, None] for j in (1, 2))
    cam_y = (y - center_y) / focal_y                                                                   # [N, H]
    shear = (skew / focal_x * cam_y).astype(np.float32)
    cam_x = ((x - center_x) / focal_x).astype(np.float32)[:, None, :] - shear[:, :, None]              # [N, H, W]
    cam_y = cam_y.astype(np.float32)[:, :, None]
    rotation = cam2world[:, :3, :3].astype(np.float32)[..., None, None]
    directions = np.stack([rotation[:, k, 0] * cam_x + (rotation[:, k, 1] * cam_y + rotation[:, k, 2])
                           for k in range(3)])
    directions /= np.sqrt(directions[0] * directions[0] + directions[1] * directions[1] + directions[2] * directions[2])
    return directions


def render_rays(scenes: Scene | Sequence[Scene], origins: np.ndarray, directions: np.ndarray) -> Rendered:
    """What arbitrary rays see, one sample each.

    scenes: one scene for all rays, or N scenes for rays [N, ..., 3];
    origins, directions: [..., 3], broadcast against each other; directions of any length but 0. Computes in float64 if
    one of them is float64, else in float32.
    """
    origins, directions = np.broadcast_arrays(np.asarray(origins), np.asarray(directions))
    assert origins.shape[-1] == 3, origins.shape
    dtype = np.float64 if np.result_type(origins, directions) == np.float64 else np.float32
    single = isinstance(scenes, Scene)
    scenes = [scenes] if single else list(scenes)
    shape = origins.shape[:-1]
    assert single or len(scenes) == shape[0], (len(scenes), shape)
    batch_shape = (len(scenes), -1, 3)
    origins, directions = (np.moveaxis(array.reshape(batch_shape).astype(dtype), -1, 0)
                           for array in (origins, directions))                                         # [3, N, P]
    length = np.sqrt(directions[0] ** 2 + directions[1] ** 2 + directions[2] ** 2)
    assert (length > 0).all(), "a direction of length 0"
    directions = directions / length
    rays = origins.shape[2]
    outputs = []
    for index, scene in enumerate(scenes):
        batch = stack([scene], dtype)
        for start in range(0, max(rays, 1), BLOCK_RAYS):
            block = (slice(None), slice(index, index + 1), slice(start, start + BLOCK_RAYS))
            hits = trace(batch, origins[block], directions[block])
            rgb, depth, normal = shade(batch, hits, origins[block], directions[block])
            outputs.append((rgb.T, depth, hits.part, normal.T))
    rgb, depth, part, normal = (np.concatenate(arrays) for arrays in zip(*outputs))
    return Rendered(rgb=rgb.reshape(*shape, 3), depth=depth.reshape(shape), hit=(part >= 0).reshape(shape),
                    part=part.reshape(shape), normal=normal.reshape(*shape, 3))
