"""The colour of what a ray meets: painted solids under one distant light, a ground, and a far wall all around.

Apart from highlights, colours are fixed in the world, so that a point has the same colour from all sides. As in
`intersection`, only +, -, *, / and sqrt are used, so that pixels do not depend on how the work is divided.
"""

from __future__ import annotations

import numpy as np

from dataset_preprocessing.procedural.intersection import Hits, apply, dot
from dataset_preprocessing.procedural.scenes import NUM_LAYERS, SceneBatch

WALL_RADIUS = 4.0                   # of the ball about the world's origin whose inside is the backdrop
WALL_CONTRAST = 1.4                 # how fast its colour changes along the gradient
WRAP = 0.2                          # how far the light reaches past the terminator, as it does on skin
GROUND_FADE = (0.6, 1.6)            # distances from the world's y axis between which the ground turns into the backdrop


def shade(batch: SceneBatch, hits: Hits, origins: np.ndarray,
          directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Display RGB [3, R] in [0, 1], depth [R] and normal [3, R] of rays given as in `trace`.

    Without a hit, depth is that of the ground or the wall, and the normal the ground's, or zero.
    """
    _, num, rays = directions.shape
    direction = directions.reshape(3, -1)
    shared = origins.shape[2] == 1
    color, depth, normal = np.empty_like(direction), hits.depth.copy(), np.zeros_like(direction)
    scene = np.repeat(np.arange(num), rays)
    solid, empty = np.flatnonzero(hits.part >= 0), np.flatnonzero(hits.part < 0)
    if len(empty):
        origin = origins[:, scene[empty], 0] if shared else origins.reshape(3, -1)[:, empty]
        color[:, empty], depth[empty], normal[:, empty] = _backdrop(batch, scene[empty], origin, direction[:, empty])
    if len(solid):
        origin = origins[:, scene[solid], 0] if shared else origins.reshape(3, -1)[:, solid]
        color[:, solid], normal[:, solid] = _solids(batch, scene[solid], hits.part[solid], hits.face[solid],
            origin, direction[:, solid], hits.depth[solid])
    return np.sqrt(np.clip(color, 0, 1)), depth, normal


def _solids(batch, scene, part, face, origin, direction, depth):
    """Linear RGB [3, K] and outward normal [3, K] of hits on solids."""
    num_solids = batch.active.shape[1]
    row = scene * num_solids + part

    def pick(array):                                       # [N, E, F] to [F, K]
        return np.take(array.reshape(len(batch) * num_solids, -1).T, row, axis=1)

    whiten = pick(batch.whiten)
    q = apply(whiten, origin + depth * direction - pick(batch.center))
    transposed = whiten[[0, 3, 6, 1, 4, 7, 2, 5, 8]]
    normal = apply(transposed, q)
    normal /= np.sqrt(dot(normal, normal))
    albedo = pick(batch.color)
    for layer in range(NUM_LAYERS):
        edge = batch.layer_edge[:, :, layer].reshape(-1, 2)
        painted = np.flatnonzero((edge[row, 0] < 1.5) & (face == 0))
        if len(painted):
            rows = row[painted]
            axis = batch.layer_axis[:, :, layer].reshape(-1, 3)[rows].T
            cover = np.clip((dot(axis, q[:, painted]) - edge[rows, 0]) * edge[rows, 1], 0, 1)
            below = albedo[:, painted]
            albedo[:, painted] = below + cover * (batch.layer_color[:, :, layer].reshape(-1, 3)[rows].T - below)
    cut = np.flatnonzero(face)
    if len(cut):
        normal[:, cut] = face[cut] * batch.cut_axis.reshape(-1, 3)[row[cut]].T
        albedo[:, cut] = batch.cut_color.reshape(-1, 3)[row[cut]].T
    return _lit(batch, scene, albedo, normal, direction, pick(batch.gloss[..., None])[0]), normal


def _lit(batch, scene, albedo, normal, direction, gloss):
    """Lambert's law, light from above and below, and Blinn's highlight to the power 32."""
    light, light_color = batch.light.T[:, scene], batch.light_color.T[:, scene]
    facing = np.maximum((dot(normal, light) + WRAP) * (1 / (1 + WRAP)), 0)
    up = normal[1] * 0.5 + 0.5
    above, below = batch.ambient[:, 0].T[:, scene], batch.ambient[:, 1].T[:, scene]
    half = light - direction
    shine = np.maximum(dot(normal, half), 0) / np.sqrt(np.maximum(dot(half, half), 1e-12))        # 0 along the light
    for _ in range(5):
        shine = shine * shine
    return albedo * (below + up * (above - below) + facing * light_color) + (gloss * shine) * light_color


def _backdrop(batch, scene, origin, direction):
    """Linear RGB, depth and normal of rays that meet no solid."""
    along = dot(origin, direction)
    depth = np.sqrt(np.maximum(along * along - dot(origin, origin) + WALL_RADIUS ** 2, 0)) - along
    level, shadow_x, shadow_z, present = batch.ground.T[:, scene]
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (level - origin[1]) / direction[1]
    on_ground = np.flatnonzero((present > 0) & (down > 0) & (down < depth))
    depth[on_ground] = down[on_ground]
    point = origin + depth * direction
    position = np.clip(dot(point, batch.wall_axis.T[:, scene]) * (WALL_CONTRAST / (2 * WALL_RADIUS)) + 0.5, 0, 1)
    first, last = batch.wall_color[:, 0].T[:, scene], batch.wall_color[:, 1].T[:, scene]
    color = first + smooth(position) * (last - first)
    normal = np.zeros_like(direction)
    if len(on_ground):
        x, z = point[0, on_ground], point[2, on_ground]
        fade = smooth(np.clip((np.sqrt(x * x + z * z) - GROUND_FADE[0]) / (GROUND_FADE[1] - GROUND_FADE[0]), 0, 1))
        inner_x, inner_z = x / shadow_x[on_ground], z / shadow_z[on_ground]
        shadow = 1 - 0.75 * smooth(np.clip(1.5 - (inner_x * inner_x + inner_z * inner_z), 0, 1))
        ground = batch.ground_color.T[:, scene[on_ground]] * shadow
        color[:, on_ground] = ground + fade * (color[:, on_ground] - ground)
        normal[1, on_ground] = 1
    return color, depth, normal


def smooth(x: np.ndarray) -> np.ndarray:
    """The cubic that rises from 0 to 1 over [0, 1] with level ends."""
    return x * x * (3 - 2 * x)
