"""Cameras: labels, poses, paths, rays and checks. No network code. docs/conventions.md states the conventions."""

from camera_utils.camera import LABEL_DIM, Camera, yaw_pitch
from camera_utils.checks import check_camera_labels
from camera_utils.datasets import DATASETS, DatasetCameras, camera_for, camera_stats, dataset_cameras
from camera_utils.files import load_camera_file
from camera_utils.poses import (
    FOV_to_intrinsics,
    GaussianCameraPoseSampler,
    LookAtPoseSampler,
    UniformBlenderPoseSampler,
    UniformCameraPoseSampler,
    create_blender_cam2world_matrix,
    create_cam2world_matrix,
    h_to_yaw,
    normalize_vecs,
    pitch_to_v,
    v_to_pitch,
    yaw_to_h,
)
from camera_utils.rays import (
    CONVENTIONS,
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
from camera_utils.trajectories import Keyframes, Orbit, Spiral, Sweep, trajectory

__all__ = [
    "CONVENTIONS", "Camera", "DATASETS", "DatasetCameras", "FOV_to_intrinsics", "GaussianCameraPoseSampler",
    "Keyframes", "LABEL_DIM", "LookAtPoseSampler", "Orbit", "Spiral", "Sweep", "UniformBlenderPoseSampler",
    "UniformCameraPoseSampler", "camera_for", "camera_stats", "check_camera_labels",
    "create_blender_cam2world_matrix", "create_cam2world_matrix", "dataset_cameras", "h_to_yaw", "image_grid",
    "load_camera_file", "normalize_vecs", "origin_direction", "pitch_to_v", "plucker", "project", "ray_basis",
    "ray_directions", "ray_map", "ray_origins", "trajectory", "two_plane", "v_to_pitch", "yaw_pitch",
    "yaw_to_h",
]
