"""A world that small networks learn in seconds: a coloured wall per scene, and a light spot whose place in the image tells the camera."""

import io
import json
import zipfile

import numpy as np
import torch
from PIL import Image

from camera_utils import Camera, camera_for
from metrics.detectors.pose_regressor import train_pose_regressor
from metrics.detectors.scene_embedding import train_scene_embedding
from metrics.detectors.training import Recipe, dataset_kwargs_for

SIZE = 16
YAW, PITCH = 0.7, 0.25                   # [rad] the spot reaches the border beyond these


def draw_toy(colors, labels):
    """colors: [N, 3] in 0 .. 1; labels: [N, 25]. Returns images [N, 3, SIZE, SIZE] in -1 .. 1."""
    yaw, pitch = Camera.from_label(labels).yaw_pitch()
    x, y = (0.5 + 0.4 * angle[:, None, None] / limit for angle, limit in ((yaw, YAW), (pitch, PITCH)))
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    spot = torch.exp(-((axis[None, None] - x) ** 2 + (axis[None, :, None] - y) ** 2) / 0.02)[:, None]           # [N, 1, SIZE, SIZE]
    wall = (2 * colors - 1)[:, :, None, None] * 0.6
    return torch.lerp(wall, torch.ones_like(wall), spot)


def toy_labels(count, seed=0):
    rng = np.random.RandomState(seed)
    return camera_for("heads", torch.from_numpy(rng.uniform(-YAW, YAW, count)).float(), torch.from_numpy(rng.uniform(-PITCH, PITCH, count)).float()).to_label()


def write_toy(path, scenes, views, seed=0):
    """A zip of so many scenes with so many views each; dataset.json names the scenes. Returns the path as a string."""
    labels = toy_labels(scenes * views, seed)
    colors = torch.rand([scenes, 3], generator=torch.Generator().manual_seed(seed)).repeat_interleave(views, dim=0)
    images = (draw_toy(colors, labels) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    names = [f"00000/img{i:08d}.png" for i in range(len(images))]
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in zip(names, images):
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
        archive.writestr("dataset.json", json.dumps(dict(labels=[[name, label] for name, label in zip(names, labels.tolist())],
                                                         scenes=[[name, i // views] for i, name in enumerate(names)])))
    return str(path)


def toy_world(base):
    """(zip of 100 walls with 4 views each, its pose regressor, its scene embedding) in the folder `base`, made once."""
    folder = base / "toy-world"
    paths = data, pose, scene = [str(folder / name) for name in ("toy.zip", "pose.pt", "scene.pt")]
    if not folder.exists():
        folder.mkdir()
        write_toy(data, 100, 4)
        train_pose_regressor(dataset_kwargs_for(data), pose, Recipe(kimg=2.5, batch=32), progress=False)
        train_scene_embedding(dataset_kwargs_for(data), scene, Recipe(kimg=2, batch=64), progress=False)
    return paths


class ToyGenerator(torch.nn.Module):
    """Faithful unless told otherwise: the colour of the wall comes from the latent, the place of the spot from the camera."""

    z_dim, c_dim, img_resolution, img_channels = 4, 25, SIZE, 3

    def __init__(self, ignores=""):
        super().__init__()
        assert ignores in ("", "camera", "latent")
        self.ignores = ignores
        self.eval()

    def forward(self, z, c):
        colors = torch.special.ndtr(z[:, :3])
        if self.ignores == "latent":
            colors = torch.full_like(colors, 0.4)
        if self.ignores == "camera":             # the spot sits where the latent says
            angle = (2 * torch.special.ndtr(z[:, 3]) - 1) * YAW
            c = camera_for("heads", angle, torch.zeros_like(angle)).to_label()
        return draw_toy(colors, c)
