"""What is told: of networks that have diverged, in files that a kill cut short, while it takes its time."""

import json

import metric_helpers as nets
import numpy as np
import pytest
import torch
from conftest import camera_labels, write_dataset
from metric_helpers import options, value

from dnnlib import cli
from metrics import metric_main, metric_utils
from metrics.results import read_curves

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def camera_zip32(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "cameras32.zip", camera_labels(24), size=32)


@pytest.mark.parametrize("make, labels, names", [
    (nets.raycond3, True, ["fid8_full", "kid8", "ppl2_wend8", "eqt8_int", "eqr8"]), (nets.stylegan2, False, ["fid8_full", "pr83_full", "is10", "ppl2_wend8"])])
def test_a_network_that_has_diverged_has_no_numbers(make, labels, names, detector, camera_zip, camera_zip32, capsys, tmp_path):
    G = make()
    G.mapping.fc0.weight.fill_(float("nan"))
    kwargs = options(G, camera_zip32 if labels else camera_zip, detector, labels)
    for name in names:
        result = metric_main.calc_metric(name, **kwargs)
        numbers = [number for number in result.results.values() if not isinstance(number, str)]
        assert numbers and all(np.isnan(number) for number in numbers)
        assert "diverged" in result.results[f"{name}_note"] and capsys.readouterr().out.count("diverged") == 1
        line = metric_main.report_metric(result, str(tmp_path), str(tmp_path / "network-snapshot-000004.pkl"))
        capsys.readouterr()
        stored = json.loads(line, parse_constant=pytest.fail)["results"]
        assert {value for key, value in stored.items() if not isinstance(value, str)} == {None}
    assert read_curves(str(tmp_path)) == {}


def test_a_few_bad_images_are_enough(detector, camera_zip):
    """All of what is generated counts, and another network's numbers are not touched by it."""
    G = nets.raycond2()
    kwargs = options(G, camera_zip, detector, shared={})
    good = value("fid8_full", **kwargs)
    z = next(metric_utils.iterate_samples(metric_utils.MetricOptions(**kwargs), 4)).z[2]
    forward = G.mapping.forward

    def fails_for_one(z_, c, **kw):
        return forward(z_, c, **kw) * torch.where((z_ == z).all(dim=1), float("inf"), 1.0)[:, None, None]
    G.mapping.forward = fails_for_one
    results = metric_main.calc_metric("fid8_full", **kwargs).results
    assert np.isnan(results.fid8_full) and "(1 of them)" in results.fid8_full_note
    G.mapping.forward = forward
    assert value("fid8_full", **kwargs) == good


# --- reports

def test_a_line_that_a_kill_has_cut_spoils_no_other(tmp_path, capsys):
    def report(kimg, number):
        result = dict(results={"fid8": number}, metric="fid8")
        return metric_main.report_metric(result, str(tmp_path), str(tmp_path / f"network-snapshot-{kimg:06d}.pkl"))

    lines = [report(4, 2.5)]
    path = tmp_path / "metric-fid8.jsonl"
    with open(path, "a") as stream:
        stream.write('{"results": {"fid8": 3')
    lines.append(report(12, 1.5))
    assert path.read_text().splitlines() == [lines[0], '{"results": {"fid8": 3', lines[1]]
    with open(path, "ab") as stream:
        stream.write(b"\xff\n[1]\n")
    capsys.readouterr()
    assert read_curves(str(tmp_path)) == {"fid8": {"fid8": [(4, 2.5), (12, 1.5)]}}
    said = capsys.readouterr().out
    assert "metric-fid8.jsonl" in said and "lines 2, 4, 5" in said and said.count("\n") == 1
    path.write_text(lines[0])                                   # whole, but for the end of the line
    assert read_curves(str(tmp_path)) == {"fid8": {"fid8": [(4, 2.5)]}}


def test_a_result_that_cannot_be_kept_is_on_the_screen(tmp_path, capsys):
    (tmp_path / "metric-fid8.jsonl").mkdir()                    # cannot be opened for writing, whoever asks
    line = metric_main.report_metric(dict(results={"fid8": 1.0}, metric="fid8"), str(tmp_path))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == line and "cannot be written" in said[1] and len(said) == 2


# --- progress

def test_a_progress_monitor_reports_now_and_then(capsys):
    told = []
    monitor = metric_utils.ProgressMonitor("reals", 2500, flush_interval=1000, verbose=True,
                                           progress_fn=lambda *args: told.append(args), pfn_lo=100, pfn_hi=200, pfn_total=400)
    for i in range(0, 2501, 250):
        monitor.update(i)
    assert told == [(100, 400), (140, 400), (180, 400), (200, 400)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" items")[0] for line in lines] == ["reals: 1000 of 2500", "reals: 2000 of 2500", "reals: 2500 of 2500"]
    part = monitor.sub("part", 10, rel_lo=0.5, rel_hi=0.75)
    part.update(10)
    assert told[4:] == [(150, 400), (175, 400)]
    with pytest.raises(AssertionError):
        part.update(11)



def test_progress_off_a_terminal_is_a_line_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    with cli.progress(1000, "fid: reals") as bar:
        for _ in range(10):
            now[0] += 25
            bar.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" img")[0] for line in lines] == ["fid: reals: 300 of 1000", "fid: reals: 600 of 1000", "fid: reals: 900 of 1000"]
    with cli.progress(1000, "fid: reals", shown=False) as bar:
        now[0] += 1000
        bar.update(1000)
    assert capsys.readouterr().err == ""
