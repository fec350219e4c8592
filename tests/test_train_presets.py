"""Every preset trains two ticks on a CPU, small; what it fixes reaches the networks."""

import json

import pytest
import torch
from conftest import SMALL
from helpers import options_of, run_train

import legacy
import train
from training.presets import PRESETS

SIX = [name for name in PRESETS if name != "raycond2-tiny"]


@pytest.mark.parametrize("cfg", SIX)
def test_preset_trains(cfg, camera_zip, tmp_path):
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", f"--cfg={cfg}", "--kimg=0.016", "--tick=0.008", "--snap=1", "--gamma=1", *SMALL)
    assert code == 0, output
    folder, = tmp_path.iterdir()
    networks = legacy.load_network_pkl(folder / "network-snapshot-000000.pkl")
    G, G_ema = networks["G"], networks["G_ema"]
    assert all(p.isfinite().all() for p in G.parameters())
    rays = PRESETS[cfg].rays
    assert type(G).__module__ == PRESETS[cfg].generator.rpartition(".")[0] and getattr(G, "rays", None) == ("pinhole" if rays else None)
    assert len([line for line in output.splitlines() if line.startswith("tick ")]) == 2
    z, c = torch.randn(1, G.z_dim), torch.tensor(networks["camera_stats"]["examples"][:1]) if rays else None
    assert G_ema(z, c).std() > 0
    if PRESETS[cfg].magnitude_ema:
        layer = G.synthesis.L0_36_16 if cfg.endswith("-t") else G.synthesis.L0_36_32
        assert layer.magnitude_ema != 1 and layer.magnitude_ema_beta == pytest.approx(0.5 ** (8 / 20000))
        assert layer.conv_kernel == (1 if cfg.endswith("-r") else 3)


def test_rotation_presets_blur_and_widen(camera_zip, tmp_path):
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond3-r", "--batch=32", "--gamma=1", "--device=cpu", "-n")
    config = options_of(output)
    assert code == 0 and (config["G_kwargs"]["channel_base"], config["D_kwargs"]["channel_base"]) == (65536, 32768)
    assert config["loss_kwargs"]["blur_init_sigma"] == 10 and config["loss_kwargs"]["blur_fade_kimg"] == 200
    assert config["loss_kwargs"]["pl_weight"] == 0 and config["G_reg_interval"] is None and config["D_reg_interval"] == 16


@pytest.mark.parametrize("options", [["--freezed=2", "--map-depth=3", "--fp32=1"]])
def test_options_reach_the_networks(options, camera_zip, tmp_path):
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond3-t", "--batch=32", "--gamma=1", "--device=cpu", "-n", *options)
    config = options_of(output)
    assert code == 0
    assert config["D_kwargs"]["block_kwargs"]["freeze_layers"] == 2 and config["G_kwargs"]["mapping_kwargs"] == {"num_layers": 3}
    for kwargs in (config["G_kwargs"], config["D_kwargs"]):
        assert kwargs["num_fp16_res"] == 0 and kwargs["conv_clamp"] is None


def test_warm_start_stylegan3_to_raycond3(camera_zip, tmp_path):
    """--ray-init=zero through the command: fakes_init of the widened network are the source's images."""
    common = [f"--outdir={tmp_path}", f"--data={camera_zip}", "--kimg=0.008", "--tick=0.008", "--snap=1", "--gamma=1", *SMALL]
    assert run_train(*common, "--cfg=stylegan3-t")[0] == 0
    source = tmp_path / "00000-stylegan3-t-cameras-gpus1-batch8-gamma1" / "network-snapshot-000000.pkl"
    code, output = run_train(*common, "--cfg=raycond3-t", f"--resume={source}")
    assert code == 0 and "widened" in output, output
    options = json.loads((tmp_path / "00001-raycond3-t-cameras-gpus1-batch8-gamma1" / "training_options.json").read_text())
    assert options["ema_rampup"] is None and options["loss_kwargs"]["blur_init_sigma"] == 0
    assert train.load_network(str(source))["G_ema"].c_dim == 0
