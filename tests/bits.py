"""Numbers of a version of this project, to be compared to the bit with those of another one on the same machine.

    PYTHONPATH=. python tests/bits.py --dest=/tmp/before.npz            # in a clone of the old version
    PYTHONPATH=. python tests/bits.py --compare=/tmp/before.npz         # in the new one

Holds images, logits and gradients of all networks in the reference files, of the shipped networks and of the released
pickles. Machines round differently, so the numbers are not kept in the repository.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import test_networks  # noqa: E402
from helpers import DATA, load_golden  # noqa: E402

import legacy  # noqa: E402
from training.networks.discriminator import Discriminator  # noqa: E402


def labels(module: torch.nn.Module, count: int) -> torch.Tensor:
    """Random labels; where the network knows cameras, real ones with small changes."""
    c = torch.from_numpy(np.random.RandomState(1).randn(count, module.c_dim)).float()
    if module.c_dim == 25:
        camera = torch.as_tensor(load_golden("net_raycond2.npz")["c"])[:1].float()
        c = camera + 0.01 * c
    return c


def generator_numbers(G: torch.nn.Module) -> dict[str, torch.Tensor]:
    z = torch.from_numpy(np.random.RandomState(0).randn(4, G.z_dim)).float()
    c = labels(G, 4)
    arguments = dict(noise_mode="const") if "noise_mode" in str(inspect.signature(type(G.synthesis).forward)) else {}
    out = {}
    for train in (False, True):
        G.train(train).requires_grad_(True).zero_grad(set_to_none=True)
        ws = G.mapping(z, c, truncation_psi=0.7)
        image = G.synthesis(ws, c, **arguments)
        (image * torch.linspace(-1, 1, image.numel()).reshape(image.shape)).sum().backward()
        out[f"image train={train}"] = image.detach()
        out.update({f"gradient train={train} {name}": p.grad for name, p in G.named_parameters() if p.grad is not None})
    return out


def discriminator_numbers(D: torch.nn.Module) -> dict[str, torch.Tensor]:
    image = torch.from_numpy(np.random.RandomState(2).randn(4, D.img_channels, D.img_resolution, D.img_resolution)).float().requires_grad_()
    logits = D.eval().requires_grad_(True)(image, labels(D, 4))
    slope, = torch.autograd.grad(logits.sum(), image, create_graph=True)
    slope.square().sum().backward()
    return {"logits": logits.detach(), "slope": slope.detach(),
            **{f"R1 gradient {name}": p.grad for name, p in D.named_parameters() if p.grad is not None}}


def all_numbers() -> dict[str, np.ndarray]:
    found: dict[str, torch.Tensor] = {}

    def add(source: str, numbers: dict[str, torch.Tensor]) -> None:
        found.update({f"{source}: {name}": value for name, value in numbers.items()})
        print(f"{source}: {len(numbers)} tensors")

    for file in test_networks.GENERATORS:
        add(file, generator_numbers(test_networks.make_generator(file)[0]))
    for file in ("disc_camera.npz", "disc_uncond_skip.npz"):
        golden = load_golden(file)
        D = Discriminator(**golden["init_kwargs"])
        test_networks.load_state(D, golden)
        add(file, discriminator_numbers(D))
    for path in [*sorted((DATA / "pickles").glob("*.pkl")), *sorted((ROOT / "checkpoints").glob("*.pkl"))]:
        networks = legacy.load_network_pkl(path)
        add(f"{path.name} G_ema", generator_numbers(networks["G_ema"]))
        if networks.get("D") is not None:
            add(f"{path.name} D", discriminator_numbers(networks["D"]))
    return {name: value.detach().numpy() for name, value in found.items()}


@click.command()
@click.option("--dest", type=click.Path(dir_okay=False), help="Write the numbers to this file")
@click.option("--compare", type=click.Path(exists=True, dir_okay=False), help="Compare the numbers with those of this file")
def main(dest: str | None, compare: str | None) -> None:
    """Write or compare the numbers of this version."""
    torch.manual_seed(0)
    numbers = all_numbers()
    if dest is not None:
        np.savez(dest, **numbers)
    if compare is not None:
        with np.load(compare) as before:
            common = [name for name in before.files if name in numbers]
            differ = [name for name in common if not np.array_equal(before[name], numbers[name], equal_nan=True)]
            missing = [name for name in before.files if name not in numbers]
        print("\n".join([*(f"DIFFERS {name}" for name in differ), *(f"MISSING {name}" for name in missing)]))
        print(f"{len(common) - len(differ)} of {len(common) + len(missing)} tensors are equal to the bit")
        sys.exit(bool(differ or missing))


if __name__ == "__main__":
    main()
