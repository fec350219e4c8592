"""Run by test_precision in a process of its own: prints a digest of many results, computed under the default dtype that is its argument."""

import hashlib
import io
import sys
from pathlib import Path

import torch

torch.set_default_dtype(getattr(torch, sys.argv[1]))

import camera_utils  # noqa: E402
import legacy  # noqa: E402
from metrics.detectors.convnet import ConvNet  # noqa: E402
from torch_utils import persistence  # noqa: E402
from torch_utils.ops import bias_act, filtered_lrelu, modulate, upfirdn2d  # noqa: E402
from torch_utils.ops.bias_act import cpu as bias_act_cpu  # noqa: E402
from torch_utils.ops.conv2d_gradfix import operator as strided_conv  # noqa: E402
from torch_utils.ops.conv2d_resample import cpu as up_conv  # noqa: E402
from torch_utils.ops.modulate import cpu as modulate_cpu  # noqa: E402
from torch_utils.ops.upfirdn2d import cpu as upfirdn2d_cpu  # noqa: E402
from training import networks_raycond2, networks_raycond3  # noqa: E402
from training.augment import AugmentPipe  # noqa: E402
from training.loss import StyleGAN2Loss  # noqa: E402
from training.networks.discriminator import Discriminator  # noqa: E402

F = torch.float32


def show(name, *tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        stream = io.BytesIO()
        torch.save(tensor.detach().contiguous(), stream)
        digest.update(stream.getvalue())
    print(name, [str(t.dtype) for t in tensors][:1], digest.hexdigest()[:16])


def gradients(y, *xs):
    return torch.autograd.grad(y.square().sum(), xs)


# Ops: the native paths, however small the tensors.
for module in (bias_act_cpu, modulate_cpu, upfirdn2d_cpu, up_conv):
    module.LEAST_ELEMENTS = 0
strided_conv.LEAST_CHANNELS = 1
torch.manual_seed(0)
x = torch.randn([2, 16, 16, 16], dtype=F).to(memory_format=torch.channels_last).requires_grad_()
w, styles, b = (torch.randn(shape, dtype=F).requires_grad_() for shape in ([16, 16, 3, 3], [2, 16], [16]))
f4, f12 = upfirdn2d.setup_filter([1, 3, 3, 1]), upfirdn2d.setup_filter(torch.rand([12], dtype=F))
with torch.no_grad():
    show("up_conv", up_conv.up_conv(x, w, f4, (1, 1, 1, 1), 4.0))
    show("demodulation", modulate.demodulation(w, styles))
y = bias_act.scaled_bias_act(x, b, act="lrelu", clamp=1.0, scale=styles, noise=torch.randn([16, 16], dtype=F))
show("bias_act", y, *gradients(y, x, b, styles))
y = upfirdn2d.upsample2d(x, f4)
show("upfirdn2d", y, *gradients(y, x))
y = filtered_lrelu.filtered_lrelu(x, f12, f12, b, up=2, down=2, padding=[11, 10, 11, 10])
show("filtered_lrelu", y, *gradients(y, x, b))
y = filtered_lrelu.filtered_lrelu(x.double(), f12, f12, b.double(), up=2, down=2, padding=[11, 10, 11, 10])
show("filtered_lrelu in double", y, *gradients(y, x, b))
y = modulate.modulate(x, styles)
show("modulate", y, *gradients(y, x, styles))
y = strided_conv.conv_transpose2d(strided_conv.conv2d(x, w, 2), w, 2)
show("strided_conv", y, *gradients(y, x, w))

# Networks and what is around them.
z = torch.randn([2, 16], dtype=F)
c = torch.cat([camera_utils.camera_for("heads", yaw, 0.1).to_label() for yaw in (-0.3, 0.4)])
show("cameras", c, camera_utils.Camera.from_label(c[0].tolist()).to_label(), *(camera_utils.ray_map(c, 8, 8, kind) for kind in camera_utils.CONVENTIONS))
sizes = dict(c_dim=25, img_resolution=16, img_channels=3, channel_base=256, channel_max=16)
TRANSFORMS = "xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation imgfilter noise cutout"
pipe = AugmentPipe(**dict.fromkeys(TRANSFORMS.split(), 1))
for family, layers in ((networks_raycond2, {}), (networks_raycond3, dict(num_layers=4))):
    torch.manual_seed(0)
    G = family.Generator(z_dim=16, w_dim=16, rays="pinhole", **sizes, **layers)
    D = Discriminator(**sizes, dcond="both")
    show(f"{family.__name__} weights", *G.state_dict().values(), *D.state_dict().values())
    with torch.no_grad():
        show("image", G(z, c, truncation_psi=0.7, noise_mode="const"), G(z, c, noise_mode="random"))
        stream = io.BytesIO()
        persistence.dump(dict(G_ema=G), stream)
        show("image from a file", legacy.load_network_pkl(io.BytesIO(stream.getvalue()))["G_ema"](z, c, noise_mode="const"))
    loss = StyleGAN2Loss("cpu", G, D, augment_pipe=pipe, style_mixing_prob=0.9, pl_weight=2, blur_init_sigma=1, blur_fade_kimg=1)
    real = torch.rand([2, 3, 16, 16], dtype=F) * 2 - 1
    for phase, module in (("Gboth", G), ("Dboth", D)):
        G.requires_grad_(module is G)
        D.requires_grad_(module is D)
        loss.accumulate_gradients(phase, real, c, z, c, gain=1, cur_nimg=100)
        show(phase, *(p.grad for p in module.parameters() if p.grad is not None))
for name in ("raycond2", "tf_stylegan2"):
    stored = legacy.load_network_pkl(Path(__file__).parent / "data" / "pickles" / f"{name}.pkl")["G_ema"]
    show(name, *stored.state_dict().values())
torch.manual_seed(0)
show("detector", ConvNet(32, 8).eval()(real))
