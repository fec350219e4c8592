"""What happens in a training step: each phase accumulates gradients, averages them over ranks and lets its optimiser
step. Main losses run in every step, regularisers less often (lazy regularisation, Karras et al. 2020b, section 3.1).
The average of G's weights follows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import dnnlib
from torch_utils import distributed, misc
from training.run.randomness import PhaseRandom, samples_of

GRADIENT_LIMIT = 1e5                     # what an infinite gradient becomes; NaN becomes 0
RUNNING_MEANS = ("w_avg", "magnitude_ema")


@dataclass
class Phase:
    """One update within a step."""

    name: str                            # for StyleGAN2Loss.accumulate_gradients
    module: torch.nn.Module              # the network it trains
    opt: torch.optim.Optimizer
    interval: int                        # runs in steps 0, interval, 2 interval, ...


@dataclass
class Batch:
    """One rank's share of a step's data, in the order of its samples: images [n, C, H, W] in -1 .. 1, labels [n, D]."""

    images: Tensor
    labels: Tensor


def make_phases(G: torch.nn.Module, D: torch.nn.Module, G_opt_kwargs: dict, D_opt_kwargs: dict,
                G_reg_interval: int | None, D_reg_interval: int | None) -> list[Phase]:
    """The phases in the order of a step. An interval of None puts main loss and regulariser into one phase."""
    phases = []
    for name, module, opt_kwargs, interval in (("G", G, G_opt_kwargs, G_reg_interval),
                                               ("D", D, D_opt_kwargs, D_reg_interval)):
        params = list(module.parameters())
        kwargs = _in_one_pass(lazy_optimizer(opt_kwargs, interval), params)
        opt = dnnlib.util.construct_class_by_name(params=params, **kwargs)
        if interval is None:
            phases.append(Phase(name + "both", module, opt, 1))
        else:
            phases += [Phase(name + "main", module, opt, 1), Phase(name + "reg", module, opt, interval)]
    return phases


def lazy_optimizer(opt_kwargs: dict, interval: int | None) -> dict:
    """Arguments for an optimiser that makes interval + 1 steps in the time of `interval`: rate and betas change
    accordingly. None: no further steps.
    """
    share = 1 if interval is None else interval / (interval + 1)
    return dict(opt_kwargs, lr=opt_kwargs["lr"] * share, betas=[float(beta) ** share for beta in opt_kwargs["betas"]])


def _in_one_pass(opt_kwargs: dict, params: list[torch.nn.Parameter]) -> dict:
    """Makes PyTorch's Adam pass once over each parameter on CPUs. By default it passes about ten times, which is 3 per
    cent of a step of small networks.
    """
    chosen = opt_kwargs.get("fused") is not None or opt_kwargs.get("foreach") is not None
    if not chosen and opt_kwargs["class_name"] == "torch.optim.Adam" and all(p.device.type == "cpu" for p in params):
        return dict(opt_kwargs, fused=True)
    return opt_kwargs


class Stepper:
    """Runs the phases that are due in a step."""

    def __init__(self, phases: list[Phase], loss: object, training_set: object, batch_size: int, num_rounds: int,
                 z_dim: int, seed: int, device: torch.device):
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
        # Running means are linear in the samples, so their average over ranks is that of the whole batch.
        modules = {id(phase.module): phase.module for phase in self.phases}.values()
        distributed.average_([buffer for module in modules for name, buffer in module.named_buffers()
                              if name.endswith(RUNNING_MEANS)])

    def accumulate(self, index: int, step: int, batch: Batch, cur_nimg: int) -> None:
        """Leaves this rank's gradients of phase number `index` in the phase's module."""
        phase = self.phases[index]
        random = PhaseRandom(self.seed, step, index, self.batch_size)
        z, items = random.z(self.z_dim), random.label_indices(len(self.training_set))
        phase.opt.zero_grad(set_to_none=True)
        phase.module.requires_grad_(True)
        for k, samples in enumerate(self.rounds):
            mine = slice(k, None, len(self.rounds))
            gen_z = torch.from_numpy(z[samples]).to(self.device)
            gen_c = torch.from_numpy(self._labels(items[samples])).to(self.device)
            self.loss.accumulate_gradients(
                phase=phase.name, real_img=batch.images[mine], real_c=batch.labels[mine], gen_z=gen_z, gen_c=gen_c,
                gain=phase.interval / len(self.rounds), cur_nimg=cur_nimg, draws=random.draws(samples))
        phase.module.requires_grad_(False)

    def _labels(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.training_set.get_label(int(i)) for i in indices])


def update_weights(phase: Phase) -> None:
    """Averages the gradients over ranks, makes them finite and lets the optimiser step."""
    params = [p for p in phase.module.parameters() if p.grad is not None]
    distributed.average_([p.grad for p in params])
    for p in params:
        p.grad.nan_to_num_(nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT)
    if params:
        phase.opt.step()


class GeneratorEMA:
    """Holds `model`, the averaged copy of G. The half-life grows with the run until it is `kimg` thousand images."""

    def __init__(self, G: torch.nn.Module, kimg: float, rampup: float | None = 0.05):
        self.model = copy.deepcopy(G).eval().requires_grad_(False)
        self.kimg = kimg
        self.rampup = rampup                            # Half-life / images seen so far; None: `kimg` from the start.

    def beta(self, cur_nimg: int, batch_size: int) -> float:
        """The share of the average that stays after a step of `batch_size` images."""
        half_life = self.kimg * 1000
        if self.rampup is not None:
            half_life = min(half_life, cur_nimg * self.rampup)
        return 0.5 ** (batch_size / max(half_life, 1e-8))

    @torch.no_grad()
    def update(self, G: torch.nn.Module, cur_nimg: int, batch_size: int) -> None:
        """Takes in G after a step. Copies buffers, which hold constants or running means."""
        beta = self.beta(cur_nimg, batch_size)
        source = dict(misc.named_params_and_buffers(G))
        averaged = [(p, source[name].to(p.dtype)) for name, p in self.model.named_parameters()]
        torch._foreach_lerp_([p for p, _ in averaged], [new for _, new in averaged], 1 - beta)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(source[name])
