"""The training loop: named parts in their order. What the parts do is in their own files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

import dnnlib
from torch_utils import distributed, misc
from training.ada import make_augmentation
from training.ema import GeneratorEMA
from training.phases import Batch, Stepper, make_phases
from training.randomness import seed_layer_noise
from training.snapshots import ImageSnapshots, save_network
from training.status import Status
from training.transfer import check_match, sources_of, warm_start


def training_loop(
    config:         dict,                               # From training.config.build_config(), or training_options.json.
    rank:           int                     = 0,        # Of this process among config.num_gpus.
    device:         torch.device | str | None = None,   # None: config.device.
    load_network:   Callable | None         = None,     # file -> dict(G, D, G_ema); needed for config.resume_pkl.
    evaluate:       Callable | None         = None,     # (snapshot, run_dir, metric names) -> dict; None: no metrics.
) -> str:                                               # Path of the last network snapshot.
    """Trains in `config.run_dir`. Every process of the run calls it."""
    config = dnnlib.EasyDict(config)
    device = torch.device(config.device if device is None else device)
    set_backends(config, device)
    dataset = dnnlib.util.construct_class_by_name(**config.training_set_kwargs)
    camera_stats = dataset.camera_stats() if dataset.has_camera_labels else None

    G, D, G_ema = make_networks(config, device, load_network)
    if rank == 0:
        describe(G, D, dataset, config.batch_gpu, device)
    augmentation = make_augmentation(config, device)
    loss = dnnlib.util.construct_class_by_name(device=device, G=G, D=D, augment_pipe=augmentation.pipe, **config.loss_kwargs)
    phases = make_phases(G, D, config.G_opt_kwargs, config.D_opt_kwargs, config.G_reg_interval, config.D_reg_interval)
    num_rounds = config.batch_size // (config.batch_gpu * config.num_gpus)
    stepper = Stepper(phases, loss, dataset, config.batch_size, num_rounds, G.z_dim, config.random_seed, device)
    status = Status(config.run_dir, device, config.batch_size, config.total_kimg, config.kimg_per_tick)

    images = None
    if rank == 0:
        images = ImageSnapshots(config.run_dir, dataset, G.z_dim, camera_stats, config.random_seed, device, batch=config.batch_gpu)
        images.save_reals()
        images.save_fakes(G_ema.model, "_init")
        print(f"{config.total_kimg:g} kimg to go.\n")

    batches = iterate_batches(dataset, config, rank, device)
    snapshot, step = "", 0
    while not status.done:
        batch = next(batches)                           # before seeding: the first one starts the loader, which draws
        seed_layer_noise(config.random_seed, step, rank)
        stepper.step(step, batch, status.cur_nimg)
        G_ema.update(G, status.cur_nimg, config.batch_size)
        step += 1
        augmentation.update(step, config.batch_size)
        if not status.advance():
            continue
        status.print_tick(augmentation.p, step)
        suffix = f"{status.cur_nimg // 1000:06d}"
        if images is not None and is_due(config.image_snapshot_ticks, status):
            images.save_fakes(G_ema.model, suffix)
        metrics = None
        if is_due(config.network_snapshot_ticks, status):
            snapshot = os.path.join(config.run_dir, f"network-snapshot-{suffix}.pkl")
            if rank == 0:
                save_network(snapshot, G, D, G_ema.model, augmentation.pipe, config.training_set_kwargs, camera_stats)
            distributed.barrier()
            if evaluate is not None and config.metrics:
                metrics = evaluate(snapshot, config.run_dir, config.metrics)
        status.finish_tick(metrics)
        if is_due(config.network_snapshot_ticks, status, ended=True):
            status.save_curves()
    status.close()
    if rank == 0:
        print(f"\nFinished: {snapshot}")
    return snapshot


# ---------------------------------------------------------------------------------------------------------------------

def set_backends(config: dnnlib.EasyDict, device: torch.device) -> None:
    """Precision and seeds of this process."""
    seed_layer_noise(config.random_seed, 0, 0)          # the same initial weights in all processes
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        torch.backends.cudnn.allow_tf32 = config.allow_tf32
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def network_kwargs(config: dict) -> tuple[dict, dict]:
    """Constructor arguments of G and D."""
    common = dict(c_dim=config["label_dim"], img_resolution=config["img_resolution"], img_channels=config["img_channels"])
    return dict(config["G_kwargs"], **common), dict(config["D_kwargs"], **common)


def make_networks(config: dnnlib.EasyDict, device: torch.device, load_network: Callable | None) -> tuple[torch.nn.Module, torch.nn.Module, GeneratorEMA]:
    """G, D and the average of G: fresh, or warm-started from config.resume_pkl. The same on all ranks."""
    G, D = (dnnlib.util.construct_class_by_name(**kwargs).train().requires_grad_(False).to(device) for kwargs in network_kwargs(config))
    ema = GeneratorEMA(G, config.ema_kimg, config.ema_rampup)
    if config.resume_pkl is not None:
        sources, notes = sources_of(load_network(config.resume_pkl), config.resume_pkl)
        targets = dict(G=G, D=D, G_ema=ema.model)
        reports = [warm_start(targets[name], source, config.ray_init, name) for name, source in sources.items() if source is not None]
        check_match(reports, config.resume_pkl)
        table = [line for report in reports for line in report.lines()]
        distributed.print0("\n".join([f"Starting from {config.resume_pkl} (--ray-init={config.ray_init})", *notes, *table]))
    for module in (G, D, ema.model):
        distributed.broadcast_(misc.params_and_buffers(module))
    return G, D, ema


def describe(G: torch.nn.Module, D: torch.nn.Module, dataset: Any, batch: int, device: torch.device) -> None:
    """Prints the layers with their parameters and output shapes."""
    with torch.no_grad():
        c = torch.from_numpy(dataset.get_label(0)).to(device).expand(batch, -1)
        img = misc.print_module_summary(G, [torch.zeros([batch, G.z_dim], device=device), c])
        misc.print_module_summary(D, [img, c])


def iterate_batches(dataset: Any, config: dnnlib.EasyDict, rank: int, device: torch.device) -> Any:
    """Endless batches of this rank's samples, in their order."""
    sampler = misc.InfiniteSampler(dataset, rank=rank, num_replicas=config.num_gpus, seed=config.random_seed)
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=config.batch_size // config.num_gpus, **config.data_loader_kwargs)
    for images, labels in loader:
        images = images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
        yield Batch(images, labels.to(device, non_blocking=True))


def is_due(every: int | None, status: Status, ended: bool = False) -> bool:
    """Every so many ticks and at the end; None: never. `ended`: asks about the tick that was just finished."""
    tick = status.tick - 1 if ended else status.tick
    return every is not None and (status.done or tick % every == 0)
