"""The training loop: named parts in their order. What the parts do is in their own files."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import dnnlib
import network_files
from torch_utils import distributed, memory, misc, signals
from training import continuing, image_grid, training_state
from training.ada import make_augmentation
from training.checkpointing import checkpoint_activations
from training.ema import GeneratorEMA
from training.phases import Batch, Stepper, make_phases
from training.randomness import seed_layer_noise
from training.snapshots import ImageSnapshots, choose_reals, save_network
from training.status import Status
from training.training_state import Progress
from training.transfer import check_match, sources_of, warm_start


def training_loop(
    config:         dict,                               # From training.config.build_config(), or training_options.json.
    rank:           int                     = 0,        # Of this process among config.num_gpus.
    device:         torch.device | str | None = None,   # None: config.device.
    evaluate:       Callable | None         = None,     # (snapshot, run_dir, metric names) -> dict; None: no metrics.
    state:          str | None              = None,     # training-state-*.pt of config.run_dir to continue; None: config.resume_state, or begin.
) -> int:                                               # 0: trained to the end; else the signal that asked it to stop.
    """Trains in `config.run_dir`. Every process of the run calls it."""
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
    G, D, status = progress.G, progress.D, progress.status
    if rank == 0:
        describe(G, D, dataset, config.batch_gpu, device)
    num_rounds = config.batch_size // (config.batch_gpu * config.num_gpus)
    stepper = Stepper(progress.phases, progress.loss, dataset, config.batch_size, num_rounds, G.z_dim, config.random_seed, device)
    maintenance = Maintenance(config, progress, dataset, evaluate, device, fresh=state is None)
    if rank == 0:
        print(f"{config.total_kimg - status.cur_nimg / 1000:g} kimg to go.\n")

    batches = iterate_batches(dataset, config, rank, device, start=status.cur_nimg)
    # Left to the garbage collector, the loader's workers can outlive the loop and keep the process from ending.
    with contextlib.closing(batches), contextlib.closing(status), memory.settled_objects():
        saved = state is not None                           # this very step?
        while True:
            if status.tick_ended:
                with stop.may_leave() if saved else contextlib.nullcontext():
                    maintenance.run()
                    distributed.barrier()                   # so that no rank begins a step while another one leaves
            if status.done:
                break
            batch = next(batches)                           # before seeding: the first one starts the loader, which draws
            seed_layer_noise(config.random_seed, progress.step, rank)
            stepper.step(progress.step, batch, status.cur_nimg)
            progress.G_ema.update(G, status.cur_nimg, config.batch_size)
            progress.step += 1
            progress.augmentation.update(progress.step, config.batch_size)
            status.advance()
            asked = distributed.max_over_ranks(stop.number or stop.asked)
            saved = asked > 0 or (status.tick_ended and maintenance.is_due(config.network_snapshot_ticks))
            if saved:
                maintenance.save_state()                    # before what takes long, so that it may be interrupted
            if asked:
                stop.number = asked                         # another rank may have been the one
                break


class Maintenance:
    """What happens at the end of a tick: status, images, networks, metrics. It can be done again from the state that was saved before it."""

    def __init__(self, config: dnnlib.EasyDict, progress: Progress, dataset: Any, evaluate: Callable | None, device: torch.device, fresh: bool):
        self.config = config
        self.progress = progress
        self.evaluate = evaluate
        self.camera_stats = dataset.camera_stats() if dataset.has_camera_labels else None
        self.images = None
        if distributed.get_rank() == 0:
            self.images = ImageSnapshots(config.run_dir, dataset, progress.G.z_dim, self.camera_stats, config.random_seed, device, batch=config.batch_gpu)
            if fresh:
                self.images.save_reals()
                self.images.save_fakes(progress.G_ema.model, "_init")

    def is_due(self, every: int | None) -> bool:
        """Every so many ticks and at the end; None: never."""
        status = self.progress.status
        return every is not None and (status.done or status.tick % every == 0)

    def save_state(self) -> None:
        state = training_state.capture(self.progress)
        if distributed.get_rank() == 0:
            path = training_state.path_of(self.config.run_dir, self.progress.status.number)
            training_state.save(state, path, self.config)
            training_state.prune(self.config.run_dir, self.config.get("keep"))
        distributed.barrier()

    def run(self) -> None:
        config, progress, status = self.config, self.progress, self.progress.status
        status.print_tick(progress.augmentation.p, progress.step)
        networks_due = self.is_due(config.network_snapshot_ticks)
        if self.images is not None and self.is_due(config.image_snapshot_ticks):
            self.images.save_fakes(progress.G_ema.model, status.number)
        metrics = None
        if networks_due:
            snapshot = os.path.join(config.run_dir, f"network-snapshot-{status.number}.pkl")
            if distributed.get_rank() == 0:
                save_network(snapshot, progress.G, progress.D, progress.G_ema.model, progress.augmentation.pipe, config.training_set_kwargs,
                             self.camera_stats)
                training_state.prune(config.run_dir, config.get("keep"))
            distributed.barrier()
            if self.evaluate is not None and config.metrics:
                metrics = self.evaluate(snapshot, config.run_dir, config.metrics)
        status.finish_tick(metrics, snapshot=networks_due)
        if networks_due:
            status.save_curves()
        if status.done:
            distributed.print0(f"\nFinished: {snapshot}")


# ---------------------------------------------------------------------------------------------------------------------

def make_progress(config: dnnlib.EasyDict, dataset: Any, device: torch.device, state: dict | None,
                  state_path: str | None) -> Progress:
    """Networks, optimisers, loss and counters: of a new run, or those of a state. The same on all ranks."""
    G, D, G_ema = make_networks(config, device, fresh=state is None, dataset=dataset)
    augmentation = make_augmentation(config, device)
    loss = dnnlib.util.construct_class_by_name(device=device, G=G, D=D, augment_pipe=augmentation.pipe, **config.loss_kwargs)
    phases = make_phases(G, D, config.G_opt_kwargs, config.D_opt_kwargs, config.G_reg_interval, config.D_reg_interval)
    with contextlib.nullcontext() if state is None else training_state.understood(state_path):
        status = Status(config.run_dir, device, config.batch_size, config.total_kimg, config.kimg_per_tick, state and state["status"])
        progress = Progress(G, D, G_ema, phases, loss, augmentation, status)
        if state is not None:
            training_state.restore(progress, state, state_path, same_augmentation=continuing.same_augmentation(config, state))
    if state is not None:
        distributed.print0(f"Continuing {state_path}: {status.cur_nimg / 1000:g} kimg and {progress.step} steps are done.")
    return progress


def set_backends(config: dnnlib.EasyDict, device: torch.device) -> None:
    """Precision and seeds of this process."""
    seed_layer_noise(config.random_seed, 0, 0)          # the same initial weights in all processes
    np.random.seed(config.random_seed)                  # nothing here draws from these two, but a user's own code may
    random.seed(config.random_seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        torch.backends.cudnn.allow_tf32 = config.allow_tf32
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def network_kwargs(config: dict) -> tuple[dict, dict]:
    """Constructor arguments of G and D."""
    common = dict(c_dim=config["label_dim"], img_resolution=config["img_resolution"], img_channels=config["img_channels"])
    return dict(config["G_kwargs"], **common), dict(config["D_kwargs"], **common)


def make_networks(config: dnnlib.EasyDict, device: torch.device, load_network: Callable[[str], dict] | None = None,
                  fresh: bool = True, dataset: Any = None) -> tuple[torch.nn.Module, torch.nn.Module, GeneratorEMA]:
    """G, D and the average of G: new ones, if `fresh` warm-started from config.resume_pkl. The same on all ranks.

    load_network: reads config.resume_pkl in place of `network_files.read`, for scripts with another reader or with
    networks in memory. dataset: whose labels D learns to tell; None: their mean is 0 and their deviation 1.
    """
    G, D = (dnnlib.util.construct_class_by_name(**kwargs).train().requires_grad_(False).to(device) for kwargs in network_kwargs(config))
    ema = GeneratorEMA(G, config.ema_kimg, config.ema_rampup)
    if fresh and config.resume_pkl is not None:
        sources, notes = sources_of((load_network or network_files.read)(config.resume_pkl), config.resume_pkl)
        targets = dict(G=G, D=D, G_ema=ema.model)
        reports = [warm_start(targets[name], source, config.ray_init, name) for name, source in sources.items() if source is not None]
        check_match(reports, config.resume_pkl)
        table = [line for report in reports for line in report.lines()]
        distributed.print0("\n".join([f"Starting from {config.resume_pkl} (--ray-init={config.ray_init})", *notes, *table]))
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
    """Endless batches of this rank's samples, in their order. start: images that all ranks have seen."""
    sampler = misc.InfiniteSampler(dataset, rank=rank, num_replicas=config.num_gpus, seed=config.random_seed, start=start)
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=config.batch_size // config.num_gpus,
                                         worker_init_fn=signals.leave_to_parent, **config.data_loader_kwargs)
    for images, labels in loader:
        images = images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
        yield Batch(images, labels.to(device, non_blocking=True))


# ---------------------------------------------------------------------------------------------------------------------
# StyleGAN3's names for sheets of images; the loop itself has `ImageSnapshots`.

def setup_snapshot_image_grid(training_set: Any,
                              random_seed: int = 0) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """A sheet's columns and rows (7 to 32 by 4 to 32) and its real items: images [N, C, H, W], labels [N, D]."""
    height, width = training_set.image_shape[1:]
    size = int(np.clip(7680 // width, 7, 32)), int(np.clip(4320 // height, 4, 32))
    images, labels = zip(*(training_set[i] for i in choose_reals(training_set, *size, random_seed)))
    return size, np.stack(images), np.stack(labels)


def save_image_grid(img: Any, fname: str, drange: tuple[float, float], grid_size: tuple[int, int]) -> None:
    """Writes images [N, C, H, W] as one sheet of (columns, rows); `drange`: the values of black and white."""
    low, high = drange
    img = img.detach().float().cpu().numpy() if isinstance(img, torch.Tensor) else np.asarray(img, dtype=np.float32)
    images = (img - low) * (255 / (high - low))
    image_grid.save_image_grid(images.round().clip(0, 255).astype(np.uint8), fname, grid_size)
