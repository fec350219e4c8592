"""Activation checkpointing: blocks keep only their inputs and compute the rest again in the backward pass, which takes
less memory and more time (Chen et al. 2016).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from training import networks_stylegan2, networks_stylegan3
from training.networks.discriminator import DiscriminatorBlock

BLOCKS = (networks_stylegan2.SynthesisBlock, networks_stylegan3.SynthesisLayer, DiscriminatorBlock)


def checkpoint_activations(network: torch.nn.Module) -> None:
    """Makes the network's blocks do so if gradients are recorded. Results, gradients and random draws stay the same."""
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.forward = functools.partial(_forward, type(block).forward, block)


def _forward(function: Any, block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(block, *args, **kwargs)
    runs = 0

    def run(*args: Any) -> Any:
        nonlocal runs
        runs += 1
        again = runs > 1 and kwargs.get("update_emas")          # running means have seen these samples already
        return function(block, *args, **(dict(kwargs, update_emas=False) if again else kwargs))

    return checkpoint(run, *args, use_reentrant=False)
