"""Every preset trains two ticks on a CPU, small; what it fixes reaches the networks."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from helpers import options_of, run_train

import legacy
import network_files
import train
from training.presets import AUGMENTATION_SUMS, AUGMENTATIONS, PRESETS
from training.run import config

SIX = [name for name in PRESETS if not name.endswith("-tiny")]


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
    assert network_files.read(str(source))["G_ema"].c_dim == 0


# ---------------------------------------------------------------------------------------------------------------------
# docs/options.md: each option's default here, beside StyleGAN3's.

OPTIONS_PAGE = Path(__file__).parent.parent / "docs" / "options.md"
RESOLVED = dict(                                        # what a configuration says of options that have no default of their own
    gpus=lambda c: c.num_gpus,
    batch=lambda c: c.batch_size,
    batch_gpu=lambda c: "batch / gpus" if c.batch_gpu * c.num_gpus == c.batch_size else c.batch_gpu,
    gamma=lambda c: "auto" if c.loss_kwargs["r1_gamma"] == pytest.approx(0.0002 * c.img_resolution ** 2 / c.batch_size) else c.loss_kwargs["r1_gamma"],
    cond=lambda c: c.training_set_kwargs["use_labels"],
    aug=lambda c: "noaug" if c.augment_kwargs is None else "ada" if "ada_target" in c else "fixed",
    augpipe=lambda c: augpipe_of(c.augment_kwargs),
    p=lambda c: c.augment_p,
    target=lambda c: c.get("ada_target"),
    resume=lambda c: "auto" if (c.resume_pkl, c.resume_state) == (None, None) else c.resume_pkl,
    rays=lambda c: c.G_kwargs.get("rays"),
    dcond=lambda c: c.D_kwargs.get("dcond", "pose"),
    camera_loss=lambda c: float(c.loss_kwargs.get("camera_weight", 0)),
    cbase=lambda c: c.D_kwargs["channel_base"],
    cmax=lambda c: c.D_kwargs["channel_max"],
    glr=lambda c: c.G_opt_kwargs["lr"],
    dlr=lambda c: c.D_opt_kwargs["lr"],
    map_depth=lambda c: c.G_kwargs["mapping_kwargs"]["num_layers"],
    mbstd_group=lambda c: c.D_kwargs["epilogue_kwargs"]["mbstd_group_size"],
    metrics=lambda c: ",".join(c.metrics) or None,
    kimg=lambda c: c.total_kimg,
    snap=lambda c: c.network_snapshot_ticks,
    keep=lambda c: c.keep,
    workers=lambda c: c.data_loader_kwargs["num_workers"],
)


def augpipe_of(augment_kwargs):
    """The name of a sum of transforms."""
    names = {name: name for name in AUGMENTATIONS} | dict(AUGMENTATION_SUMS)
    transforms = {name: {t for group in total.split("+") for t in AUGMENTATIONS[group]} for name, total in names.items()}
    return None if augment_kwargs is None else next(name for name in names if transforms[name] == set(augment_kwargs) - {"class_name"})


def read_options_table():
    """Option -> (StyleGAN3's default, the released code's, ours, why), in the page's order."""
    lines = [line for line in OPTIONS_PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `--")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def in_words(value):
    """A default as the page has it."""
    if value in (None, ()):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_in(param, config):
    """What the program has for the page's column `here`."""
    if param.required:
        return "required"
    if param.name in RESOLVED:
        return in_words(RESOLVED[param.name](config))
    return in_words(train.main.make_context("train", ["--outdir=x", "--data=x"]).params[param.name])


def test_the_page_of_options_is_what_the_program_does(camera_zip, monkeypatch):
    """All options in their order, and each default for each preset."""
    monkeypatch.setattr("training.run.config.usable_cores", lambda: 64)
    table = read_options_table()
    params = [param for param in train.main.params if param.name != "help"]
    assert list(table) == [max(param.opts, key=len) for param in params]

    def resolve(cfg, *args):
        given = train.main.make_context("train", ["--outdir=x", f"--data={camera_zip}", f"--cfg={cfg}", *args]).params
        options = config.Options(**{key: None if (key, value) == ("resume", "auto") else value for key, value in given.items()
                                    if key not in ("camera_check", "device", "dry_run", "new")})
        options = config.apply_recipe(options)
        return config.build_config(options, config.preset_of(options), train.read_dataset(options, config.preset_of(options))[1]).config

    resolved = {cfg: resolve(cfg) for cfg in PRESETS}
    wrong = {}
    for param in params:
        here, *exceptions = (part.strip() for part in table[max(param.opts, key=len)][2].split(";"))
        expected = dict.fromkeys(PRESETS, here)
        for names, value in (exception.rsplit(": ", 1) for exception in exceptions):
            if names.startswith("--"):
                wrong.update({(param.name, names): (found, value)} if (found := default_in(param, resolve("raycond2", names))) != value else {})
            else:
                expected.update(dict.fromkeys(names.split(", "), value))
        wrong.update({(param.name, cfg): (found, value) for cfg, value in expected.items() if (found := default_in(param, resolved[cfg])) != value})
    assert not wrong, "(option, preset): what the program does, what the page says"


def test_the_page_says_why_a_default_differs():
    for option, (theirs, released, here, why) in read_options_table().items():
        same = here == released == theirs or (released == theirs == "-" and here in ("none", "off")) or option in ("--glr",)
        assert same or why, option
