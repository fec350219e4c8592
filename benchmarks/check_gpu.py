"""Networks on a GPU beside the reference path: images, the gradients of every phase, autocast.

Prints relative errors (2-norm); nothing is timed.

    python benchmarks/check_gpu.py                    # a minute, with the building of the kernels
    python benchmarks/check_gpu.py --device=cpu       # the same lines without a GPU, to see that the script runs
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import click
import torch

import camera_utils
from training import networks_raycond2, networks_raycond3, networks_stylegan2, networks_stylegan3
from training.loss import StyleGAN2Loss
from training.networks.discriminator import Discriminator

KINDS = {
    "stylegan2":   (networks_stylegan2, {}),
    "raycond2":    (networks_raycond2, dict(rays="pinhole")),
    "stylegan3-t": (networks_stylegan3, {}),
    "raycond3-t":  (networks_raycond3, dict(rays="pinhole")),
    "raycond3-r":  (networks_raycond3, dict(rays="pinhole", conv_kernel=1, use_radial_filters=True)),
}
SIZES = dict(c_dim=25, img_resolution=64, img_channels=3, channel_base=2048, channel_max=64, conv_clamp=256)
BATCH = 4


def networks(kind: str, device: str, half: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """G and D with the same weights each time."""
    torch.manual_seed(0)
    module, kwargs = KINDS[kind]
    sizes = dict(SIZES, num_fp16_res=4 if half else 0)
    return module.Generator(z_dim=64, w_dim=64, **sizes, **kwargs).to(device), Discriminator(**sizes).to(device)


def inputs(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, cameras, real images."""
    draw = torch.Generator().manual_seed(1)
    yaw = torch.linspace(-0.5, 0.5, BATCH, dtype=torch.float32)
    c = camera_utils.Camera.look_at(yaw, 0.1 * yaw, 2.7, focal=4.2647).to_label()
    real = torch.rand([BATCH, 3, 64, 64], generator=draw, dtype=torch.float32) * 2 - 1
    return tuple(x.to(device) for x in (torch.randn([BATCH, 64], generator=draw, dtype=torch.float32), c, real))


def image(kind: str, device: str, half: bool) -> torch.Tensor:
    z, c, _ = inputs(device)
    with torch.no_grad():
        return networks(kind, device, half)[0](z, c, noise_mode="const")


def gradients(kind: str, device: str, half: bool,
              autocast: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(phase, all gradients of its network as one vector)."""
    G, D = networks(kind, device, half)
    z, c, real = inputs(device)
    loss = StyleGAN2Loss(device, G, D, r1_gamma=1, pl_weight=2)
    regularised = [("Greg", G)] if "2" in kind else []              # StyleGAN3 has no path length to regularise
    for phase, module in (("Gmain", G), *regularised, ("Dmain", D), ("Dreg", D)):
        G.requires_grad_(module is G)
        D.requires_grad_(module is D)
        module.zero_grad()
        torch.manual_seed(5)
        with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            loss.accumulate_gradients(phase, real, c, z, c, gain=1, cur_nimg=0)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        yield phase, torch.cat([gradient.flatten() for gradient in found])


def show(kind: str, ops: str, dtype: str, found: dict, expected: dict, *images: torch.Tensor) -> None:
    errors = [f"{phase} {error(found[phase], expected[phase])}" for phase in expected]
    print(f"{kind:<12}{ops:<10}{dtype:<9}", *([f"image {error(*images)}"] if images else []), *errors, sep="  ")


def error(actual: torch.Tensor, expected: torch.Tensor) -> str:
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return f"{(actual - expected).norm() / expected.norm():.1e}"


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def main(device: str) -> None:
    """Prints how far each path is from the definition of the ops in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(torch.__version__, torch.cuda.get_device_name() if device == "cuda" else "CPU")
    for kind in KINDS:
        os.environ["RAYCOND_OPS"] = "reference"
        expected_image, expected = image(kind, "cpu", half=False), dict(gradients(kind, device, half=False))
        for ops, half in (("reference", True), ("auto", False), ("auto", True)):
            os.environ["RAYCOND_OPS"] = ops
            found = dict(gradients(kind, device, half))
            show(kind, ops, "half" if half else "float32", found, expected, image(kind, device, half), expected_image)
        for dtype in (torch.float16, torch.bfloat16):
            show(kind, "autocast", str(dtype)[6:], dict(gradients(kind, device, False, autocast=dtype)), expected)


if __name__ == "__main__":
    main()
