"""Detectors: which file, what is refused, what the cache keeps."""

import functools
import io

import metric_helpers as nets
import pytest
import torch
from dataset_helpers import refusal
from metric_helpers import options

import metrics
from dnnlib import UserError
from metrics import detectors, metric_main, metric_utils

pytestmark = pytest.mark.usefixtures("own_cache")


class NoKeywords(torch.nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.mean(dim=[2, 3])


class Maps(nets.TinyDetector):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.conv(img)


class NaNs(nets.TinyDetector):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.mean(dim=[2, 3]) * float("nan")


class Logits(nets.TinyDetector):
    def forward(self, img: torch.Tensor, no_output_bias: bool = False) -> torch.Tensor:
        return img.mean(dim=[2, 3])


@pytest.mark.parametrize("module, metric, says", [
    (NoKeywords, "fid50k_full", "return_features"), (Maps, "fid50k_full", "expected [2, D]"), (NaNs, "fid50k_full", "not finite"),
    (Logits, "is50k", "no probabilities"), (Logits, "ppl2_wend", "return_lpips"),
])
def test_wrong_detectors_are_refused(module, metric, says, tmp_path, camera_zip):
    path = nets.save_detector(tmp_path / "wrong.pt", module())
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, path))
    message = refusal(lambda: metric_main.check_metrics([metric], opts))
    assert says in message and "wrong.pt" in message and metric in message


def test_files_that_are_no_detectors_are_refused(tmp_path, camera_zip):
    def message(name, content):
        (tmp_path / name).write_bytes(content)
        opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, str(tmp_path / name)))
        return refusal(lambda: metric_main.check_metrics(["fid50k_full"], opts))

    bomb = b"\x80\x03cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    assert "pickle" in message("inception.pkl", bomb) and "pickle" in message("inception.pt", bomb) and not (tmp_path / "ran").exists()
    assert "not a TorchScript file" in message("text.pt", b"hello") and "not a TorchScript file" in message("empty.pt", b"")
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, str(tmp_path / "absent.pt")))
    assert "no such file" in refusal(lambda: metric_main.check_metrics(["fid50k_full"], opts))


def test_detectors_in_the_cache(camera_zip, detector, tmp_path, monkeypatch):
    def no_network(url, **_):
        raise UserError(f"cannot download {url}")
    monkeypatch.setattr(detectors.files, "open_url", no_network)
    kwargs = dict(options(nets.raycond2(), camera_zip, detector), detectors={})
    opts = metric_utils.MetricOptions(**kwargs)
    place = tmp_path / "cache" / "detectors" / "inception-2015-12-05.pt"
    for fetch in (False, True):
        message = refusal(functools.partial(metric_main.check_metrics, ["fid8_full"], opts, fetch=fetch))
        assert str(place) in message and "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt" in message
    nets.save_detector(place)                                   # fetched by hand
    metric_main.check_metrics(["fid8_full"], opts)
    record = place.with_name(place.name + ".sha256")
    assert record.read_text().split()[0] == detectors.sha256_of(str(place))
    nets.save_detector(place, nets.TinyDetector(5))
    assert "has changed" in refusal(lambda: metric_main.check_metrics(["fid8_full"], opts))
    assert "has changed" in refusal(lambda: detectors.prepare("inception", {}))
    # A damaged file that nobody has seen before: no hash of it is kept.
    place.write_bytes(place.read_bytes()[:300])
    record.unlink()
    for judge in (lambda: metric_main.check_metrics(["fid8_full"], opts), lambda: detectors.prepare("inception", {})):
        message = refusal(judge)
        assert f"remove it (and {record})" in message and "prepare" in message and str(place) in message and not record.exists()


def test_fetching_records_the_hash(tmp_path, detector, monkeypatch):
    monkeypatch.setattr(detectors.files, "open_url", lambda url, **_: open(detector, "rb"))
    path = detectors.prepare("vgg16", {})
    assert (tmp_path / "cache" / "detectors" / "vgg16.pt.sha256").read_text().split()[0] == detectors.sha256_of(detector) == detectors.sha256_of(path)


def test_a_download_that_is_no_detector_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors.files, "open_url", lambda url, **_: io.BytesIO(b"<html>Sign in to the network</html>"))
    message = refusal(lambda: detectors.prepare("vgg16", {}))
    assert "vgg16.pt" in message and "no TorchScript file" in message and "35 bytes" in message
    assert not list((tmp_path / "cache" / "detectors").iterdir())


def test_one_file_for_two_kinds_is_refused(detector, camera_zip, capsys):
    opts = metric_utils.MetricOptions(**dict(options(nets.raycond2(), camera_zip, detector), detectors={}, detector_files=(detector,)))
    message = refusal(lambda: metric_main.check_metrics(["fid8_full", "pr83_full"], opts))
    assert "--detector=inception=FILE" in message and "--detector=vgg16=FILE" in message and detector in message
    metric_main.check_metrics(["fid8_full", "is10"], opts)
    assert capsys.readouterr().out == f"--detector={detector}: taken for an inception detector.\n"
    opts.detectors["vgg16"] = detector
    metric_main.check_metrics(["fid8_full", "pr83_full"], opts)


def test_kinds_of_detectors_by_name(tmp_path, monkeypatch):
    assert metrics.detector_options(["inception=a.pt", "b.pt"], embedding="e.pt") == dict(
        detectors=dict(inception="a.pt", embedding="e.pt"), detector_files=("b.pt",))
    assert "did you mean inception?" in refusal(lambda: metrics.detector_options(["inceptoin=/x.pt"]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.pt").touch()
    assert metrics.detector_options(["a=b.pt"])["detector_files"] == ("a=b.pt",)


def test_files_without_a_kind(tmp_path, detector):
    plain = nets.save_detector(tmp_path / "mine.pt")
    named = nets.save_detector(tmp_path / "my-inception.pt")
    wrong = nets.save_detector(tmp_path / "wrong.pt", NoKeywords())
    assert detectors.find("inception", "features", {}, (plain,)) == plain
    assert detectors.find("inception", "features", {}, (plain, named)) == named
    assert detectors.find("vgg16", "lpips", {}, (wrong, named, plain)) == plain
    assert "vgg16" in refusal(lambda: detectors.find("vgg16", "lpips", {}, (named,)))
    assert "return_lpips" in refusal(lambda: detectors.find("vgg16", "lpips", {}, (wrong,)))
