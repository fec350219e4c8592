"""Heads: skull, jaw, hair in several styles, eyes, brows, nose, mouth, ears, neck and shirt.

Lengths are world units; with the cameras of `kinds` the image spans 0.633 of them at the origin, the head about 0.5.
"""

from __future__ import annotations

import math

from dataset_preprocessing.procedural.scenes import Dice, Scene, Solids, blend, make_scene, shade_of, sphere_direction

SKIN = [(1.0, 0.87, 0.77), (0.96, 0.79, 0.65), (0.87, 0.67, 0.5),
        (0.74, 0.52, 0.36), (0.55, 0.36, 0.25), (0.38, 0.25, 0.18)]
HAIR = [(0.07, 0.06, 0.07), (0.2, 0.12, 0.08), (0.36, 0.2, 0.11),
        (0.55, 0.29, 0.13), (0.78, 0.56, 0.27), (0.93, 0.8, 0.52)]
HAIR_RARE = [(0.72, 0.2, 0.1), (0.7, 0.7, 0.72), (0.3, 0.35, 0.75), (0.85, 0.4, 0.6)]
IRIS = [(0.28, 0.16, 0.08), (0.45, 0.28, 0.1), (0.3, 0.5, 0.25), (0.2, 0.45, 0.7), (0.45, 0.55, 0.62)]
WHITE = (0.97, 0.96, 0.94)
STYLES = {"short": 4, "parted": 4, "bob": 3, "long": 3, "bun": 2, "round": 2, "bald": 1}      # weights


def sample_head(dice: Dice, seed: int) -> Scene:
    """One head."""
    solids = Solids()
    skin = dice.color(SKIN, 0.03)
    hair = dice.pick(HAIR_RARE) if dice.chance(0.12) else dice.color(HAIR, 0.02)
    wide, tall = dice.about(1, 0.09), dice.about(1, 0.08)
    _face(solids, dice, skin, hair, wide, tall)
    _eyes(solids, dice, skin, hair, wide)
    _mouth(solids, dice, skin, tall)
    _hair(solids, dice, hair, wide)
    _shirt(solids, dice, skin)
    light = sphere_direction(dice.between(-1.1, 1.1), dice.between(0.15, 0.95))
    warmth = dice.between(-0.06, 0.06)
    wall = dice.hue((0.1, 0.6), (0.35, 0.95))
    return make_scene("heads", seed, solids,
        light=light, light_color=[0.78 + warmth, 0.76, 0.74 - warmth], ambient=[[0.44, 0.45, 0.48], [0.2, 0.18, 0.17]],
        wall_axis=sphere_direction(dice.between(-1.6, 1.6), dice.between(0.3, 1.5)),
        wall_color=[shade_of(wall, 0.55), blend(wall, dice.hue((0.1, 0.6), (0.5, 1.0)), 0.5)],
        ground_color=[0, 0, 0], ground=[0, 1, 1, 0])


def _face(solids: Solids, dice: Dice, skin, hair, wide: float, tall: float) -> None:
    """Skull, jaw with blush and perhaps a beard, nose, ears, neck."""
    blush, lobe = blend(skin, (0.9, 0.35, 0.3), 0.28), blend(skin, (0.8, 0.35, 0.28), 0.2)
    beard = dice.chance(0.18)
    stubble = blend(skin, hair, dice.between(0.5, 0.9))
    cheeks = [((0.6, -0.3, 0.75), 0.92, 0.07, blush), ((-0.6, -0.3, 0.75), 0.92, 0.07, blush)]
    if beard:
        cheeks.append(((0, -0.85, 0.55), 0.74, 0.08, stubble))
    solids.add((0, 0.055, -0.014), (0.169 * wide, 0.185, 0.182), skin)
    solids.add((0, -0.025, 0.014), (0.157 * wide, 0.19 * tall, 0.17), skin, caps=cheeks)
    solids.add((0, -0.26, -0.03), (0.078 * wide, 0.2, 0.085), shade_of(skin, 0.92))
    length = dice.about(1, 0.3)
    solids.add((0, -0.005, 0.178), (0.017, 0.05 * length, 0.03), skin, rot_rad=(-0.28, 0, 0))
    solids.add((0, -0.035 * length, 0.199), (0.029 * dice.about(1, 0.25), 0.022, 0.029), lobe, gloss=0.15)
    ear = dice.about(1, 0.2)
    for side in (-1, 1):
        solids.add((side * 0.168 * wide, 0.0, -0.015), (0.02, 0.048 * ear, 0.033 * ear), lobe,
                   rot_rad=(0, side * -0.45, side * -0.12))


def _eyes(solids: Solids, dice: Dice, skin, hair, wide: float) -> None:
    """Eyeballs with iris, pupil and lid; brows."""
    iris, size, apart = dice.color(IRIS, 0.04), dice.about(0.043, 0.006), dice.about(0.065, 0.006) * wide
    gaze = (dice.about(0, 0.18), dice.about(0, 0.08), 1)
    lid, lift = dice.between(0.3, 0.7), dice.about(0.084, 0.012)
    tilt, thick = dice.about(0.08, 0.28), dice.between(0.007, 0.013)
    for side in (-1, 1):
        solids.add((side * apart, 0.028, 0.134), size, WHITE, gloss=0.55, rot_rad=(0, side * 0.1, 0), caps=[
            (gaze, 0.83, 0.05, iris), (gaze, 0.945, 0.03, (0.03, 0.03, 0.04)),
            ((0, 0.95, 0.1), lid, 0.06, shade_of(skin, 0.84))])
        solids.add((side * apart * 1.04, lift, 0.161), (0.04, thick, 0.014), shade_of(hair, 0.8),
                   rot_rad=(0, side * 0.35, side * -tilt))


def _mouth(solids: Solids, dice: Dice, skin, tall: float) -> None:
    """Two halves of an upper lip, which smile or not, and a lower lip; sometimes open, with teeth."""
    lips = blend(shade_of(skin, 0.82), (0.78, 0.16, 0.2), dice.between(0.3, 0.75))
    half, smile, height = dice.about(0.029, 0.007), dice.about(0.2, 0.3), -0.107 * tall
    for side in (-1, 1):
        solids.add((side * half * 0.8, height + half * 0.6 * smile, 0.166), (half, 0.0095, 0.016), lips,
                   rot_rad=(0, side * 0.3, side * smile))
    if dice.chance(0.35):
        solids.add((0, height - 0.011, 0.164), (half * 1.25, 0.013, 0.018), (0.95, 0.93, 0.9), gloss=0.3)
        solids.add((0, height - 0.024, 0.162), (half * 1.1, 0.010, 0.02), lips, gloss=0.25)
    else:
        solids.add((0, height - 0.014, 0.166), (half * 1.15, 0.0105, 0.018), lips, gloss=0.25)


def _hair(solids: Solids, dice: Dice, hair, wide: float) -> None:
    """A cap with a flat front, and what the style adds to it."""
    style, volume = dice.pick(list(STYLES), list(STYLES.values())), dice.about(1, 0.05)
    part_side = dice.pick((-1, 1))
    if style == "bald":
        return
    inner = shade_of(hair, 0.7)
    front, gloss = dice.about(0.03, 0.02), dice.between(0.1, 0.3)

    def add(center, radii, **kwargs):
        solids.add(center, radii, hair, gloss=gloss, **kwargs)

    if style == "round":
        puff = dice.between(1.1, 1.28)
        add((0, 0.085, -0.06), (0.19 * wide * puff, 0.18 * puff, 0.18 * puff), cut_axis=(0, -0.6, 0.8),
            cut_range=(-1, front), cut_color=inner)
        for angle in (-1.35, -0.9, -0.45, 0, 0.45, 0.9, 1.35):          # curls along the front
            across, up = math.sin(angle), math.cos(angle)
            curl = (across * 0.17 * wide * puff, 0.08 + up * 0.125 * puff, 0.09 - (1 - up) * 0.1)
            add(curl, dice.between(0.055, 0.068))
        return
    add((0, 0.07, -0.03), (0.188 * wide * volume, 0.2 * volume, 0.2 * volume), cut_axis=(0, -0.62, 0.78),
        cut_range=(-1, front), cut_color=inner)
    if style == "short":
        add((0, 0.19, 0.075), (0.125 * wide, 0.05 * volume, 0.085), rot_rad=(0.5, 0, part_side * -0.1))
    else:
        for side in (-1, 1):
            reach = 0.125 if side == part_side else 0.09
            add((side * reach * 0.62 - part_side * 0.03, 0.178, 0.075), (reach, 0.042 * volume, 0.09),
                rot_rad=(0.45, 0, side * -0.42))
    if style in ("bob", "long"):
        length = dice.between(0.13, 0.17) if style == "bob" else dice.between(0.24, 0.3)
        for side in (-1, 1):
            add((side * 0.15 * wide, 0.12 - length, -0.04), (0.062 * volume, length, 0.115),
                rot_rad=(0, side * 0.15, side * 0.07))
        add((0, 0.07 - length, -0.11), (0.165 * wide, length * 1.05, 0.1))
    if style == "bun":
        add((0, 0.265, -0.09), dice.between(0.055, 0.085))


def _shirt(solids: Solids, dice: Dice, skin) -> None:
    """Shoulders, with or without a neckline, and perhaps a collar."""
    shirt = dice.hue((0.15, 0.9), (0.2, 0.95))
    collar = dice.hue((0.0, 0.6), (0.3, 1.0)) if dice.chance(0.4) else shade_of(shirt, 0.8)
    broad = dice.about(0.34, 0.04)
    neckline = [((0, 0.9, 0.5), dice.between(0.75, 0.87), 0.03, shade_of(skin, 0.95))] if dice.chance(0.45) else []
    solids.add((0, -0.47, -0.05), (broad, 0.21, 0.17), shirt, gloss=0.04, caps=neckline)
    if not neckline:
        solids.add((0, -0.262, -0.025), (0.098, 0.035, 0.1), collar, gloss=0.04, rot_rad=(0.18, 0, 0))
