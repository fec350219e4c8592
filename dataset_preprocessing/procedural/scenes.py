"""Scenes of some ellipsoids with flat cuts and painted caps, a light and a backdrop: built, mirrored, batched, drawn.

World frame: y up, the subject at the origin looks along +z, its plane of symmetry is x = 0.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

NUM_LAYERS = 3                      # painted caps per solid
NO_CUT = (-1e6, 1e6)                # a slab that contains everything
MAX_SEED = 2 ** 53 - 1              # scene seeds travel through JSON, where larger integers lose digits
_MIRROR = np.array([-1, 1, 1], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene; all arrays float32, E solids, L = NUM_LAYERS painted caps on each.

    Solid e is the set |whiten (x - center)| <= 1 and cut_range[0] <= cut_axis . (x - center) <= cut_range[1]: a slab of
    an ellipsoid. On its curved surface q = whiten (x - center) is a unit vector, and cap l is painted where
    layer_axis . q > layer_edge[0], fading in over 1/layer_edge[1]; later caps lie over earlier ones.
    """
    kind:         str
    seed:         int
    mirror:       bool              # is this the reflection of the scene that `seed` gives?
    center:       np.ndarray        # [E, 3]
    whiten:       np.ndarray        # [E, 3, 3] world to unit ball
    cut_axis:     np.ndarray        # [E, 3] unit vectors
    cut_range:    np.ndarray        # [E, 2] world units from the centre
    color:        np.ndarray        # [E, 3] linear RGB
    cut_color:    np.ndarray        # [E, 3] linear RGB of the flat faces
    gloss:        np.ndarray        # [E] strength of the highlight
    layer_axis:   np.ndarray        # [E, L, 3] unit vectors in the space of q
    layer_edge:   np.ndarray        # [E, L, 2] threshold of the cosine, 1 / width of the edge
    layer_color:  np.ndarray        # [E, L, 3] linear RGB
    light:        np.ndarray        # [3] unit vector towards the light
    light_color:  np.ndarray        # [3] linear RGB
    ambient:      np.ndarray        # [2, 3] linear RGB of the light from above and from below
    wall_axis:    np.ndarray        # [3] direction of the backdrop's colour gradient
    wall_color:   np.ndarray        # [2, 3] linear RGB at its ends
    ground_color: np.ndarray        # [3] linear RGB
    ground:       np.ndarray        # [4] height y of the ground, half axes (x, z) of the contact shadow, 1 if it exists

    @property
    def num_solids(self) -> int:
        return len(self.center)

    def mirrored(self) -> Scene:
        """The reflection in the plane x = 0, light and backdrop included.

        The mirrored camera sees it as the mirrored image, to the bit if the pixel grid is symmetric in binary.
        """
        flip = _MIRROR
        return dataclasses.replace(
            self, mirror=not self.mirror, center=self.center * flip, whiten=self.whiten * flip * flip[:, None],
            cut_axis=self.cut_axis * flip, layer_axis=self.layer_axis * flip, light=self.light * flip,
            wall_axis=self.wall_axis * flip)


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """N scenes padded to one number of solids: the arrays of `Scene` with a leading axis, and which solids are real."""
    arrays: dict[str, np.ndarray]
    active: np.ndarray              # [N, E] bool

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["arrays"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(self.active)


_PER_SOLID = ("center", "whiten", "cut_axis", "cut_range", "color", "cut_color", "gloss", "layer_axis", "layer_edge",
              "layer_color")
_PER_SCENE = ("light", "light_color", "ambient", "wall_axis", "wall_color", "ground_color", "ground")


def stack(scenes: list[Scene], dtype: np.dtype = np.float32) -> SceneBatch:
    """Batches scenes, of different kinds too."""
    assert scenes, "no scene to batch"
    num = max(scene.num_solids for scene in scenes)
    arrays = {name: np.stack([getattr(scene, name) for scene in scenes]).astype(dtype) for name in _PER_SCENE}
    for name in _PER_SOLID:
        first = getattr(scenes[0], name)
        out = np.zeros((len(scenes), num) + first.shape[1:], dtype)
        for row, scene in zip(out, scenes):
            row[:scene.num_solids] = getattr(scene, name)
        arrays[name] = out
    active = np.arange(num) < np.array([scene.num_solids for scene in scenes])[:, None]
    return SceneBatch(arrays, active)


# ---------------------------------------------------------------------------------------------------------------------
# Building a scene, solid by solid.

class Solids:
    """Collects solids as plain numbers and turns all into arrays at once, in a fraction of a millisecond."""

    def __init__(self) -> None:
        self._rows: list[tuple] = []
        self._caps: list[tuple] = []

    def add(self,
        center,                     # world position
        radii,                      # half axes before rotation; one number for a ball
        color,                      # display RGB in [0, 1]
        rot_rad     = (0, 0, 0),    # rotation about x, then y, then z
        gloss       = 0.1,
        cut_axis    = (0, 1, 0),    # world direction of the slab, any length
        cut_range   = NO_CUT,
        cut_color   = None,         # None: as `color`
        caps        = (),           # up to NUM_LAYERS of (axis, cosine threshold, edge width, display RGB)
    ) -> None:
        """Appends one solid."""
        radii = (radii,) * 3 if isinstance(radii, (int, float)) else radii
        assert len(caps) <= NUM_LAYERS and min(radii) > 0, (len(caps), radii)
        for layer, (axis, threshold, width, cap_color) in enumerate(caps):
            self._caps.append((len(self._rows), layer, *axis, threshold, 1 / width, *cap_color))
        cut_color = color if cut_color is None else cut_color
        self._rows.append((*center, *radii, *rot_rad, *cut_axis, *cut_range, *color, *cut_color, gloss))

    def arrays(self) -> dict[str, np.ndarray]:
        """The per-solid arrays of `Scene`."""
        rows = np.array(self._rows, dtype=np.float64)
        center, radii, rot, axis, cut, color, cut_color, gloss = np.split(rows, [3, 6, 9, 12, 14, 17, 20], axis=1)
        num = len(rows)
        # The rows of `whiten` are the solid's own axes over its half axes: rotation transposed, then scaled.
        whiten = rotations(rot).transpose(0, 2, 1) / radii[:, :, None]
        layer_axis, layer_edge, layer_color = (np.zeros((num, NUM_LAYERS, size)) for size in (3, 2, 3))
        layer_edge[..., 0] = 2                             # a cosine never gets there: no paint
        if self._caps:
            caps = np.array(self._caps, dtype=np.float64)
            where = (caps[:, 0].astype(int), caps[:, 1].astype(int))
            layer_axis[where] = unit(caps[:, 2:5])
            layer_edge[where] = caps[:, 5:7]
            layer_color[where] = linear(caps[:, 7:10])
        out = dict(center=center, whiten=whiten, cut_axis=unit(axis), cut_range=cut, color=linear(color),
                   cut_color=linear(cut_color), gloss=gloss[:, 0], layer_axis=layer_axis, layer_edge=layer_edge,
                   layer_color=layer_color)
        return {name: value.astype(np.float32) for name, value in out.items()}


def make_scene(kind: str, seed: int, solids: Solids, **per_scene) -> Scene:
    """A scene of these solids; keyword arguments are the per-scene arrays of `Scene`, colours as display RGB."""
    assert set(per_scene) == set(_PER_SCENE), sorted(per_scene)
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in per_scene.items()}
    for name in ("wall_color", "ground_color"):
        arrays[name] = linear(arrays[name])
    arrays["light"] = unit(arrays["light"])
    arrays["wall_axis"] = unit(arrays["wall_axis"])
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    return Scene(kind=kind, seed=seed, mirror=False, **solids.arrays(), **arrays)


def linear(display: np.ndarray) -> np.ndarray:
    """Display RGB to the linear RGB that is shaded: a gamma of 2, whose inverse sqrt is exact on every machine."""
    return np.square(display)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] at length 1."""
    return vectors / np.sqrt(np.square(vectors).sum(-1, keepdims=True))


def rotations(angles_rad: np.ndarray) -> np.ndarray:
    """Rz Ry Rx for angles [K, 3] about x, y and z: matrices [K, 3, 3]."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles_rad).T, np.sin(angles_rad).T
    return np.stack([
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ], axis=-1).reshape(-1, 3, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Chance. Only uniform draws, which are the same on every machine with any mathematics library.

class Dice:
    """Named draws from one stream."""

    def __init__(self, *entropy: int):
        self._rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._rng.random()

    def about(self, mean: float, spread: float) -> float:
        """A bell over mean +- spread (the mean of three uniform draws)."""
        total = self._rng.random() + self._rng.random() + self._rng.random()
        return mean + spread * (total / 1.5 - 1)

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def pick(self, options, weights=None):
        """One of the options."""
        if weights is None:
            return options[int(self._rng.random() * len(options))]
        mark = self._rng.random() * sum(weights)
        for option, weight in zip(options, weights):
            mark -= weight
            if mark < 0:
                return option
        return options[-1]

    def color(self, options, spread: float = 0.05) -> tuple[float, float, float]:
        """A display RGB near a mixture of two neighbours in a palette."""
        position = self._rng.random() * (len(options) - 1)
        index = int(position)
        blend = position - index
        return tuple(min(max(a + (b - a) * blend + self.between(-spread, spread), 0.02), 0.98)
            for a, b in zip(options[index], options[min(index + 1, len(options) - 1)]))

    def hue(self, saturation: tuple[float, float], value: tuple[float, float]) -> tuple[float, float, float]:
        """A display RGB of any hue, with saturation and value [0, 1] from these ranges."""
        hue, sat, val = 6 * self._rng.random(), self.between(*saturation), self.between(*value)
        return tuple(val * (1 - sat * min(max(2 - abs((hue - shift) % 6 - 3), 0), 1)) for shift in (3, 5, 1))


def shade_of(color, factor: float) -> tuple[float, float, float]:
    """A display RGB made darker (factor below 1) or lighter."""
    return tuple(min(max(channel * factor, 0.0), 1.0) for channel in color)


def blend(a, b, amount: float) -> tuple[float, float, float]:
    """From colour a (amount 0) to colour b (amount 1)."""
    return tuple(x + (y - x) * amount for x, y in zip(a, b))


def sphere_direction(azimuth_rad: float, elevation_rad: float) -> tuple[float, float, float]:
    """The unit vector at an azimuth from +z towards +x and an elevation above the plane y = 0."""
    flat = math.cos(elevation_rad)
    return (math.sin(azimuth_rad) * flat, math.sin(elevation_rad), math.cos(azimuth_rad) * flat)
