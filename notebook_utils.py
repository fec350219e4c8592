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
from training.run.snapshots import to_uint8

__all__ = ["explore", "generate", "latent", "layout_grid", "load_network", "make_sheet", "show"]

SHEET_WIDTH = 1600                       # [pixels] that a notebook shows without making them smaller
LEAST_VIEW = 128                         # [pixels] below which a view is enlarged


def load_network(network: str | os.PathLike, device: Any = None, name: str = "G_ema") -> torch.nn.Module:
    """A network of the file (path or address), ready to run. device: None = CUDA if it is there. name: G_ema, G, D."""
    module = legacy.load_network_pkl(network)[name].eval().requires_grad_(False)
    return module.to(choose_device("auto") if device is None else device)


def latent(G: torch.nn.Module, seed: int, count: int = 1) -> torch.Tensor:
    """z [count, z_dim] on G's device: what torch.randn draws on the CPU after torch.manual_seed(seed)."""
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
    fits = {len(z), len(labels)} <= {1, count}
    assert fits, f"{len(z)} latents and {len(labels)} cameras, expected equally many, or one of either"
    z, c = (value.to(device, torch.float32).expand(count, -1) for value in (z, labels))
    batch = batch or max(1, min(16, PIXELS_PER_PASS // G.img_resolution ** 2))
    pairs = zip(z.split(batch), c.split(batch))
    return torch.cat([G(zs, cs, truncation_psi=truncation_psi, **kwargs).float().cpu() for zs, cs in pairs])


def layout_grid(img: torch.Tensor, grid_w: int | None = None, grid_h: int = 1, float_to_uint8: bool = True,
                chw_to_hwc: bool = True, to_numpy: bool = True) -> Any:
    """Images [N, C, H, W] as one, row by row: [grid_h H, grid_w W, C]. float_to_uint8: from -1 .. 1 to uint8."""
    grid_w = len(img) // grid_h if grid_w is None else grid_w
    assert len(img) == grid_w * grid_h, f"{len(img)} images for {grid_w} columns and {grid_h} rows"
    img = to_uint8(img) if float_to_uint8 else img
    C, H, W = img.shape[1:]
    img = img.reshape(grid_h, grid_w, C, H, W).permute(2, 0, 3, 1, 4).reshape(C, grid_h * H, grid_w * W)
    img = img.permute(1, 2, 0) if chw_to_hwc else img
    return img.cpu().numpy() if to_numpy else img


def make_sheet(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Images [N, C, H, W] in -1 .. 1 at their own size, small ones enlarged by a whole factor.

    columns: None = as many as fit side by side. What is left of the last row is white.
    """
    enlarge = max(1, LEAST_VIEW // images.shape[3])
    columns = columns or max(1, min(len(images), SHEET_WIDTH // (images.shape[3] * enlarge)))
    images = torch.cat([images, torch.ones_like(images[:1]).expand(-len(images) % columns, -1, -1, -1)])
    images = images.repeat_interleave(enlarge, dim=2).repeat_interleave(enlarge, dim=3)
    pixels = layout_grid(images, columns, len(images) // columns)
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))


def show(images: torch.Tensor, title: str = "", columns: int | None = None) -> None:
    """Displays images [N, C, H, W] in -1 .. 1 as `make_sheet` lays them out."""
    from IPython import display

    stream = io.BytesIO()
    make_sheet(images, columns).save(stream, "png", optimize=True)
    if title:
        print(title)
    display.display(display.Image(data=stream.getvalue()))


def explore(
    G: torch.nn.Module,
    make_camera: Callable[[float, float], camera_utils.Camera],         # (yaw, pitch) [rad] -> one camera.
    yaw_range: Sequence[float],
    pitch_range: Sequence[float],
    seed: int = 0,
    truncation_psi: float = 0.7,
) -> None:
    """An image with sliders for seed, yaw, pitch and truncation, where ipywidgets is installed; else it says so."""
    try:
        import ipywidgets
    except ImportError:
        print("Sliders need ipywidgets: pip install ipywidgets, then restart the notebook.")
        return

    def slider(low: float, high: float, value: float) -> Any:
        return ipywidgets.FloatSlider(value, min=low, max=high, step=(high - low) / 50, continuous_update=False)

    def draw(seed: int, yaw: float, pitch: float, truncation: float) -> None:
        show(generate(G, latent(G, seed), make_camera(yaw, pitch), truncation))

    ipywidgets.interact(draw, seed=ipywidgets.IntSlider(seed, min=0, max=999, continuous_update=False),
                        yaw=slider(*yaw_range, sum(yaw_range) / 2), pitch=slider(*pitch_range, sum(pitch_range) / 2),
                        truncation=slider(0, 1, truncation_psi))


def _device_of(G: torch.nn.Module) -> torch.device:
    return next(G.parameters()).device
