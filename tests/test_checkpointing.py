"""--checkpoint-activations: the same gradients, means and random numbers, from less memory."""

import pytest
import torch
from conftest import SMALL
from helpers import run_train

from camera_utils import camera_for
from dnnlib.util import construct_class_by_name
from training.networks.checkpointing import BLOCKS, checkpoint_activations
from training.run import config as cfg
from training.run.phases import make_phases
from training.training_loop import make_networks

KWARGS = dict(outdir="", data="", cbase=128, cmax=16, batch=4, mbstd_group=2)


def gradients(preset, name, checkpointed):
    """Of one phase of the loss, with the state of G's means and of the random numbers after it."""
    torch.manual_seed(0)
    options = cfg.Options(cfg=preset, checkpoint_activations=checkpointed, **KWARGS)
    info = cfg.DataInfo("none", 8, 16, num_channels=3, label_dim=25, has_camera_labels=True)
    config = cfg.build_config(options, cfg.preset_of(options), info).config
    G, D, _ = make_networks(config, torch.device("cpu"))
    loss = construct_class_by_name(device=torch.device("cpu"), G=G, D=D, augment_pipe=None, **config.loss_kwargs)
    loss.pl_weight = 2.0                                    # the second derivative of G, for StyleGAN3 as well
    phase = next(p for p in make_phases(G, D, config.G_opt_kwargs, config.D_opt_kwargs, 4, 16) if p.name == name)
    c = camera_for("ffhq", yaw=torch.linspace(-0.3, 0.3, 4), pitch=torch.zeros(4)).to_label().float()
    phase.module.requires_grad_(True)
    torch.manual_seed(1)
    loss.accumulate_gradients(phase=name, real_img=torch.randn(4, 3, 16, 16), real_c=c, gen_z=torch.randn(4, G.z_dim), gen_c=c, gain=1, cur_nimg=0)
    found = {key: p.grad for key, p in phase.module.named_parameters() if p.grad is not None}
    return found, {key: b.clone() for key, b in G.named_buffers()}, torch.rand(3)


@pytest.mark.parametrize("preset", ["raycond2", "raycond3-t"])
@pytest.mark.parametrize("name", ["Gmain", "Greg", "Dmain", "Dreg"])
def test_same_gradients(preset, name):
    (grads, buffers, draw), (expected, expected_buffers, expected_draw) = (gradients(preset, name, flag) for flag in (True, False))
    assert grads.keys() == expected.keys() and len(grads) > 5
    for key, value in expected.items():
        assert torch.equal(grads[key], value), key
    assert all(torch.equal(buffers[key], value) for key, value in expected_buffers.items())
    assert torch.equal(draw, expected_draw)


def test_keeps_less():
    """What the graph of a forward pass holds on to."""
    def kept(checkpointed):
        torch.manual_seed(0)
        options = cfg.Options(cfg="raycond2", **KWARGS)
        info = cfg.DataInfo("none", 8, 64, num_channels=3, label_dim=25, has_camera_labels=True)
        G, _, _ = make_networks(cfg.build_config(options, cfg.preset_of(options), info).config, torch.device("cpu"))
        if checkpointed:
            checkpoint_activations(G)
        assert sum(isinstance(module, BLOCKS) for module in G.modules()) == 5
        sizes = {}
        G.requires_grad_(True)
        c = camera_for("ffhq", yaw=0.1, pitch=0).to_label().float().expand(4, -1)

        def keep(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            image = G.synthesis(torch.randn(4, G.num_ws, G.w_dim), c)
        assert image.requires_grad
        weights = {p.untyped_storage().data_ptr() for p in G.parameters()}
        return sum(size for address, size in sizes.items() if address not in weights)
    assert kept(True) < kept(False) / 2


def test_train_takes_it(camera_zip, tmp_path):
    """And continues a run that was begun without it: the numbers are the same."""
    for flag, kimg in ((0, 0.008), (1, 0.016)):
        code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", *SMALL, "--cfg=raycond2", f"--kimg={kimg}", f"--checkpoint-activations={flag}")
        assert code == 0, output
    assert "Continues the run" in output
