"""Networks that are none of ours: their embedded source runs only where the user trusts the file, and finds what it
imports.
"""

import importlib
import inspect
import io
import pickle
import sys
import types

import pytest
import torch
from helpers import DATA, assert_close_rel, load_golden

from dnnlib import EasyDict, UserError
from network_files import known_names, trusted_source
from torch_utils import misc, persistence

# ---------------------------------------------------------------------------------------------------------------------
# What the sources of StyleGAN2, StyleGAN3, EG3D and ray conditioning import and how they call it.

SIGNATURES = {
    "torch_utils.misc.assert_shape":                        "tensor ref_shape",
    "torch_utils.misc.profiled_function":                   "fn",
    "torch_utils.misc.suppress_tracer_warnings":            "",
    "torch_utils.misc.constant":                            "value shape dtype device memory_format",
    "torch_utils.misc.params_and_buffers":                  "module",
    "torch_utils.misc.named_params_and_buffers":            "module",
    "torch_utils.misc.copy_params_and_buffers":             "src_module dst_module require_all",
    "torch_utils.misc.print_module_summary":                "module inputs max_nesting skip_redundant",
    "torch_utils.persistence.persistent_class":             "cls",
    "torch_utils.persistence.is_persistent":                "obj",
    "torch_utils.persistence.import_hook":                  "hook",
    "torch_utils.ops.bias_act.bias_act":                    "x b dim act alpha gain clamp impl",
    "torch_utils.ops.upfirdn2d.setup_filter":               "f device normalize flip_filter gain separable",
    "torch_utils.ops.upfirdn2d.upfirdn2d":                  "x f up down padding flip_filter gain impl",
    "torch_utils.ops.upfirdn2d.filter2d":                   "x f padding flip_filter gain impl",
    "torch_utils.ops.upfirdn2d.upsample2d":                 "x f up padding flip_filter gain impl",
    "torch_utils.ops.upfirdn2d.downsample2d":               "x f down padding flip_filter gain impl",
    "torch_utils.ops.conv2d_resample.conv2d_resample":      "x w f up down padding groups flip_weight flip_filter",
    "torch_utils.ops.conv2d_gradfix.conv2d":                "input weight bias stride padding dilation groups",
    "torch_utils.ops.conv2d_gradfix.conv_transpose2d":      "input weight bias stride padding output_padding groups dilation",
    "torch_utils.ops.conv2d_gradfix.no_weight_gradients":   "disable",
    "torch_utils.ops.filtered_lrelu.filtered_lrelu":        "x fu fd b up down padding gain slope clamp flip_filter impl",
    "torch_utils.ops.fma.fma":                              "a b c",
    "torch_utils.ops.grid_sample_gradfix.grid_sample":      "input grid",
    "training.networks_stylegan2.Conv2dLayer":
        "in_channels out_channels kernel_size bias activation up down resample_filter conv_clamp channels_last trainable",
    "training.networks_stylegan2.MinibatchStdLayer":        "group_size num_channels",
    "training.networks_stylegan2.upfirdn2d.setup_filter":   "f device normalize flip_filter gain separable",
    "training.plucker.plucker_embedding":                   "H W intrinsics c2w jitter",
    "training.plucker.origin_dir_embedding":                "H W intrinsics c2w jitter",
    "training.plucker.two_plane_embedding":                 "H W intrinsics c2w",
    "training.plucker.get_rays":                            "H W intrinsics c2w jitter",
}
# Defaults that calls rely on: (name, parameter, value).
DEFAULTS = [
    ("torch_utils.ops.bias_act.bias_act", "act", "linear"), ("torch_utils.ops.bias_act.bias_act", "dim", 1),
    ("torch_utils.ops.conv2d_resample.conv2d_resample", "flip_weight", True),
            ("torch_utils.ops.upfirdn2d.upsample2d", "up", 2),
    ("torch_utils.ops.upfirdn2d.downsample2d", "down", 2),
            ("torch_utils.ops.filtered_lrelu.filtered_lrelu", "slope", 0.2),
    ("torch_utils.ops.conv2d_gradfix.no_weight_gradients", "disable", True),
            ("torch_utils.misc.constant", "dtype", None),
    ("training.networks_stylegan2.Conv2dLayer", "bias", True),
            ("training.networks_stylegan2.Conv2dLayer", "resample_filter", [1, 3, 3, 1]),
    ("training.networks_stylegan2.MinibatchStdLayer", "num_channels", 1),
            ("training.plucker.plucker_embedding", "jitter", False),
]


def imported(full_name):
    """By the longest module path that there is, then by attributes."""
    parts = full_name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            obj = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            obj = getattr(obj, name)
        return obj
    raise AssertionError(full_name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_and_arguments(name):
    assert list(inspect.signature(imported(name)).parameters) == SIGNATURES[name].split()


@pytest.mark.parametrize("name, parameter, value", DEFAULTS)
def test_defaults(name, parameter, value):
    default = inspect.signature(imported(name)).parameters[parameter].default
    assert (list(default) if isinstance(value, list) else default) == value


def test_names_that_are_no_functions():
    activations = imported("torch_utils.ops.bias_act.activation_funcs")
    assert activations["lrelu"].def_gain == pytest.approx(2 ** 0.5) and activations["lrelu"].def_alpha == 0.2
    assert issubclass(imported("dnnlib.EasyDict"),
                      dict) and imported("dnnlib.util.EasyDict") is imported("dnnlib.EasyDict")
    assert isinstance(imported("torch_utils.ops.conv2d_gradfix.enabled"), bool)
    with misc.suppress_tracer_warnings():
        pass


# ---------------------------------------------------------------------------------------------------------------------
# A foreign file: its own module, written as such files write theirs.

SOURCE = '''
import sys
import dnnlib
import numpy as np
import torch
from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, filtered_lrelu, fma, grid_sample_gradfix
from torch_utils.ops import upfirdn2d
from training.networks_stylegan2 import Conv2dLayer, MinibatchStdLayer
from training.plucker import plucker_embedding

sys.foreign_source_runs = getattr(sys, "foreign_source_runs", 0) + 1

@misc.profiled_function
def shade(x, gain):
    return fma.fma(x, misc.constant([gain], device=x.device), x)

@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn([channels, channels, 3, 3]))
        self.bias = torch.nn.Parameter(torch.zeros([channels]))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))

    def forward(self, x):
        x = conv2d_resample.conv2d_resample(x=x, w=self.weight, f=self.resample_filter, up=2, padding=1)
        return bias_act.bias_act(x, self.bias, act="lrelu", gain=bias_act.activation_funcs["lrelu"].def_gain)

@persistence.persistent_class
class Warp(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        zoom = torch.eye(2, 3)[None].repeat(len(x), 1, 1) * self.options.zoom
        grid = torch.nn.functional.affine_grid(zoom, x.shape, align_corners=False)
        return grid_sample_gradfix.grid_sample(x, grid)

@persistence.persistent_class
class CLASS(torch.nn.Module):
    def __init__(self, z_dim, img_resolution=16, *, rays=True):
        super().__init__()
        self.z_dim, self.c_dim, self.img_resolution = z_dim, 0, img_resolution
        self.layers = torch.nn.ModuleList([SynthesisLayer(6), SynthesisLayer(6)])
        self.first = self.layers[0]
        self.warp = Warp(dnnlib.EasyDict(zoom=0.5))
        self.head = torch.nn.Linear(z_dim, 6)
        self.note = ("kept", np.float32(0.25))

    def forward(self, z):
        misc.assert_shape(z, [None, self.z_dim])
        K = torch.tensor([[4.26, 0, 0.5], [0, 4.26, 0.5], [0, 0, 1]])[None]
        x = plucker_embedding(4, 4, K, torch.eye(4)[None] + torch.eye(4).roll(1, 1)[None])
        x = shade(x * self.head(z)[:, :, None, None], 0.5)
        for layer in self.layers:
            x = layer(x)
        x = filtered_lrelu.filtered_lrelu(x, padding=0)
        return conv2d_gradfix.conv2d(self.warp(x), torch.ones([3, 6, 1, 1]))
'''


class ForeignPickler(pickle.Pickler):
    """Stores objects of the module as the released format does: class name, attributes, source."""

    def __init__(self, stream, module, source):
        super().__init__(stream, protocol=4)
        self.module, self.source = module, source

    def reducer_override(self, obj):
        if type(obj).__module__ != self.module:
            return NotImplemented
        meta = EasyDict(type="class", version=6, module_src=self.source, class_name=type(obj).__name__,
                        state=obj.__dict__)
        return persistence._reconstruct_persistent_obj, (meta,)


def foreign_file(class_name="TriPlaneThing", source=SOURCE, written_source=None):
    """(bytes of a file with such a network as G_ema, the network)."""
    module = types.ModuleType("foreign_networks")
    source = source.replace("CLASS", class_name)
    sys.modules[module.__name__] = module
    exec(source, module.__dict__)
    torch.manual_seed(0)
    network = getattr(module, class_name)(4).eval()
    stream = io.BytesIO()
    ForeignPickler(stream, module.__name__, source
                   if written_source is None else written_source).dump(dict(G_ema=network, G=network, D=None))
    sys.foreign_source_runs = 0
    return stream.getvalue(), network


@pytest.fixture(autouse=True)
def forget_modules():
    yield
    for name in [name for name in sys.modules if name.startswith("_trusted_source_") or name == "foreign_networks"]:
        del sys.modules[name]
    if hasattr(sys, "foreign_source_runs"):
        del sys.foreign_source_runs


@pytest.mark.parametrize("class_name",
                         ["TriPlaneThing", "Generator"])       # the second is known by name, and of no known family
def test_foreign_networks_load_only_with_trust(class_name):
    data, network = foreign_file(class_name)
    for load in (known_names.load, pickle.load):
        with pytest.raises(UserError):
            load(io.BytesIO(data))
    assert sys.foreign_source_runs == 0
    loaded = trusted_source.load(io.BytesIO(data))
    assert sys.foreign_source_runs == 1                                      # once, though six modules have it
    G = loaded["G_ema"]
    assert loaded["G"] is G and loaded["D"] is None and type(G).__name__ == class_name and isinstance(G,
                                                                                                      torch.nn.Module)
    assert G.layers[0] is G.first and G.note == ("kept", 0.25) and not G.training and G.init_args == (4,)
    z = torch.randn(2, 4)
    network.requires_grad_(False)
    assert torch.equal(G(z), network(z)) and float(network(z).abs().max()) > 0
    assert [name for name, _ in G.named_parameters()] == [name for name, _ in network.named_parameters()]


def test_refusal_names_the_class():
    data, _ = foreign_file("TriPlaneThing")
    with pytest.raises(UserError, match="ModuleList|Warp|TriPlaneThing"):
        known_names.load(io.BytesIO(data))


def test_known_networks_are_ours_even_with_trust():
    """Their source raises; it is not run."""
    golden = load_golden("pickles/raycond2.npz")
    with open(DATA / "pickles" / "raycond2.pkl", "rb") as stream:
        networks = trusted_source.load(stream)
    G = networks["G_ema"]
    assert type(G).__module__ == "training.networks_raycond2"
    with torch.no_grad():
        assert_close_rel(G(torch.as_tensor(golden["z"]), torch.as_tensor(golden["c"]), noise_mode="const"),
                         golden["G_ema_img"], 2e-4)


def test_own_files_with_trust():
    stream = io.BytesIO()
    persistence.dump(dict(x=torch.arange(3), k=EasyDict(a=1)), stream)
    stream.seek(0)
    loaded = trusted_source.load(stream)
    assert torch.equal(loaded["x"], torch.arange(3)) and loaded["k"].a == 1


@pytest.mark.parametrize("source, message", [
    ("import no_such_module_anywhere",
     "the source code in the file fails with ModuleNotFoundError: .*no_such_module_anywhere"),
    ("x = (", "fails with SyntaxError"),
    ("x = 1", "does not define its class"),
])
def test_source_that_fails(source, message):
    data, _ = foreign_file(written_source=source)
    with pytest.raises(UserError, match=message) as error:
        trusted_source.load(io.BytesIO(data))
    assert "\n" not in error.value.format_message()
    assert not any(name.startswith("_trusted_source_") for name in sys.modules) or source == "x = 1"


def test_import_hooks_see_foreign_networks(monkeypatch):
    monkeypatch.setattr(persistence, "_import_hooks", [])
    data, _ = foreign_file()
    seen = []

    def hook(meta):
        seen.append(meta.class_name)
        meta.module_src = meta.module_src.replace('("kept"', '("changed"')
        return meta

    persistence.import_hook(hook)
    G = trusted_source.load(io.BytesIO(data))["G_ema"]
    assert seen[-1] == "TriPlaneThing" and "SynthesisLayer" in seen
    assert type(G)(4).note == ("changed", 0.25)
