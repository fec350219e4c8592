"""Where rays meet the solids of a scene: exact, vectorised, with the ellipses' bounding boxes in the image for culling.

Arithmetic is element by element and uses only +, -, *, / and sqrt, which IEEE 754 defines to the bit: a ray's result
does not depend on the other rays that are traced with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataset_preprocessing.procedural.scenes import SceneBatch

NEAR = 1e-4                         # hits closer than this to the origin of a ray do not count


@dataclass
class Hits:
    """The first solid on each ray; R = N * P rays, those of scene n at [n * P, (n + 1) * P)."""
    depth: np.ndarray               # [R] distance along the unit direction; inf without a hit
    part:  np.ndarray               # [R] int16 index of the solid; -1 without a hit
    face:  np.ndarray               # [R] int8: 0 on the curved surface, else the sign by which the cut axis points out


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Scalar products over a leading axis of 3, in a fixed order of addition."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Products of matrices [9, R] (row-major) with vectors [3, R]."""
    return np.stack([dot(matrix[0:3], vector), dot(matrix[3:6], vector), dot(matrix[6:9], vector)])


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def trace(batch: SceneBatch, origins: np.ndarray, directions: np.ndarray, candidates: np.ndarray | None = None) -> Hits:
    """The first hit of each ray. A ray does not see solids that it starts in.

    origins, directions: [3, N, P], directions of length 1, origins also [3, N, 1];
    candidates: [E, N, P] bool, which rays may meet which solid; None tries all.
    """
    _, num, rays = directions.shape
    direction_rows = directions.reshape(3, -1)
    total = num * rays
    hits = Hits(np.full(total, np.inf, directions.dtype), np.full(total, -1, np.int16), np.zeros(total, np.int8))
    columns = [batch.center, batch.whiten.reshape(num, -1, 9), batch.cut_axis, batch.cut_range]
    table = np.ascontiguousarray(np.concatenate(columns, axis=2).transpose(1, 2, 0))           # [E, 17, N]
    shared = origins.shape[2] == 1
    for part in range(batch.active.shape[1]):
        possible = batch.active[:, part, None]
        possible = np.broadcast_to(possible, (num, rays)) if candidates is None else candidates[part] & possible
        counts = np.count_nonzero(possible, axis=1)
        index = np.flatnonzero(possible)
        if len(index) == 0:
            continue
        solid = np.repeat(table[part], counts, axis=1)                                         # [17, K]
        origin = np.repeat(origins[:, :, 0], counts, axis=1) if shared else origins.reshape(3, -1)[:, index]
        has_cut = bool((np.abs(table[part, 15:17]) < 1e5).any())
        depth, face = _meet(solid, origin, direction_rows[:, index], has_cut)
        closer = depth < hits.depth[index]
        index = index[closer]
        hits.depth[index] = depth[closer]
        hits.part[index] = part
        hits.face[index] = 0 if face is None else face[closer]
    return hits


def _meet(solid: np.ndarray, origin: np.ndarray, direction: np.ndarray,
          has_cut: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Depth (inf for a miss) and face of K pairs of a solid [17, K] and a ray [3, K]."""
    center, whiten, axis, cut = solid[0:3], solid[3:12], solid[12:15], solid[15:17]
    offset = origin - center
    o, d = apply(whiten, offset), apply(whiten, direction)
    # |o + t d|^2 = 1. Its discriminant (o.d)^2 - |d|^2 (|o|^2 - 1) equals |d|^2 - |o x d|^2, which keeps its digits for
    # small, far solids.
    moment = cross(o, d)
    length2 = dot(d, d)
    rest = length2 - dot(moment, moment)
    root = np.sqrt(np.maximum(rest, 0))
    middle = -dot(o, d)
    near = (middle - root) / length2
    if not has_cut:
        return np.where((rest > 0) & (near > NEAR), near, np.inf).astype(near.dtype, copy=False), None
    far = (middle + root) / length2
    start, speed = dot(axis, offset), dot(axis, direction)
    with np.errstate(divide="ignore", invalid="ignore"):       # a ray along the slab: -inf .. inf inside, empty outside
        first, second = (cut[0] - start) / speed, (cut[1] - start) / speed
    enter, leave = np.minimum(first, second), np.maximum(first, second)
    depth = np.maximum(near, enter)
    hit = (rest > 0) & (depth > NEAR) & (depth < np.minimum(far, leave))
    face = np.where(enter > near, -np.sign(speed), 0).astype(np.int8)
    return np.where(hit, depth, np.inf).astype(near.dtype, copy=False), face


def image_boxes(batch: SceneBatch, cam2world: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Bounds of the solids' images, in image coordinates: x0, x1, y0, y1 as [N, E, 4].

    The outline of an ellipsoid {c + A u, |u| <= 1} is the conic whose dual is B B^T - h h^T, with B = K R^T A and
    h = K R^T (c - o); its vertical and horizontal tangents are the bounds (Hartley and Zisserman, Multiple View
    Geometry, section 8.3). Solids that reach behind the camera get the whole plane; those behind it, an empty box.
    """
    # Inactive solids have no inverse; they count as unit balls.
    whiten = np.where(batch.active[..., None, None], batch.whiten, np.eye(3))
    to_image = intrinsics.astype(np.float64) @ cam2world[:, :3, :3].astype(np.float64).transpose(0, 2, 1)  # [N, 3, 3]
    axes = to_image[:, None] @ np.linalg.inv(whiten.astype(np.float64))                                # [N, E, 3, 3]
    center = (to_image[:, None] @ (batch.center - cam2world[:, None, :3, 3])[..., None])[..., 0]       # [N, E, 3]
    dual = axes @ axes.transpose(0, 1, 3, 2) - center[..., :, None] * center[..., None, :]
    in_front = (dual[..., 2, 2] < 0) & (center[..., 2] > 0)
    behind = (dual[..., 2, 2] < 0) & (center[..., 2] < 0)
    bounds = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in (0, 1):
            root = np.sqrt(np.maximum(dual[..., k, 2] ** 2 - dual[..., k, k] * dual[..., 2, 2], 0))
            low, high = (dual[..., k, 2] + root) / dual[..., 2, 2], (dual[..., k, 2] - root) / dual[..., 2, 2]
            bounds += [np.where(in_front, low, np.where(behind, np.inf, -np.inf)),
                       np.where(in_front, high, np.where(behind, -np.inf, np.inf))]
    return np.stack(bounds, axis=-1)
