"""The cameras of the package `camera_utils`, for old notebooks that import them from here."""

from camera_utils.poses import (
    FOV_to_intrinsics,
    GaussianCameraPoseSampler,
    LookAtPoseSampler,
    UniformBlenderPoseSampler,
    UniformCameraPoseSampler,
    create_blender_cam2world_matrix,
    create_cam2world_matrix,
    normalize_vecs,
)

__all__ = ["FOV_to_intrinsics", "GaussianCameraPoseSampler", "LookAtPoseSampler", "UniformBlenderPoseSampler",
           "UniformCameraPoseSampler", "create_blender_cam2world_matrix", "create_cam2world_matrix", "normalize_vecs"]
