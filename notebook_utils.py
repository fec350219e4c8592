"""What the notebooks share: opening a network, generating, showing images at their own size, sliders.

    from notebook_utils import *

is how old notebooks take them; ours name what they use.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import camera_utils
import legacy
from gen_images import PIXELS_PER_PASS
from torch_utils.distributed import choose_device
from training.snapshots import to_uint8

__all__ = ["explore", "generate", "latent", "layout_grid", "load_network", "make_sheet", "show"]

SHEET_WIDTH = 1600                       # [pixels] that a notebook shows without making them smaller
LEAST_VIEW = 128                         # [pixels] below which a view is enlarged


def load_network(network: str | os.PathLike, device: torch.device | str | None = None, name: str = "G_ema") -> torch.nn.Module:
    """A network of the file (path or address), ready to run. device: None = CUDA where there is some. name: G_ema, G or D."""
    return legacy.load_network_pkl(network)[name].eval().requires_grad_(False).to(choose_device("auto") if device is None else device)


def latent(G: torch.nn.Module, seed: int, count: int = 1) -> torch.Tensor:
    """z [count, z_dim] on G's device: what `torch.randn` draws after `torch.manual_seed(seed)`, on the CPU, so that a seed is the same anywhere."""
    torch.manual_seed(seed)
    return torch.randn([count, G.z_dim], dtype=torch.float32).to(_device_of(G))


@torch.no_grad()
def generate(
    G: torch.nn.Module,
    z: torch.Tensor,                                        # [N, z_dim], or [1, z_dim]: one for all cameras.
    cameras: camera_utils.Camera | torch.Tensor,            # Cameras or labels [N, c_dim], or one for all latents.
    truncation_psi: float = 0.7,
    batch: int | None = None,                               # Images at a time; None: by resolution.
    **kwargs: Any,                                          # For G.
) -> torch.Tensor:                                          # [N, C, H, W] in -1 .. 1, on the CPU.
    """Images of latents seen from cameras, with constant noise unless `noise_mode` is given."""
    device, kwargs = _device_of(G), dict(dict(noise_mode="const"), **kwargs)
    labels = cameras.to_label() if isinstance(cameras, camera_utils.Camera) else cameras
    count = max(len(z), len(labels))
    assert {len(z), len(labels)} <= {1, count}, f"{len(z)} latents and {len(labels)} cameras, expected equally many, or one of either"
    z, c = (value.to(device, torch.float32).expand(count, -1) for value in (z, labels))
    batch = batch or max(1, min(16, PIXELS_PER_PASS // G.img_resolution ** 2))
    return torch.cat([G(zs, cs, truncation_psi=truncation_psi, **kwargs).float().cpu() for zs, cs in zip(z.split(batch), c.split(batch))])


def layout_grid(img: torch.Tensor, grid_w: int | None = None, grid_h: int = 1, float_to_uint8: bool = True, chw_to_hwc: bool = True,
                to_numpy: bool = True) -> Any:
    """Images [N, C, H, W] as one, row by row: [grid_h H, grid_w W, C]. `float_to_uint8`: they are in -1 .. 1 and become uint8."""
    grid_w = len(img) // grid_h if grid_w is None else grid_w
    assert len(img) == grid_w * grid_h, f"{len(img)} images for {grid_w} columns and {grid_h} rows"
    img = to_uint8(img) if float_to_uint8 else img
    C, H, W = img.shape[1:]
    img = img.reshape(grid_h, grid_w, C, H, W).permute(2, 0, 3, 1, 4).reshape(C, grid_h * H, grid_w * W)
    img = img.permute(1, 2, 0) if chw_to_hwc else img
    return img.cpu().numpy() if to_numpy else img


def make_sheet(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Images [N, C, H, W] in -1 .. 1 at their own size, small ones enlarged by a whole factor. columns: None = as many as fit side by side."""
    enlarge = max(1, LEAST_VIEW // images.shape[3])
    columns = columns or max(1, min(len(images), SHEET_WIDTH // (images.shape[3] * enlarge)))
    images = torch.cat([images, torch.ones_like(images[:1]).expand(-len(images) % columns, -1, -1, -1)])        # white where the last row is not full
    pixels = layout_grid(images.repeat_interleave(enlarge, dim=2).repeat_interleave(enlarge, dim=3), columns, len(images) // columns)
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))


def show(images: torch.Tensor, title: str = "", columns: int | None = None) -> None:
    """Displays images [N, C, H, W] in -1 .. 1 as `make_sheet` lays them out."""
    from IPython import display

    stream = io.BytesIO()
    make_sheet(images, columns).save(stream, "png", optimize=True)
    if title:
        print(title)
    display.display(display.Image(data=stream.getvalue()))


def explore(G: torch.nn.Module, make_camera: Callable[[float, float], camera_utils.Camera], yaw_range: Sequence[float], pitch_range: Sequence[float],
            seed: int = 0, truncation_psi: float = 0.7) -> None:
    """An image with sliders for seed, yaw and pitch [rad] and truncation, where ipywidgets is installed; else one line that says so."""
    try:
        import ipywidgets
    except ImportError:
        print("Sliders need ipywidgets: pip install ipywidgets, then restart the notebook.")
        return

    def angle(ends: Sequence[float]) -> Any:
        return ipywidgets.FloatSlider((ends[0] + ends[1]) / 2, min=ends[0], max=ends[1], step=(ends[1] - ends[0]) / 50, continuous_update=False)

    def draw(seed: int, yaw: float, pitch: float, truncation: float) -> None:
        show(generate(G, latent(G, seed), make_camera(yaw, pitch), truncation))

    ipywidgets.interact(draw, seed=ipywidgets.IntSlider(seed, min=0, max=999, continuous_update=False), yaw=angle(yaw_range), pitch=angle(pitch_range),
                        truncation=ipywidgets.FloatSlider(truncation_psi, min=0, max=1, step=0.05, continuous_update=False))


def _device_of(G: torch.nn.Module) -> torch.device:
    return next(G.parameters()).device
