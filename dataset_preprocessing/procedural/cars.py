"""Cars: a profile cut flat at the sides, a cabin with windows, wheels, lights, bumpers.

Lengths are world units; with the cameras of `kinds` the image spans 0.76 at the origin. The car points along +z.
"""

from __future__ import annotations

from dataset_preprocessing.procedural.scenes import Dice, Scene, Solids, blend, make_scene, shade_of, sphere_direction

GLASS = (0.13, 0.17, 0.22)
RUBBER = (0.09, 0.09, 0.1)
# Where the cabin stands (z), its half length, its height over the belt line, how steep its ends are.
TYPES = {
    "saloon": (-0.03, 0.15, 0.085, 0.5),
    "hatch":  (-0.075, 0.17, 0.095, 0.62),
    "van":    (-0.045, 0.225, 0.115, 0.75),
    "pickup": (0.05, 0.105, 0.09, 0.6),
}


def sample_car(dice: Dice, seed: int) -> Scene:
    """One car, on the ground or before a plain backdrop."""
    solids = Solids()
    paint = dice.hue((0.0, 0.15), (0.15, 0.95)) if dice.chance(0.3) else dice.hue((0.6, 0.95), (0.35, 0.9))
    half_length, half_width = dice.between(0.255, 0.29), dice.between(0.105, 0.12)
    wheel = dice.between(0.05, 0.062)
    belt, floor = dice.between(0.01, 0.03), -0.075
    _body(solids, paint, half_length, half_width, belt, floor)
    _cabin(solids, dice, paint, half_width, belt)
    _wheels(solids, dice, half_length, half_width, wheel, floor)
    _lights(solids, dice, half_length, half_width, floor)
    ground = floor + 0.02 - wheel
    wall = dice.hue((0.0, 0.35), (0.6, 0.98))
    plain = dice.chance(0.35)
    return make_scene("cars", seed, solids,
        light=sphere_direction(dice.between(-3.14159, 3.14159), dice.between(0.6, 1.3)), light_color=[0.7, 0.69, 0.66],
        ambient=[[0.52, 0.54, 0.58], [0.2, 0.19, 0.18]], wall_axis=[0, 1, 0],
        wall_color=[wall, wall] if plain else [shade_of(wall, 0.8), blend(wall, (0.75, 0.87, 1.0), 0.5)],
        ground_color=dice.hue((0.0, 0.3), (0.35, 0.8)),
        ground=[ground, half_width + 0.02, half_length + 0.02, 0 if plain else 1])


def _body(solids: Solids, paint, half_length: float, half_width: float, belt: float, floor: float) -> None:
    """Lower body: a long ellipsoid, wide enough to bulge only slightly, of which the sides are cut off."""
    sides = dict(cut_axis=(1, 0, 0), cut_range=(-half_width, half_width))
    solids.add((0, floor + 0.05, 0), (half_width * 2.2, 0.072, half_length * 1.06), paint, gloss=0.45,
               cut_color=shade_of(paint, 0.92), **sides)
    solids.add((0, belt - 0.015, 0.0), (half_width * 1.7, 0.062, half_length * 1.0), paint, gloss=0.45, **sides)
    for end in (-1, 1):
        solids.add((0, floor + 0.025, end * half_length * 0.93), (half_width * 1.0, 0.026, 0.035),
                   shade_of(paint, 0.55), gloss=0.2)


def _cabin(solids: Solids, dice: Dice, paint, half_width: float, belt: float) -> None:
    """Cabin with wind and rear screen painted on, side windows let in."""
    place, half_length, height, steep = TYPES[dice.pick(list(TYPES))]
    roof = paint if dice.chance(0.8) else shade_of(paint, 0.3)
    inset = half_width * 0.9
    screens = [((0, 1 - steep, steep), 0.80, 0.03, GLASS), ((0, 1 - steep, -steep), 0.80, 0.03, GLASS)]
    solids.add((0, belt, place), (half_width * 2.4, height * 1.12, half_length), roof, gloss=0.5, caps=screens,
        cut_axis=(1, 0, 0), cut_range=(-inset, inset))
    pillar = dice.between(-0.02, 0.03)
    for low, high in ((-1.0, pillar - 0.006), (pillar + 0.006, 1.0)):
        # A window is one solid through the whole cabin, which shows on both sides.
        back, front = max(low, -half_length), min(high, half_length)
        middle, reach = place + back * 0.5 + front * 0.5, (front - back) * 0.5
        solids.add((0, belt + 0.028, middle), (inset * 3, height * 0.5, reach * 0.8), GLASS, gloss=0.5,
            cut_axis=(1, 0, 0), cut_range=(-inset * 1.01, inset * 1.01))


def _wheels(solids: Solids, dice: Dice, half_length: float, half_width: float, wheel: float, floor: float) -> None:
    """Tyres with hubs; arches that show as dark rims on the body."""
    rim = dice.pick([(0.75, 0.76, 0.78), (0.5, 0.5, 0.52), (0.9, 0.9, 0.9), (0.25, 0.25, 0.27)])
    axle, height = half_length * 0.62, floor + 0.02
    for end in (-1, 1):
        outside = half_width + 0.001
        solids.add((0, height, end * axle), (half_width * 4, wheel * 1.2, wheel * 1.2), (0.05, 0.05, 0.05), gloss=0,
            cut_axis=(1, 0, 0), cut_range=(-outside, outside))
        for side in (-1, 1):
            center = (side * (half_width - 0.018), height, end * axle)
            solids.add(center, (0.06, wheel, wheel), RUBBER, gloss=0.05, cut_axis=(1, 0, 0), cut_range=(-0.026, 0.026))
            solids.add(center, (0.06, wheel * 0.62, wheel * 0.62), rim, gloss=0.4, cut_axis=(1, 0, 0),
                       cut_range=(-0.029, 0.029))


def _lights(solids: Solids, dice: Dice, half_length: float, half_width: float, floor: float) -> None:
    """Head lights in front, tail lights behind, a grille."""
    size = dice.between(0.017, 0.024)
    for side in (-1, 1):
        solids.add((side * half_width * 0.72, floor + 0.07, half_length * 0.965), (size * 1.15, size * 0.8, 0.022),
                   (1.0, 0.97, 0.8), gloss=0.6)
        solids.add((side * half_width * 0.76, floor + 0.07, -half_length * 0.965), (size, size * 0.75, 0.022),
                   (0.85, 0.06, 0.05), gloss=0.5)
    solids.add((0, floor + 0.058, half_length * 0.99), (half_width * 0.42, 0.016, 0.025), (0.06, 0.06, 0.07), gloss=0.3)
