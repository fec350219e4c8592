"""What the commands that train the two small networks share: checks and options."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from dnnlib import UserError, cli
from metrics.small_training import RESOLUTIONS, Recipe
from torch_utils.distributed import choose_device


def check_dest(dest: str) -> None:
    """Raises UserError where the file cannot be written."""
    folder = os.path.dirname(os.path.abspath(dest))
    if not dest or os.path.isdir(dest):
        raise UserError(f"--dest={dest}: expected the name of a file, such as pose-heads.pt")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"--dest={dest}: cannot write into {folder}; create the folder, or choose another")


def recipe_options(usual: Recipe, data: str, batch: str, least_batch: int) -> Callable:
    """Decorator: the options of `make_recipe`, with --data and --dest. data, batch: help on these."""
    options = [
        click.option("--data",       help=data, metavar="ZIP|DIR", required=True, type=cli.PATH),
        click.option("--dest",       help="TorchScript file to write; replaced if it is there", metavar="FILE", required=True, type=cli.PATH),
        click.option("--resolution", help="Size that the network brings images to  [default: the images', at most 64]",
                     type=click.Choice([str(size) for size in RESOLUTIONS]), metavar="PIXELS"),
        click.option("--kimg",       help="Thousands of images to train on, repetitions counted", type=click.FloatRange(min=0, min_open=True),
                     default=usual.kimg),
        click.option("--batch",      help=batch, type=click.IntRange(min=least_batch), default=usual.batch),
        click.option("--seed",       help="Random seed", type=click.IntRange(0, 2 ** 32 - 1), default=0),
        click.option("--device",     help="auto: CUDA where there is some, else the CPU", type=click.Choice(["auto", "cuda", "cpu"]), default="auto"),
    ]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def make_recipe(resolution: str | None, kimg: float, batch: int, seed: int, device: str) -> Recipe:
    """From the values of these options."""
    return Recipe(resolution=int(resolution) if resolution else None, kimg=kimg, batch=batch, seed=seed, device=choose_device(device))
