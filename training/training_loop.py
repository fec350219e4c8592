"""The training loop: named parts in the order in which they run. What the parts do is in `training.run`."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dnnlib
import network_files
from torch_utils import distributed, memory, misc, signals
from training.networks.checkpointing import checkpoint_activations
from training.networks.transfer import check_match, sources_of, warm_start
from training.run import resume, snapshots
from training.run import state as training_state
from training.run.ada import make_augmentation
from training.run.phases import Batch, GeneratorEMA, Stepper, make_phases
from training.run.randomness import seed_layer_noise
from training.run.snapshots import ImageSnapshots, choose_reals, save_network
from training.run.state import Counters, Progress
from training.run.status import Status


def training_loop(
    config:         dict,                               # training_options.json, or run.config.build_config().config.
    rank:           int                     = 0,        # Of this process among config.num_gpus.
    device:         torch.device | str | None = None,   # None: config.device.
    evaluate:       Callable | None         = None,     # (snapshot, run_dir, metric names) -> dict; None: no metrics.
    state:          str | None              = None,     # training-state-*.pt to continue; None: config.resume_state.
) -> int:                                               # 0: trained to the end; else the signal that ended it.
    """Trains in `config.run_dir`. Call it in every process of the run."""
    with signals.StopRequest() as stop:
        try:
            device = torch.device(config["device"] if device is None else device)
            _train(dnnlib.EasyDict(config), rank, device, evaluate, state, stop)
        except signals.Interrupted:
            pass
        return stop.number


def _train(config: dnnlib.EasyDict, rank: int, device: torch.device, evaluate: Callable | None, state_path: str | None,
           stop: signals.StopRequest) -> None:
    set_backends(config, device)
    state_path = state_path or config.get("resume_state")
    state = None if state_path is None else training_state.load(state_path)
    dataset = dnnlib.util.construct_class_by_name(**config.training_set_kwargs)
    progress = make_progress(config, dataset, device, state, state_path)
    G, D, counters, status = progress.G, progress.D, progress.counters, progress.status
    if rank == 0:
        describe(G, D, dataset, config.batch_gpu, device)
    num_rounds = config.batch_size // (config.batch_gpu * config.num_gpus)
    stepper = Stepper(progress.phases, progress.loss, dataset, config.batch_size, num_rounds, G.z_dim,
                      config.random_seed, device)
    maintenance = Maintenance(config, progress, dataset, evaluate, device, fresh=state is None)
    if rank == 0:
        print(f"{config.total_kimg - counters.cur_nimg / 1000:g} kimg to go.\n")

    def end_tick(is_saved: bool) -> None:
        """is_saved: the current step is on the disk, so the run may be stopped meanwhile."""
        with stop.may_leave() if is_saved else contextlib.nullcontext():
            maintenance.run()
            distributed.barrier()                       # or one rank would begin a step while another one leaves

    batches = iterate_batches(dataset, config, rank, device, start=counters.cur_nimg)
    # Left to the garbage collector, the loader's workers can outlive the loop and keep the process from ending.
    with contextlib.closing(batches), contextlib.closing(status), memory.settled_objects():
        if counters.tick_ended:                         # the earlier process was stopped there
            end_tick(is_saved=state is not None)
        while not counters.done:
            batch = next(batches)                       # before seeding, since starting the loader draws numbers
            seed_layer_noise(config.random_seed, counters.step, rank)
            stepper.step(counters.step, batch, counters.cur_nimg)
            progress.G_ema.update(G, counters.cur_nimg, config.batch_size)
            counters.advance()
            progress.augmentation.update(counters.step, config.batch_size)
            status.show_progress()
            asked = distributed.max_over_ranks(stop.number or stop.asked)
            is_due = counters.tick_ended and maintenance.is_due(config.network_snapshot_ticks)
            if asked or is_due:
                maintenance.save_state()                # before the slow part, which may then be interrupted
            if asked:
                stop.number = asked                     # perhaps only another rank was asked
                break
            if counters.tick_ended:
                end_tick(is_saved=is_due)


class Maintenance:
    """What happens at the end of a tick: status, images, networks, metrics. It can be repeated from a state that was
    saved just before.
    """

    def __init__(self, config: dnnlib.EasyDict, progress: Progress, dataset: Any, evaluate: Callable | None,
                 device: torch.device, fresh: bool):
        self.config = config
        self.progress = progress
        self.counters = progress.counters
        self.evaluate = evaluate
        self.camera_stats = dataset.camera_stats() if dataset.has_camera_labels else None
        self.images = None
        if distributed.get_rank() == 0:
            self.images = ImageSnapshots(config.run_dir, dataset, progress.G.z_dim, self.camera_stats,
                                         config.random_seed, device, batch=config.batch_gpu)
            if fresh:
                self.images.save_reals()
                self.images.save_fakes(progress.G_ema.model, "_init")

    def is_due(self, every: int | None) -> bool:
        """Every so many ticks and at the end; None: never."""
        return every is not None and (self.counters.done or self.counters.tick % every == 0)

    def save_state(self) -> None:
        """Call on all ranks."""
        state = training_state.capture(self.progress)
        if distributed.get_rank() == 0:
            path = training_state.path_of(self.config.run_dir, self.counters.number)
            training_state.save(state, path, self.config)
            training_state.prune(self.config.run_dir, self.config.get("keep"))
        distributed.barrier()

    def run(self) -> None:
        """Call on all ranks."""
        config, status = self.config, self.progress.status
        status.print_tick(self.progress.augmentation.p)
        if self.images is not None and self.is_due(config.image_snapshot_ticks):
            self.images.save_fakes(self.progress.G_ema.model, self.counters.number)
        networks_due = self.is_due(config.network_snapshot_ticks)
        if networks_due:
            snapshot = self.save_networks()
        metrics = None
        if networks_due and self.evaluate is not None and config.metrics:
            metrics = self.evaluate(snapshot, config.run_dir, config.metrics)
        status.finish_tick(metrics)
        self.counters.end_tick(snapshot=networks_due)
        if networks_due:
            status.save_curves()
        if self.counters.done:
            distributed.print0(f"\nFinished: {snapshot}")

    def save_networks(self) -> str:
        """Writes the snapshot and returns its path."""
        config, progress = self.config, self.progress
        snapshot = os.path.join(config.run_dir, f"network-snapshot-{self.counters.number}.pkl")
        if distributed.get_rank() == 0:
            save_network(snapshot, progress.G, progress.D, progress.G_ema.model, progress.augmentation.pipe,
                         config.training_set_kwargs, self.camera_stats)
            training_state.prune(config.run_dir, config.get("keep"))
        distributed.barrier()
        return snapshot


# ---------------------------------------------------------------------------------------------------------------------

def make_progress(config: dnnlib.EasyDict, dataset: Any, device: torch.device, state: dict | None,
                  state_path: str | None) -> Progress:
    """Networks, optimisers, loss and counters of a new run, or of a state. The same on all ranks."""
    G, D, G_ema = make_networks(config, device, fresh=state is None, dataset=dataset)
    augmentation = make_augmentation(config, device)
    loss = dnnlib.util.construct_class_by_name(device=device, G=G, D=D, augment_pipe=augmentation.pipe,
                                               **config.loss_kwargs)
    phases = make_phases(G, D, config.G_opt_kwargs, config.D_opt_kwargs, config.G_reg_interval, config.D_reg_interval)
    with contextlib.nullcontext() if state is None else training_state.understood(state_path):
        counters = Counters(config.batch_size, config.total_kimg, config.kimg_per_tick, state)
        status = Status(config.run_dir, device, counters, state and state["status"])
        progress = Progress(G, D, G_ema, phases, loss, augmentation, counters, status)
        if state is not None:
            training_state.restore(progress, state, state_path, resume.same_augmentation(config, state))
    if state is not None:
        distributed.print0(f"Continuing {state_path}: {counters.cur_nimg / 1000:g} kimg and {counters.step} steps "
                           "are done.")
    return progress


def set_backends(config: dnnlib.EasyDict, device: torch.device) -> None:
    """Sets precision and seeds of this process."""
    seed_layer_noise(config.random_seed, 0, 0)          # the same initial weights in all processes
    np.random.seed(config.random_seed)                  # for users' own code; nothing here draws from these two
    random.seed(config.random_seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        torch.backends.cudnn.allow_tf32 = config.allow_tf32
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def network_kwargs(config: dict) -> tuple[dict, dict]:
    """Constructor arguments of G and D."""
    common = dict(c_dim=config["label_dim"], img_resolution=config["img_resolution"],
                  img_channels=config["img_channels"])
    return dict(config["G_kwargs"], **common), dict(config["D_kwargs"], **common)


def make_networks(config: dnnlib.EasyDict, device: torch.device, load_network: Callable[[str], dict] | None = None,
                  fresh: bool = True, dataset: Any = None) -> tuple[torch.nn.Module, torch.nn.Module, GeneratorEMA]:
    """Makes G, D and the average of G; if `fresh`, they start from config.resume_pkl. The same on all ranks.

    load_network: reads config.resume_pkl in place of `network_files.read`, for scripts with another reader or with
    networks in memory. dataset: D learns to tell its labels; None: labels of mean 0 and deviation 1.
    """
    G, D = (dnnlib.util.construct_class_by_name(**kwargs).train().requires_grad_(False).to(device)
            for kwargs in network_kwargs(config))
    ema = GeneratorEMA(G, config.ema_kimg, config.ema_rampup)
    if fresh and config.resume_pkl is not None:
        sources, notes = sources_of((load_network or network_files.read)(config.resume_pkl), config.resume_pkl)
        targets = dict(G=G, D=D, G_ema=ema.model)
        reports = [warm_start(targets[name], source, config.ray_init, name)
                   for name, source in sources.items() if source is not None]
        check_match(reports, config.resume_pkl)
        table = [line for report in reports for line in report.lines()]
        title = f"Starting from {config.resume_pkl} (--ray-init={config.ray_init})"
        distributed.print0("\n".join([title, *notes, *table]))
    if fresh and dataset is not None and getattr(D, "camera_predictor", None) is not None:
        D.camera_predictor.fit_labels(dataset.get_label(i) for i in range(len(dataset)))
    for module in (G, D, ema.model):
        distributed.broadcast_(misc.params_and_buffers(module))
    if config.get("checkpoint_activations"):
        checkpoint_activations(G)
        checkpoint_activations(D)
    return G, D, ema


def describe(G: torch.nn.Module, D: torch.nn.Module, dataset: Any, batch: int, device: torch.device) -> None:
    """Prints the layers with their parameters and output shapes."""
    with torch.no_grad():
        c = torch.from_numpy(dataset.get_label(0)).to(device).expand(batch, -1)
        img = misc.print_module_summary(G, [torch.zeros([batch, G.z_dim], dtype=torch.float32, device=device), c])
        misc.print_module_summary(D, [img, c])


def iterate_batches(dataset: Any, config: dnnlib.EasyDict, rank: int, device: torch.device, start: int = 0) -> Any:
    """Endless batches of this rank's samples, in their order. start: number of images that all ranks have seen."""
    sampler = misc.InfiniteSampler(dataset, rank=rank, num_replicas=config.num_gpus, seed=config.random_seed,
                                   start=start)
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=config.batch_size // config.num_gpus,
                                         worker_init_fn=signals.leave_to_parent, **config.data_loader_kwargs)
    for images, labels in loader:
        images = images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
        yield Batch(images, labels.to(device, non_blocking=True))


# ---------------------------------------------------------------------------------------------------------------------
# StyleGAN3's names for sheets of images; the loop itself has `ImageSnapshots`.

def setup_snapshot_image_grid(training_set: Any,
                              random_seed: int = 0) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """A sheet's (columns, rows), 7 to 32 by 4 to 32, and its real items: images [N, C, H, W] and labels [N, D]."""
    height, width = training_set.image_shape[1:]
    size = int(np.clip(7680 // width, 7, 32)), int(np.clip(4320 // height, 4, 32))
    images, labels = zip(*(training_set[i] for i in choose_reals(training_set, *size, random_seed)))
    return size, np.stack(images), np.stack(labels)


def save_image_grid(img: Any, fname: str, drange: tuple[float, float], grid_size: tuple[int, int]) -> None:
    """Writes images [N, C, H, W] as one sheet. grid_size: (columns, rows). drange: the values of black and white."""
    low, high = drange
    img = img.detach().float().cpu().numpy() if isinstance(img, Tensor) else np.asarray(img, dtype=np.float32)
    images = (img - low) * (255 / (high - low))
    snapshots.save_image_grid(images.round().clip(0, 255).astype(np.uint8), fname, grid_size)
