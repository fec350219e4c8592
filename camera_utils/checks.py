"""Checks of camera labels: the values of each label, then the geometry of the whole set.

numpy only, vectorised: a data set's labels are checked before anything else is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dnnlib.util import UserError

ROTATION_TOLERANCE = 1e-2                # largest entry of R R^T - 1; rounded labels pass, scaled ones do not
MAX_PRINCIPAL_POINT = 2.0                # [image sizes]; larger numbers are taken for pixels
MAX_FOCAL = 50.0                         # [image sizes]; a field of view of about one degree

MIN_CAMERAS = 8                          # for judgements from geometry
MAX_MISS_DEG = 5.0                       # median angle by which axes that meet in a point may miss it
MAX_MISS_SHARE = 0.25                    # the same as a share of the spread of the axes, for certainty about a mistake
MAX_REMOTENESS = 4.0                     # [camera distances]; axes are expected to meet this near to the world origin
LABEL_FORM = "cam2world (4 x 4), then intrinsics (3 x 3), row by row"
OVERRIDE = "if the cameras are meant so, --camera-check=off skips this judgement"


def check_camera_labels(
    labels: np.ndarray,                      # [M, 25], float.
    names: Sequence[str] | None = None,      # Of the M images. None = labels are called by number.
    allow_outward: bool = False,             # Skip the judgement of OpenGL axes: the cameras may look outward.
    allow_geometry: bool = False,            # Skip all judgements from geometry.
) -> list[str]:
    """Raises UserError (image, value, remedy) for labels that are not OpenCV cam2world with normalised intrinsics.

    Checks the values of each label. The geometry of the whole set shows two mistakes, world-to-camera matrices and
    OpenGL axes, if eight or more cameras have axes that meet in a point and differ by some degrees.
    Returns remarks for the log, often none.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != 25:
        raise UserError(f"camera labels of shape {list(labels.shape)}, expected 25 numbers per image: {LABEL_FORM}")
    labels = labels.astype(np.float64)
    names = _Names(names, len(labels))
    check_label_values(labels, names)
    return [] if allow_geometry else _judge_geometry(labels, names, allow_outward)


# ---------------------------------------------------------------------------------------------------------------------
# Values of single labels.

def check_label_values(labels: np.ndarray, names: Sequence[str]) -> None:
    """Raises UserError for the first of the labels [M, 25] that is not a camera; names [M]: whose labels they are."""
    finite = np.isfinite(labels)
    _refuse(~finite.all(axis=1), names, lambda i:
            f"number {int(np.argmin(finite[i])) + 1} of the 25 in its camera label is {labels[i][~finite[i]][0]}; "
            "write finite numbers or remove the image")
    pose, lens = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    _check_last_row(pose, names)
    _check_rotation(pose[:, :3, :3], names)
    _check_intrinsics(lens, names)


def _check_last_row(pose: np.ndarray, names: Sequence[str]) -> None:
    unit = np.array([0, 0, 0, 1.0])

    def explain(i: int) -> str:
        if np.abs(pose[i, :, 3] - unit).max() < 1e-3:
            return ("its camera matrix looks transposed: (0, 0, 0, 1) is the last column and "
                    f"{_numbers(pose[i, 3])} the last row; write cam2world row by row, with the position in the last "
                    "column")
        return f"the last row of its camera matrix is {_numbers(pose[i, 3])}, expected (0, 0, 0, 1); write {LABEL_FORM}"

    _refuse(np.abs(pose[:, 3] - unit).max(axis=1) > 1e-3, names, explain)


def _check_rotation(rotation: np.ndarray, names: Sequence[str]) -> None:
    gram = np.einsum("mij,mkj->mik", rotation, rotation)
    error = np.abs(gram - np.eye(3)).max(axis=(1, 2))

    def explain(i: int) -> str:
        scale = np.sqrt(np.trace(gram[i]) / 3)
        if scale > 1e-6 and np.abs(gram[i] / scale ** 2 - np.eye(3)).max() <= ROTATION_TOLERANCE:
            return f"its camera matrix scales by {scale:.4g}, a rotation does not; divide its upper left 3 x 3 by that"
        return ("the upper left 3 x 3 of its camera matrix is no rotation "
                f"(R R^T differs from the identity by {error[i]:.3g}, allowed {ROTATION_TOLERANCE}); "
                f"write {LABEL_FORM}")

    _refuse(error > ROTATION_TOLERANCE, names, explain)
    determinant = np.linalg.det(rotation)
    _refuse(determinant < 0, names, lambda i:
            f"its camera matrix mirrors (determinant {determinant[i]:.3g}, expected +1): one axis points the wrong "
            "way; write x right, y down, z forward")


def _check_intrinsics(lens: np.ndarray, names: Sequence[str]) -> None:
    def last_row(i: int) -> str:
        transposed = np.abs(lens[i, :2, 2]).max() < 1e-6
        remedy = "it looks transposed, write it row by row" if transposed else f"write {LABEL_FORM}"
        return f"the last row of its intrinsics is {_numbers(lens[i, 2])}, expected (0, 0, 1); {remedy}"

    def pixels(i: int) -> str:
        return (f"its intrinsics look like pixels (focal length {_numbers(lens[i, [0, 1], [0, 1]])}, principal point "
                f"{_numbers(lens[i, :2, 2])}); divide the first row by the image width and the second by its height, "
                "so that the centre is near 0.5")

    def focal_sign(i: int) -> str:
        return (f"its focal length is {_numbers(lens[i, [0, 1], [0, 1]])}, expected positive numbers of image sizes; "
                "a negative one belongs to other axes than x right, y down, z forward")

    def lower_triangle(i: int) -> str:
        return f"row 1, column 0 of its intrinsics is {lens[i, 1, 0]:.4g}, expected 0; write {LABEL_FORM}"

    focal = lens[:, [0, 1], [0, 1]]                                                                 # [M, 2]
    # A transposed matrix has its centre in the last row, which the test for pixels does not see: check that row first.
    _refuse(np.abs(lens[:, 2] - np.array([0, 0, 1.0])).max(axis=1) > 1e-3, names, last_row)
    centre_is_far = (np.abs(lens[:, :2, 2]) > MAX_PRINCIPAL_POINT).any(axis=1)
    _refuse(centre_is_far | (np.abs(focal) > MAX_FOCAL).any(axis=1), names, pixels)
    _refuse((focal <= 0).any(axis=1), names, focal_sign)
    _refuse(np.abs(lens[:, 1, 0]) > 1e-3, names, lower_triangle)


# ---------------------------------------------------------------------------------------------------------------------
# Judgements from the geometry of the whole set.

@dataclass(frozen=True)
class _Gaze:
    """How the viewing axes of a set of poses lie."""

    point: np.ndarray                    # [3], nearest to all axes
    miss_deg: float                      # median angle by which they miss it
    spread_deg: float                    # root mean square of their angles (as sines) to their mean direction
    facing: bool                         # most cameras have the point in front of them
    distance: float                      # median distance of the cameras from the point

    @property
    def is_likely(self) -> bool:
        """Do the cameras stand around a scene near the world origin?"""
        return self.miss_deg < MAX_MISS_DEG and bool(np.linalg.norm(self.point) < MAX_REMOTENESS * self.distance)

    @property
    def is_clear(self) -> bool:
        """Do the axes meet more precisely than noise can make them?"""
        return self.miss_deg < MAX_MISS_SHARE * self.spread_deg


def _judge_geometry(labels: np.ndarray, names: _Names, allow_outward: bool) -> list[str]:
    if len(labels) < MIN_CAMERAS:
        return []
    pose = labels[:, :16].reshape(-1, 4, 4)
    as_given = _gaze(pose)
    inverse_pose = _inverse(pose)
    inverse = _gaze(inverse_pose)
    # If the axes meet on the world's z axis, as FFHQ's do, so do those of the inverse matrices. Then the set whose
    # cameras stand around the world origin is the likelier one.
    if not as_given.is_likely and inverse.is_clear:
        axes = " with OpenGL axes" if not inverse.facing and _y_axes_point_up(inverse_pose) else ""
        raise UserError(f"{names.all}: the camera matrices look like world-to-camera{axes}: inverted, their viewing "
                        f"axes meet near {_numbers(inverse.point)}, {inverse.distance:.3g} away from the cameras, and "
                        f"as given they do not; store the inverse matrices; {OVERRIDE}")
    if as_given.is_clear and not as_given.facing:
        if not allow_outward and _y_axes_point_up(pose):
            raise UserError(f"{names.all}: the camera matrices look like OpenGL axes (y up, z backward): the cameras "
                            f"look away from {_numbers(as_given.point)}, where their axes meet, and their y axes point "
                            f"up; negate columns 1 and 2 of each matrix; {OVERRIDE}")
        return [f"the cameras look outward from a point near {_numbers(as_given.point)}"]
    return []


def _gaze(pose: np.ndarray) -> _Gaze:
    origin, forward = pose[:, :3, 3], pose[:, :3, 2]
    point, spread = closest_point_to_axes(origin, forward)
    offset = point - origin
    distance = np.linalg.norm(offset, axis=1)
    cosine = (offset * forward).sum(axis=1) / np.maximum(distance, 1e-12)
    miss_deg = np.degrees(np.arccos(np.clip(np.abs(cosine), 0, 1)))
    return _Gaze(point, miss_deg=float(np.median(miss_deg)), spread_deg=float(np.degrees(np.sqrt(max(spread, 0)))),
                 facing=bool(np.median(cosine) > 0), distance=float(np.median(distance)))


def closest_point_to_axes(origin: np.ndarray, forward: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares intersection of the lines through origin [M, 3] along unit vectors forward [M, 3].

    Returns the point [3] (of several solutions the nearest to the world origin), and the smallest eigenvalue of the
    normal equations per line: 0 for parallel lines, 2/3 for directions all around.
    """
    project = np.eye(3) - np.einsum("mi,mj->mij", forward, forward)             # onto the plane across the line
    normal = project.mean(axis=0)
    point = np.linalg.lstsq(normal, np.einsum("mij,mj->i", project, origin) / len(origin), rcond=1e-6)[0]
    return point, float(np.linalg.eigvalsh(normal)[0])


def world_up(pose: np.ndarray) -> str:
    """'z' for poses [M, 4, 4] that are upright in a world with z up (or down) and not in one with y up; else 'y'."""
    tilt = np.sqrt(np.square(pose[:, 1:3, 0]).mean(axis=0))      # 0 if the right axes are level, so cameras upright
    along = np.abs(pose[:, 1:3, 1].mean(axis=0))                 # shows a rolled camera in a world with y up
    if along[1] <= along[0]:
        return "y"
    if tilt.max() < 1e-3:                                        # all from the front: upright in both worlds
        return "z" if pose[:, 1, 3].mean() < 0 else "y"
    return "z" if tilt[1] < max(tilt[0] - 0.1, tilt[0] / 2) else "y"


def _y_axes_point_up(pose: np.ndarray) -> bool:
    row = {"y": 1, "z": 2}[world_up(pose)]
    return bool(pose[:, row, 1].mean() > 0.3)


def _inverse(pose: np.ndarray) -> np.ndarray:
    inverse = pose.copy()
    inverse[:, :3, :3] = pose[:, :3, :3].transpose(0, 2, 1)
    inverse[:, :3, 3] = -np.einsum("mji,mj->mi", pose[:, :3, :3], pose[:, :3, 3])
    return inverse


# ---------------------------------------------------------------------------------------------------------------------
# Messages.

class _Names:
    """Names of the labels; without given names, their numbers."""

    def __init__(self, names: Sequence[str] | None, count: int):
        assert names is None or len(names) == count, f"{len(names)} names for {count} labels"
        self.names = names

    def __getitem__(self, index: int) -> str:
        return f"label {index}" if self.names is None else self.names[index]

    @property
    def all(self) -> str:
        return f"{self[0]} and all others"


def _refuse(wrong: np.ndarray, names: Sequence[str], explain: Callable[[int], str]) -> None:
    """UserError about the first label for which `wrong` [M] is true."""
    if wrong.any():
        first = int(np.argmax(wrong))
        others = int(wrong.sum()) - 1
        raise UserError(f"{names[first]}: {explain(first)}" + (f" (so in {others} further labels)" if others else ""))


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
