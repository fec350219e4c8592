"""What happens in a step: main losses every time, regularisers every so often (lazy regularisation, Karras et al. 2020b,
section 3.1), each with its optimiser step over gradients averaged across ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import dnnlib
from torch_utils import distributed
from training.randomness import PhaseRandom, samples_of

GRADIENT_LIMIT = 1e5                     # what an infinite gradient becomes; NaN becomes 0
RUNNING_MEANS = ("w_avg", "magnitude_ema")


@dataclass
class Phase:
    """One of a step's updates."""

    name: str                            # for StyleGAN2Loss.accumulate_gradients
    module: torch.nn.Module              # the network it trains
    opt: torch.optim.Optimizer
    interval: int                        # runs in steps 0, interval, 2 interval, ...


@dataclass
class Batch:
    """What one rank sees of a step's data: images -1 .. 1 [n, C, H, W] and labels [n, c_dim], in the order of its samples."""

    images: torch.Tensor
    labels: torch.Tensor


def make_phases(G: torch.nn.Module, D: torch.nn.Module, G_opt_kwargs: dict, D_opt_kwargs: dict,
                G_reg_interval: int | None, D_reg_interval: int | None) -> list[Phase]:
    """The phases in the order of a step. An interval of None puts main loss and regulariser into one phase."""
    phases = []
    for name, module, opt_kwargs, interval in [("G", G, G_opt_kwargs, G_reg_interval), ("D", D, D_opt_kwargs, D_reg_interval)]:
        params = list(module.parameters())
        opt = dnnlib.util.construct_class_by_name(params=params, **_in_one_pass(lazy_optimizer(opt_kwargs, interval), params))
        if interval is None:
            phases.append(Phase(name + "both", module, opt, 1))
        else:
            phases += [Phase(name + "main", module, opt, 1), Phase(name + "reg", module, opt, interval)]
    return phases


def lazy_optimizer(opt_kwargs: dict, interval: int | None) -> dict:
    """Adam makes interval + 1 steps in the time of `interval`: its rate and memory shrink accordingly. None: no further steps."""
    share = 1 if interval is None else interval / (interval + 1)
    return dict(opt_kwargs, lr=opt_kwargs["lr"] * share, betas=[float(beta) ** share for beta in opt_kwargs["betas"]])


def _in_one_pass(opt_kwargs: dict, params: list[torch.nn.Parameter]) -> dict:
    """On CPUs PyTorch's Adam makes some ten passes over each parameter unless it is told to make one; for small networks
    that is 3 per cent of a step.
    """
    chosen = opt_kwargs.get("fused") is not None or opt_kwargs.get("foreach") is not None
    if not chosen and opt_kwargs["class_name"] == "torch.optim.Adam" and all(p.device.type == "cpu" for p in params):
        return dict(opt_kwargs, fused=True)
    return opt_kwargs


class Stepper:
    """Runs the phases that are due in a step."""

    def __init__(self, phases: list[Phase], loss: object, training_set: object, batch_size: int, num_rounds: int, z_dim: int, seed: int,
                 device: torch.device):
        self.phases = phases
        self.loss = loss
        self.training_set = training_set
        self.batch_size = batch_size
        self.z_dim = z_dim
        self.seed = seed
        self.device = device
        self.rounds = samples_of(distributed.get_rank(), distributed.get_world_size(), num_rounds, batch_size)

    def step(self, step: int, batch: Batch, cur_nimg: int) -> None:
        for index, phase in enumerate(self.phases):
            if step % phase.interval == 0:
                self.accumulate(index, step, batch, cur_nimg)
                update_weights(phase)
        # Means that forward passes keep are linear in what they saw, so averaging them equals having seen the whole batch.
        modules = {id(phase.module): phase.module for phase in self.phases}.values()
        distributed.average_([b for module in modules for name, b in module.named_buffers() if name.endswith(RUNNING_MEANS)])

    def accumulate(self, index: int, step: int, batch: Batch, cur_nimg: int) -> None:
        """Leaves this rank's gradients of phase number `index` in its module."""
        phase = self.phases[index]
        random = PhaseRandom(self.seed, step, index, self.batch_size)
        z, items = random.z(self.z_dim), random.label_indices(len(self.training_set))
        phase.opt.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        for k, samples in enumerate(self.rounds):
            mine = slice(k, None, len(self.rounds))
            gen_z, gen_c = torch.from_numpy(z[samples]).to(self.device), torch.from_numpy(self._labels(items[samples])).to(self.device)
            self.loss.accumulate_gradients(phase=phase.name, real_img=batch.images[mine], real_c=batch.labels[mine],
                                           gen_z=gen_z, gen_c=gen_c,
                                           gain=phase.interval / len(self.rounds), cur_nimg=cur_nimg, draws=random.draws(samples))
        phase.module.requires_grad_(False)

    def _labels(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.training_set.get_label(int(i)) for i in indices])


def update_weights(phase: Phase) -> None:
    """Averages the gradients over ranks, makes them finite, and lets the optimiser step."""
    params = [p for p in phase.module.parameters() if p.grad is not None]
    distributed.average_([p.grad for p in params])
    for p in params:
        p.grad.nan_to_num_(nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT)
    if params:
        phase.opt.step()
