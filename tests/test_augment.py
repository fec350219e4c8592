"""training.augment: reference numbers, and each transform against what its definition says."""

import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import DATA, assert_close_rel, load_golden

import legacy
from network_files import known_names, released_format
from torch_utils import persistence
from training.augment import AugmentPipe
from training.augment.image_space import octave_filters, symlet
from training.augment.transforms import pad_reflected
from training.presets import AUGMENTATIONS
from training.run.randomness import AugmentDraws

GOLDEN = load_golden("augment.npz")
CASES = [json.loads(str(case)) for case in GOLDEN["cases"]]
ALL = dict.fromkeys([name for names in AUGMENTATIONS.values() for name in names], 1)
MOVING = {name: 1 for group in ("blit", "geom") for name in AUGMENTATIONS[group]}
COLOR = dict.fromkeys(AUGMENTATIONS["color"], 1)


def images(count=2, channels=3, size=16, seed=0, dtype=torch.float32):
    return torch.rand([count, channels, size, size], generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def keyed(samples, batch_size=None, key=(1, 2, 3, 0)):
    return AugmentDraws(key, np.asarray(samples), batch_size or len(samples))


def with_p(p, **kwargs):
    pipe = AugmentPipe(**kwargs)
    pipe.p.fill_(p)
    return pipe


# ---------------------------------------------------------------------------------------------------------------------
# Reference numbers

@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{'+'.join(CASES[i]['kwargs'])[:20]}-{CASES[i]['debug_percentile']}")
def test_reference_numbers(index):
    case = CASES[index]
    x = torch.as_tensor(GOLDEN[f"{index}/x"])
    assert_close_rel(AugmentPipe(**case["kwargs"])(x, debug_percentile=case["debug_percentile"]), GOLDEN[f"{index}/y"], 2e-4)


def test_filters_are_those_of_released_files(monkeypatch):
    monkeypatch.setattr(released_format, "rebuild_augment_pipe", lambda part: part)
    with open(DATA / "pickles" / "raycond2.pkl", "rb") as stream:
        part = known_names.load(stream)["augment_pipe"]
    assert set(dict(AugmentPipe().named_buffers())) == set(part.tensors())
    for name, stored in part.tensors().items():
        assert_close_rel(getattr(AugmentPipe(), name), stored, 1e-6, name)


@pytest.mark.parametrize("moments", [2, 6])
def test_symlets_are_orthogonal_wavelets(moments):
    """Orthonormal under shifts by two, and the wavelet (alternating signs, reversed) has so many vanishing moments."""
    taps = symlet(moments) * math.sqrt(2)
    n = np.arange(len(taps))
    products = np.convolve(taps, taps[::-1])[len(taps) - 1 :: 2]
    assert np.allclose(products, np.eye(1, len(products))[0], atol=1e-10)
    for k in range(moments):
        assert abs(((-1.0) ** n * taps * (n / len(n)) ** k).sum()) < 1e-8, k
    assert abs(((-1.0) ** n * taps * (n / len(n)) ** moments).sum()) > 1e-4


def test_octave_filters_split_the_spectrum():
    bank = octave_filters()
    assert bank.shape == (4, 43) and np.allclose(bank.sum(0), np.eye(1, 43, 21)[0], atol=1e-12) and np.allclose(bank, bank[:, ::-1], atol=1e-12)
    spectrum = np.abs(np.fft.rfft(bank, 512))
    assert (spectrum.argmax(0)[[4, 45, 90, 220]] == [0, 1, 2, 3]).all()                      # of 256: below 1/8, to 1/4, to 1/2, to 1


# ---------------------------------------------------------------------------------------------------------------------
# What each transform does

def test_nothing_happens_at_p_zero_or_without_transforms():
    x = images()
    assert torch.equal(with_p(0, **ALL)(x), x) and torch.equal(AugmentPipe()(x), x)


def test_mirror_quarter_turn_and_whole_pixels():
    cosines = torch.cos(math.pi * torch.arange(3)[:, None] * torch.arange(32) / 31)              # smooth also where it is mirrored
    x = torch.einsum("ncij,ih,jw->nchw", images(size=3), cosines, cosines)
    half_pixel = 0.5 * float((x[:, :, 1:] - x[:, :, :-1]).abs().max())                          # the filter's centre is 0.2 pixels beside the middle
    assert float((AugmentPipe(xflip=1)(x, debug_percentile=0.9) - x.flip(3)).abs().max()) < half_pixel < 0.1 * float((x - x.flip(3)).abs().max())
    assert torch.equal(AugmentPipe(xflip=1)(x, debug_percentile=0.1), x)
    for turns in range(4):
        turned = AugmentPipe(rotate90=1)(x, debug_percentile=turns / 4 + 0.1)
        assert float((turned - x.rot90(turns, dims=(2, 3))).abs().max()) < half_pixel, turns
    moved = AugmentPipe(xint=1)(x, debug_percentile=0.875)       # 3 pixels to the right and down; what comes in is mirrored, not wrapped
    expected = torch.nn.functional.pad(x, [3, 0, 3, 0], mode="reflect")[:, :, :32, :32]
    assert torch.allclose(moved, expected, atol=1e-4)


def percentile_of(draw):
    """At which a 'normal' draw has this value."""
    return 0.5 * (1 + math.erf(draw))


def blob(size=64, x=0.0, y=0.0, sigma=(3.0, 3.0)):
    """[1, 1, size, size]: a Gaussian, its centre in pixels from the image's."""
    grid = torch.arange(size) - (size - 1) / 2
    return (-((grid[None, :] - x) / sigma[0]) ** 2 / 2 - ((grid[:, None] - y) / sigma[1]) ** 2 / 2).exp()[None, None]


@pytest.mark.parametrize("kwargs, percentile, expected", [
    (dict(scale=1, scale_std=1),        percentile_of(1.0), dict(x=16.0, y=0.0, sigma=(6.0, 6.0))),
    (dict(rotate=1),                    0.75,               dict(x=0.0, y=-8.0)),                   # a quarter turn, from right to up
    (dict(rotate=1, rotate_max=0.5),    0.0,                dict(x=0.0, y=8.0)),
    (dict(aniso=1, aniso_std=1),        percentile_of(1.0), dict(x=16.0, y=0.0, sigma=(6.0, 1.5))),
    (dict(xfrac=1),                     percentile_of(0.5), dict(x=12.0, y=4.0)),                   # half of 0.125 * 64 pixels
])
def test_general_geometry_moves_a_blob(kwargs, percentile, expected):
    y = AugmentPipe(**kwargs)(blob(x=8.0), debug_percentile=percentile)
    inner = slice(16, 48)                                       # mirrored blobs come in at the border
    assert float((y - blob(**expected))[:, :, inner].abs().max()) < 0.02


def test_colors_are_maps_of_single_pixels():
    x = images(size=16)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    pipe = AugmentPipe(**COLOR)
    shuffled = pipe(x.flatten(2)[:, :, order].unflatten(2, (16, 16)), debug_percentile=0.7)
    assert torch.allclose(shuffled, pipe(x, debug_percentile=0.7).flatten(2)[:, :, order].unflatten(2, (16, 16)), atol=1e-5)


def test_colors_by_their_definition():
    x = images().double()
    mean = x.mean(dim=1, keepdim=True)
    q = percentile_of(1.0)
    assert torch.allclose(AugmentPipe(brightness=1)(x, debug_percentile=q), x + 0.2, atol=1e-5)
    assert torch.allclose(AugmentPipe(contrast=1)(x, debug_percentile=q), x * 2 ** 0.5, atol=1e-5)
    assert torch.allclose(AugmentPipe(lumaflip=1)(x, debug_percentile=0.9), x - 2 * mean, atol=1e-5)
    assert torch.allclose(AugmentPipe(saturation=1)(x, debug_percentile=q), mean + (x - mean) * 2, atol=1e-5)
    third = AugmentPipe(hue=1)(x, debug_percentile=0.5 + 1 / 3)                                  # of a whole turn
    assert torch.allclose(third, x.roll(1, dims=1), atol=1e-5)


def test_grey_images_are_treated_as_colorless():
    grey = images(channels=1)
    y = AugmentPipe(**COLOR)(grey, debug_percentile=0.8)
    expected = AugmentPipe(**COLOR)(grey.expand(-1, 3, -1, -1), debug_percentile=0.8).mean(dim=1, keepdim=True)
    assert y.shape == grey.shape and torch.allclose(y, expected, atol=1e-5) and not torch.allclose(y, grey, atol=0.1)


def test_other_channel_counts():
    x = images(channels=2)
    assert AugmentPipe(xflip=1)(x).shape == x.shape
    with pytest.raises(ValueError, match="2 channels; expected 1 .* or 3"):
        AugmentPipe(brightness=1)(x)


@pytest.mark.parametrize("band", range(4))
def test_filtering_amplifies_one_band_at_equal_power(band):
    """A constant lies in the lowest band alone, a checkerboard in the highest."""
    bands = [0, 0, 0, 0]
    bands[band] = 1
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=bands)
    power = np.array([10, 1, 1, 1]) / 13
    factors = np.where(np.arange(4) == band, 2.0, 1.0)
    factors /= np.sqrt((power * factors ** 2).sum())
    q = percentile_of(1.0)
    flat = torch.full([1, 3, 32, 32], 0.5)
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1).expand(1, 3, -1, -1)
    assert torch.allclose(pipe(flat, debug_percentile=q), flat * factors[0] ** 2, atol=1e-5)
    assert torch.allclose(pipe(board, debug_percentile=q), board * factors[3] ** 2, atol=1e-5)


def test_noise():
    x = torch.zeros(400, 1, 16, 16)
    sigma = AugmentPipe(noise=1)(x).flatten(1).std(dim=1)
    assert float(sigma.square().mean().sqrt()) == pytest.approx(0.1, rel=0.15)                  # |normal| * 0.1
    assert float(sigma.min()) < 0.02 and float(sigma.max()) > 0.2


def test_cutout():
    x = torch.ones(1, 3, 16, 16)
    y = AugmentPipe(cutout=1)(x, debug_percentile=0.5)
    assert not y[:, :, 4:12, 4:12].any() and int(y.sum()) == 3 * (256 - 64)
    corner = AugmentPipe(cutout=1)(x, debug_percentile=0.0)
    assert not corner[:, :, :4, :4].any() and int(corner.sum()) == 3 * (256 - 16)


def test_reflection_is_numpys():
    x = images(size=5)
    padded = pad_reflected(x, 11, 4, 0, 9)
    assert np.array_equal(padded.numpy(), np.pad(x.numpy(), [(0, 0), (0, 0), (0, 9), (11, 4)], mode="reflect"))


# ---------------------------------------------------------------------------------------------------------------------
# How often, and from which draws

def test_probabilities():
    """Each multiplier times p; of the two rotations together p."""
    x = images(count=1, channels=3, size=4).expand(3000, -1, -1, -1)
    torch.manual_seed(0)
    for kwargs, share in [(dict(brightness=1), 0.3), (dict(brightness=0.5), 0.15), (dict(rotate=1), 0.3), (dict(lumaflip=1), 0.15), (dict(cutout=1), 0.3)]:
        changed = (with_p(0.3, **kwargs)(x) != x).flatten(1).any(dim=1).float().mean()
        assert abs(float(changed) - share) < 4 * math.sqrt(share * (1 - share) / 3000), kwargs


def test_torchs_generator_is_the_default():
    x, pipe = images(), AugmentPipe(**ALL)
    torch.manual_seed(3)
    first = pipe(x)
    torch.manual_seed(3)
    assert torch.equal(pipe(x), first) and not torch.equal(pipe(x), first)


@pytest.mark.parametrize("kwargs", [ALL, dict(MOVING, scale_std=1.5)], ids=["all", "far out of the image"])
def test_halves_of_a_batch_equal_the_whole(kwargs):
    x, pipe = images(count=8), with_p(0.8, **kwargs)
    whole = pipe(x, draws=keyed(range(8)))
    for samples in ([0, 2, 4, 6], [1, 3, 5, 7], [5]):
        assert torch.allclose(pipe(x[samples], draws=keyed(samples, 8)), whole[samples], atol=1e-5), samples


def test_draws_are_named_by_transform():
    """Another transform leaves what a transform draws alone."""
    samples = range(4)
    x = images(count=4)
    bright = AugmentPipe(brightness=1)(x, draws=keyed(samples)) - x
    both = AugmentPipe(xflip=1, cutout=1, brightness=1, noise=1, noise_std=0, cutout_size=0)(x, draws=keyed(samples))
    assert torch.allclose(both.mean(dim=(1, 2, 3)) - x.mean(dim=(1, 2, 3)), bright.mean(dim=(1, 2, 3)), atol=1e-4)


def test_draws_depend_on_each_part_of_their_key():
    name, shape = "rotate_before", [4, 2]
    base = keyed(range(4)).uniform(name, shape)
    assert torch.equal(keyed(range(4)).uniform(name, shape), base)
    for i in range(4):
        key = tuple(n + (i == j) for j, n in enumerate((1, 2, 3, 0)))
        assert not torch.equal(keyed(range(4), key=key).uniform(name, shape), base), i
    assert not torch.equal(keyed(range(4)).uniform("rotate_after", shape), base)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_is_never_waited_for(channels):
    """On the meta device nothing has a value: whatever the host decided by one would raise."""
    pipe = with_p(0.5, **ALL).to("meta")
    assert pipe.p.device.type == "cpu" and pipe.Hz_geom.device.type == "meta"
    torch.manual_seed(0)
    y = pipe(images(count=8, channels=channels).to("meta"))
    assert y.shape == (8, channels, 16, 16) and y.device.type == "meta"


# ---------------------------------------------------------------------------------------------------------------------
# Gradients, storage

def test_second_gradients():
    pipe = with_p(0.9, **ALL)
    x = images(count=2, size=4, dtype=torch.float64).requires_grad_(True)
    augment = lambda image: pipe(image, draws=keyed([0, 3], 4))                                  # noqa: E731
    assert not torch.allclose(augment(x), x)
    assert torch.autograd.gradcheck(augment, [x])
    assert torch.autograd.gradgradcheck(lambda image: augment(image).square(), [x])


def test_r1_goes_through_it():
    """The slope at the image before augmentation, by hand: for brightness-free colour it is A^T w with the colour matrix A."""
    pipe = AugmentPipe(saturation=1)
    x = images(count=1, size=4).requires_grad_(True)
    w = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    q = percentile_of(1.0)
    logits = (pipe(x, debug_percentile=q) * w[:, None, None]).sum()
    slope, = torch.autograd.grad(logits, x, create_graph=True)
    penalty = slope.square().sum() / 16                         # |mean + 2 (w - mean)|^2
    d_w, = torch.autograd.grad(penalty, w)
    mean = w.detach().mean()
    assert torch.allclose(d_w, 2 * (mean + 4 * (w.detach() - mean)), atol=1e-4)


@pytest.mark.parametrize("dumped", ["pickle", "persistence"])
def test_it_can_be_stored(dumped):
    pipe = with_p(0.25, **ALL, imgfilter_bands=[1, 1, 0, 1])
    stream = io.BytesIO()
    (pickle if dumped == "pickle" else persistence).dump(pipe, stream)
    stream.seek(0)
    copy = pickle.load(stream) if dumped == "pickle" else known_names.load(stream)
    assert type(copy) is AugmentPipe and float(copy.p) == 0.25 and copy.init_kwargs == pipe.init_kwargs
    x = images()
    assert torch.equal(copy(x, draws=keyed([0, 1])), pipe(x, draws=keyed([0, 1])))


def test_a_released_file_has_one():
    pipe = legacy.load_network_pkl(DATA / "pickles" / "raycond2.pkl")["augment_pipe"]
    assert type(pipe) is AugmentPipe and float(pipe.p) == 1 and {name for name, value in pipe.init_kwargs.items() if value} == set(COLOR)
    assert pipe.brightness == 1 and pipe.xflip == 0


def test_wrong_arguments():
    with pytest.raises(AssertionError, match="expected 4 numbers"):
        AugmentPipe(imgfilter_bands=[1, 1])
    with pytest.raises(AssertionError, match=r"images \[3, 8, 8\]"):
        AugmentPipe()(torch.zeros(3, 8, 8))
