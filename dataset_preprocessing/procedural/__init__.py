"""Posed images of procedural scenes with known geometry: a seed gives a scene, which any camera can see.

    scene = sample_scene("heads", 7)
    labels = sample_labels("heads", [7, 7, 7, 7], views=[0, 1, 2, 3])     # [4, 25]
    images = render(scene, labels, resolution=128)                        # uint8 [4, 128, 128, 3]
    seen = render_rays(scene, origins, directions)                        # colour, depth, solid and normal of any rays

`render.py` beside this file writes data sets; from Python, `render_dataset` does.
"""

from dataset_preprocessing.procedural.dataset import VERSION, render_dataset
from dataset_preprocessing.procedural.kinds import KINDS, sample_angles, sample_labels, sample_scene
from dataset_preprocessing.procedural.renderer import Rendered, render, render_rays
from dataset_preprocessing.procedural.scenes import Scene

__all__ = ["KINDS", "Rendered", "Scene", "VERSION", "render", "render_dataset", "render_rays", "sample_angles",
           "sample_labels", "sample_scene"]
