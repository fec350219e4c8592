"""A training run without data: networks, loss and phases as train.py makes them, random images, true cameras."""

from __future__ import annotations

import collections

import numpy as np
import torch
from convolutions import Convolution, Recorder

import dnnlib
from camera_utils import camera_for
from training.run import config as cfg
from training.run.phases import Batch, Stepper, make_phases, update_weights
from training.training_loop import make_networks, set_backends

ITEMS = 64                              # labels to draw from


class Cameras:
    """As much of a data set as a step asks for: camera labels."""

    def __init__(self) -> None:
        yaw_rad = torch.linspace(-0.4, 0.4, ITEMS)
        self.labels = camera_for("ffhq", yaw=yaw_rad, pitch=yaw_rad / 4).to_label().to(torch.float32).numpy()

    def __len__(self) -> int:
        return ITEMS

    def get_label(self, index: int) -> np.ndarray:
        return self.labels[index]


class TrainingStep:
    """The phases of a preset on random tensors."""

    def __init__(self, preset: str, resolution: int, batch: int | None, device: torch.device,
                 batch_gpu: int | None = None, **options: object):
        """batch: None = the preset's. options: of training.run.config.Options, such as bf16."""
        self.options = cfg.Options(outdir="", data="", cfg=preset, batch=batch, batch_gpu=batch_gpu, **options)
        info = cfg.DataInfo("random", ITEMS, resolution, num_channels=3, label_dim=25, has_camera_labels=True)
        config = self.config = cfg.build_config(self.options, cfg.preset_of(self.options), info).config
        self.device = device
        self.batch_size = config.batch_size
        set_backends(config, device)
        self.G, self.D, self.ema = make_networks(config, device)
        loss = dnnlib.util.construct_class_by_name(
            device=device, G=self.G, D=self.D, augment_pipe=None, **config.loss_kwargs)
        phases = make_phases(self.G, self.D, config.G_opt_kwargs, config.D_opt_kwargs,
                             config.G_reg_interval, config.D_reg_interval)
        cameras = Cameras()
        self.stepper = Stepper(phases, loss, cameras, config.batch_size, config.batch_size // config.batch_gpu,
                               self.G.z_dim, config.random_seed, device)
        images = torch.rand([config.batch_size, 3, resolution, resolution], device=device) * 2 - 1
        self.batch = Batch(images, torch.from_numpy(cameras.labels[np.arange(config.batch_size) % ITEMS]).to(device))

    @property
    def intervals(self) -> dict[str, int]:
        """Name of each phase, in their order -> it runs in one step out of so many."""
        return {phase.name: phase.interval for phase in self.stepper.phases}

    def run(self, name: str) -> None:
        """One phase with its optimiser's step."""
        phases = self.stepper.phases
        index = [phase.name for phase in phases].index(name)
        self.stepper.accumulate(index, 0, self.batch, cur_nimg=0)
        update_weights(phases[index])

    def recorded_run(self, name: str) -> collections.Counter[Convolution]:
        """The same; returns what the phase convolved."""
        with Recorder() as recorder:
            self.run(name)
        return recorder.counts

    def update_average(self) -> None:
        """What follows the phases."""
        self.ema.update(self.G, cur_nimg=10 ** 6, batch_size=self.batch_size)
