"""StyleGAN2's files of the TensorFlow era: what is in their variables, and what is refused. Their numbers: test_legacy.
"""

import pickle

import numpy as np
import pytest
import torch
from helpers import DATA

import legacy
from dnnlib import UserError
from network_files import known_names, tensorflow_format
from training import networks_stylegan2

Network = tensorflow_format.Network


def networks(name="tf_stylegan2"):
    with open(DATA / "pickles" / f"{name}.pkl", "rb") as stream:
        return known_names.load(stream)


def change(network, **renamed):
    """Variables by name -> new array, or None to leave them out; in the network and its components."""
    new = dict(renamed)
    for part in (network, *network.state["components"].values()):
        variables = [(key, new.pop(key, value)) for key, value in part.state["variables"]]
        part.state["variables"] = [(key, value) for key, value in variables if value is not None]
    part.state["variables"] += new.items()


def test_axes_flips_and_offsets():
    G, _, _ = networks()
    there, here = G.variables(), tensorflow_format.translate(networks())["G"]["state"]["tensors"]
    kernel = there["8x8/Conv0_up/weight"]                       # [height, width, in, out]
    assert torch.equal(here["synthesis.b8.conv0.weight"][3, 2], torch.from_numpy(kernel[::-1, ::-1, 2, 3].copy()))
    kernel = there["8x8/Conv1/weight"]
    assert torch.equal(here["synthesis.b8.conv1.weight"][3, 2], torch.from_numpy(kernel[:, :, 2, 3].copy()))
    assert torch.equal(here["synthesis.b4.conv1.affine.bias"], torch.from_numpy(there["4x4/Conv/mod_bias"] + 1))
    assert torch.equal(here["mapping.fc0.weight"], torch.from_numpy(there["Dense0/weight"].T.copy()))
    assert torch.equal(here["synthesis.b16.conv0.noise_const"], torch.from_numpy(there["noise3"][0, 0]))


# --- every shape of network: ours, written as TensorFlow's would be, come back as they were

LAYERS = dict(const="Const", conv="Conv", conv0="Conv0_up", conv1="Conv1", torgb="ToRGB", skip="Skip", fc="Dense0",
              fromrgb="FromRGB")


def named_there(name, discriminator):
    """The variable's name for our tensor's."""
    if name == "mapping.w_avg":
        return "dlatent_avg"
    if name.startswith("b4.out."):
        return name.replace("b4.out.", "Output/")
    block, layer, kind = name.replace("affine.", "mod_").split(".") if name != "b4.const" else ("b4", "const", "const")
    if block == "mapping":
        return f"{layer.replace('embed', 'LabelEmbed').replace('fc', 'Mapping' if discriminator else 'Dense')}/{kind}"
    layers = LAYERS
    if discriminator:
        layers = dict(LAYERS, conv0="Conv0", conv1="Conv1_down")
    elif block == "b4":
        layers = dict(LAYERS, conv1="Conv")
    return f"{block[1:]}x{block[1:]}/{layers[layer]}/{kind}"


def stored_there(array, name, discriminator):
    upsamples = "Conv0_up" in name or ("Skip" in name and not discriminator)
    if name == "4x4/Const/const":
        return array[None]
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)[::-1, ::-1] if upsamples else array.transpose(2, 3, 1, 0)
    return array - 1 if name.endswith("mod_bias") else array.T


def variables_of(net):
    discriminator = not hasattr(net, "synthesis")
    tensors = {name.removeprefix("synthesis."): tensor.numpy() for name, tensor in net.state_dict().items()
               if not name.endswith("resample_filter")}
    noises = [array for name, array in tensors.items() if name.endswith("noise_const")]
    names = {name: named_there(name, discriminator) for name in tensors if not name.endswith("noise_const")}
    return [(there, stored_there(tensors[name], there, discriminator)) for name, there in names.items()] + \
        [(f"noise{i}", array[None, None]) for i, array in enumerate(noises)]


def as_tensorflow(net, rename=lambda name: name, **static_kwargs):
    network = Network()
    network.state = state(static_kwargs=static_kwargs,
                          variables=[(rename(name), array) for name, array in variables_of(net)] + [("lod", 0.0)])
    return network


def randomised(net):
    """Biases and noise, too, so that none is left out unnoticed."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not name.endswith("resample_filter") and (tensor == tensor.flatten()[0]).all():
                tensor.copy_(torch.randn(tensor.shape) * 0.1 + (1 if name.endswith("affine.bias") else 0))
    return net.eval().requires_grad_(False)


G_KWARGS = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=32, img_channels=3, channel_base=128, channel_max=8,
                num_fp16_res=0, conv_clamp=None)
D_KWARGS = dict(c_dim=0, img_resolution=32, img_channels=3, channel_base=128, channel_max=8, num_fp16_res=0,
                conv_clamp=None)


@pytest.mark.parametrize("g, d, static_kwargs", [
    (dict(), dict(), {}),
    (dict(architecture="orig"), dict(architecture="orig"), {}),
    (dict(architecture="resnet", img_channels=1), dict(architecture="skip", img_channels=1), {}),
    (dict(img_resolution=8), dict(img_resolution=8, architecture="skip"), {}),
    (dict(channel_base=100, channel_max=512), dict(channel_base=100, channel_max=512),
     {}),                       # no whole multiples
    (dict(c_dim=3, z_dim=5, mapping_kwargs=dict(num_layers=1, embed_features=4)),
     dict(c_dim=3, mapping_kwargs=dict(num_layers=0)), {}),
    (dict(c_dim=3, mapping_kwargs=dict(num_layers=4, layer_features=6, lr_multiplier=0.05)),
     dict(c_dim=3, cmap_dim=7,
          mapping_kwargs=dict(num_layers=3, layer_features=5, embed_features=4, lr_multiplier=0.05)),
     dict(mapping_lrmul=0.05)),
    (dict(conv_clamp=0.5), dict(conv_clamp=0.5), dict(conv_clamp=0.5)),
    (dict(resample_filter=[1, 2, 1]), dict(block_kwargs=dict(resample_filter=[1, 2, 1])),
     dict(resample_kernel=[1, 2, 1])),
    (dict(), dict(epilogue_kwargs=dict(mbstd_group_size=2, mbstd_num_channels=4)), dict(mbstd_group_size=2)),
    (dict(), dict(epilogue_kwargs=dict(mbstd_num_channels=0)), {}),
])
@torch.no_grad()
def test_networks_of_all_shapes(g, d, static_kwargs):
    torch.manual_seed(4)
    G = randomised(networks_stylegan2.Generator(**{**G_KWARGS, **g}))
    D = randomised(networks_stylegan2.Discriminator(**{**D_KWARGS, **d}))
    found = tensorflow_format.rebuild([as_tensorflow(net, **static_kwargs) for net in (G, D, G)])
    z, c, x = torch.randn([4, G.z_dim]), torch.eye(4)[:,
                                                      :G.c_dim], torch.randn([4, G.img_channels, G.img_resolution,
                                                                              G.img_resolution])
    for key in ("G", "G_ema"):
        assert torch.equal(found[key](z, c, truncation_psi=0.7, noise_mode="const"),
                           G(z, c, truncation_psi=0.7, noise_mode="const"))
    assert torch.equal(found["D"](x, c), D(x, c))


def test_networks_that_have_grown():
    """Their layers next to the image are called by level of detail; those of lower resolutions are no longer used."""
    torch.manual_seed(5)
    G = randomised(networks_stylegan2.Generator(**G_KWARGS, architecture="orig"))
    D = randomised(networks_stylegan2.Discriminator(**D_KWARGS, architecture="orig"))
    G_there, D_there = (as_tensorflow(net,
                                      lambda name: name.replace("32x32/ToRGB", "ToRGB_lod0").replace("32x32/FromRGB",
                                                                                                     "FromRGB_lod0"))
                        for net in (G, D))
    change(G_there, **{"ToRGB_lod1/weight": np.zeros([1, 1, 8, 3], np.float32)})
    found = tensorflow_format.rebuild((G_there, D_there, G_there))
    z, x = torch.randn([2, 8]), torch.randn([2, 3, 32, 32])
    assert torch.equal(found["G_ema"](z, None, noise_mode="const"),
                       G(z, None, noise_mode="const")) and torch.equal(found["D"](x, None), D(x, None))


@pytest.mark.parametrize("variables, arguments, says", [
    ({"8x8/Conv1/bias": None}, {}, "no variable '8x8/Conv1/bias'"),
    ({"8x8/Conv1/bias": np.zeros([2, 2], np.float32)}, {}, "2 dimensions, expected 1"),
    ({"8x8/Conv1/bias": np.zeros([3], np.float32)}, {}, "stored with the shape"),
    ({"dlatent_avg": None}, {}, "dlatent_avg"),
    ({"4x4/Conv/weight": None}, {}, "not called as StyleGAN2's"),
    ({"32x32/Conv1/weight": np.zeros([3, 3, 8, 6], np.float32)}, {}, "do not follow"),
    ({}, dict(nonlinearity="relu"), "nonlinearity='relu'"),
    ({}, dict(resample_kernel=[1, 2]), "resample_kernel"),
    ({}, dict(resample_kernel="1331"), "resample_kernel"),
    ({}, dict(mapping_lrmul="x"), "mapping_lrmul"),
    ({"8x8/Conv1/extra": np.zeros([3], np.float32)}, {}, "'8x8/Conv1/extra' that none of ours has"),
    ({"ToRGB_lod1/weight": np.zeros([1, 1, 16, 3], np.float32), "lod": 1.5}, {}, "not grown"),
    ({"4x4/Conv/StyleMod/weight": np.zeros([3, 3], np.float32)}, {}, "the first StyleGAN"),
    ({"LabelConcat/weight": np.zeros([3, 3], np.float32)}, {}, "joins labels"),
    ({}, dict(normalize_latents=False), "normalize_latents"),
])
def test_what_ours_cannot_express_is_refused(variables, arguments, says):
    G, D, Gs = networks()
    change(Gs, **variables)
    Gs.state["static_kwargs"].update(arguments)
    with pytest.raises(UserError, match=says) as error:
        tensorflow_format.rebuild((G, D, Gs))
    assert "\n" not in error.value.format_message()


def write(path, *states):
    """A tuple of networks with these states."""
    data = b"\x80\x04("
    for state in states:
        data += b"cdnnlib.tflib.network\nNetwork\n)\x81" + pickle.dumps(state, protocol=2)[2:-1] + b"b"
    path.write_bytes(data.replace(b"(", b"", 1) + b"." if len(states) == 1 else data + b"t.")
    return path


def state(**changes):
    return dict(dict(version=4, name="G", static_kwargs={}, components={}, variables=[],
                     build_module_src="raise SystemExit", build_func_name="G"), **changes)


@pytest.mark.parametrize("states, says", [
    ([state()] * 3, "not called as StyleGAN2's"),
    ([state(variables=[("ToRGB_lod0/weight", 1.0)], name="Gs")] * 3,
     "'Gs' is no StyleGAN2"),           # progressive GAN, StyleGAN
    ([state()] * 2, r"\(G, D, Gs\)"),
    ([state(variables=None)] * 3, "lacks its variables"),
    ([state(components=[1])] * 3, "components that are not networks"),
    ([state(variables=[("4x4/Conv/weight", "text")])] * 3, "not arrays"),
    ([7] * 3, "stored as int"),
    ([state(name="LPIPS")], "a single TensorFlow network, 'LPIPS'"),
])
def test_other_networks_are_refused(states, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        legacy.load_network_pkl(write(tmp_path / "tf.pkl", *states))
    assert "tf.pkl" in error.value.format_message() and "\n" not in error.value.format_message()
