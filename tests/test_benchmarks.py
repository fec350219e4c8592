"""The benchmarks at tiny sizes, as a user runs them, and what they count."""

import collections
import csv
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import options_of
from torch.nn import functional

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


def run(script, *args, env=None):
    result = subprocess.run([sys.executable, str(FOLDER / script), *args], cwd=ROOT, capture_output=True, text=True, timeout=300,
                            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def benchmarks(monkeypatch):
    """Their modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


# ---------------------------------------------------------------------------------------------------------------------
# As a user.

def table_in(output):
    lines = output[output.index("| work"):].strip().splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines), output
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_run_measures_the_cpu_and_prints_its_table_last(tmp_path):
    output = run("run.py", "--tiny", "--threads=1", "--minutes=4", f"--csv-dir={tmp_path}", "--only=generator-128,training,data,import,memory")
    table = table_in(output)
    assert len(table) in (13, 14), output                                            # the third way to save memory if there is time
    for _, target, measured in table:
        assert target and any(c.isdigit() for c in measured) and "not measured" not in measured, output       # a number, in each line
    phases = {row["phase"]: row for row in rows_of(tmp_path / "training.csv")}
    assert set(phases) == {"Gmain", "Greg", "Dmain", "Dreg", "Gmain+Dmain", "iteration"}
    for row in phases.values():
        assert math.isclose(float(row["ratio"]), float(row["phase_s"]) / float(row["convolutions_s"]), rel_tol=0.1)
        assert "bench_training.py" in row["command"] and row["torch"] == torch.__version__
    assert {row["way"] for row in rows_of(tmp_path / "memory.csv")} >= {"as it is", "reference"}
    assert [row["kind"] for row in rows_of(tmp_path / "data.csv")] == ["raw", "stored", "deflated"]


def test_the_gpus_lines_rehearsed(tmp_path):
    output = run("run.py", "--tiny", "--rehearse", "--device=cuda", "--threads=1", "--minutes=4", f"--csv-dir={tmp_path}",
                 "--only=images-raycond2-1-fp16,images-raycond3-t-1-bf16,training-512")
    ways = {(row["network"], row["way"], row["reason"]) for row in rows_of(tmp_path / "generator.csv")}
    assert ways == {(cfg, *way) for cfg in ("raycond2", "raycond3-t") for way in (("eager", ""), ("graph", "CUDA graphs need a CUDA device"))}, output
    assert {row["difference"] for row in rows_of(tmp_path / "generator.csv") if row["way"] == "eager"} == {"0.0e+00"}
    measured = " ".join(line[2] for line in table_in(output))
    assert "images/s" in measured and " s/kimg" in measured and "of the matrix rate" in measured, output


def test_loading_against_torch(tmp_path):
    run("bench_load.py", "--resolution=16", "--cbase=256", "--rounds=2", "--threads=1", f"--csv={tmp_path / 'load.csv'}")
    ours, theirs = rows_of(tmp_path / "load.csv")
    assert (ours["load"], theirs["load"], theirs["time_ratio"]) == ("legacy", "torch.load", "1.00")
    assert all(float(row["seconds"]) > 0 and int(row["peak_mb"]) >= 0 and row["repeats"] == "2" for row in (ours, theirs))


def test_ops_forward_and_backward(tmp_path):
    run("bench_ops.py", "--sizes=1x2x8", "--backward", "--rounds=1", "--threads=1", f"--csv={tmp_path / 'ops.csv'}")
    rows = rows_of(tmp_path / "ops.csv")
    assert {row["direction"] for row in rows} == {"forward", "backward"} and {row["format"] for row in rows} == {"contiguous", "channels_last"}
    assert all(float(row["ms"]) > 0 for row in rows)


def test_a_bench_that_takes_too_long_is_stopped_with_all_it_started(benchmarks, tmp_path):
    from run import NO_TIME, Job, run_job
    script = tmp_path / "slow.py"
    script.write_text("""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[-1].removeprefix("--csv="), "w") as stream:
    stream.write(f"phase,child\\nfirst,{child.pid}\\n")
time.sleep(60)
""")
    outcome = run_job(Job("slow", str(script), "", 1, "", "", ""), "cpu", 1, False, allowed_s=1, timeout_s=3)
    assert outcome.reason == NO_TIME and [row["phase"] for row in outcome.rows] == ["first"]
    deadline = time.monotonic() + 10
    while is_running(int(outcome.rows[0]["child"])):
        assert time.monotonic() < deadline, "what the bench had started lives on"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_short_benches_go_first_and_time_that_is_gone_is_said(benchmarks, monkeypatch):
    import run
    begun, clock = [], [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])

    def take_all(job, device, threads, tiny, allowed_s, timeout_s):
        begun.append(job)
        assert allowed_s <= timeout_s <= 300 - clock[0]
        clock[0] += timeout_s
        return run.Outcome([], run.NO_TIME)

    monkeypatch.setattr(run, "run_job", take_all)
    outcomes = run.run_jobs(list(run.CPU_JOBS), "cpu", 2, False, 300, None)
    assert clock[0] <= 300 and set(outcomes) == {job.name for job in run.CPU_JOBS}
    assert len(begun) > 3 and [job.name for job in begun[:2]] == ["data", "generator-128"]
    table = run.table_of(list(run.CPU_JOBS), outcomes)
    assert len(table) == len(run.CPU_JOBS) and all(row[2] == run.NO_TIME for row in table)


def test_unknown_names_are_answered(benchmarks):
    import run
    result = CliRunner().invoke(run.main, ["--only=everything"])
    assert result.exit_code == 2 and "'everything'" in result.output and "generator-512" in result.output


# ---------------------------------------------------------------------------------------------------------------------
# What is counted.

def recorded(function):
    from convolutions import Recorder
    with Recorder() as recorder:
        function()
    return recorder.counts


def test_the_three_products_of_a_convolution_are_told_apart(benchmarks):
    from convolutions import Convolution
    x, w = torch.randn(2, 3, 9, 9, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    counts = recorded(lambda: functional.conv2d(x, w, stride=2, padding=1).sum().backward())
    assert counts == {Convolution(wanted, (2, 3, 9, 9), (5, 3, 3, 3), 2, (1, 1)): 1 for wanted in "xwy"}
    # Gradients of a transposed convolution are those of the convolution that it reverses.
    z = torch.randn(2, 5, 4, 4, requires_grad=True)
    counts = recorded(lambda: functional.conv_transpose2d(z, w, stride=2).sum().backward())
    assert counts == {Convolution(wanted, (2, 3, 9, 9), (5, 3, 3, 3), 2): 1 for wanted in "xwy"}


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_are_counted_by_what_they_compute(benchmarks, stride):
    from convolutions import Convolution
    x, w = torch.randn(2, 3, 9, 9, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    y = functional.conv2d(x, w, stride=stride, padding=1).square().sum()
    slope, = torch.autograd.grad(y, x, create_graph=True)
    counts = recorded(lambda: slope.square().sum().backward())
    shape = (2, 3, 9, 9), (5, 3, 3, 3), stride, (1, 1)
    # d slope / d (w, gradient of y), then back through y = conv(x, w).
    assert counts == collections.Counter({Convolution("w", *shape): 2, Convolution("y", *shape): 1, Convolution("x", *shape): 1})


def test_filters_do_not_count_and_groups_are_samples(benchmarks):
    from convolutions import Convolution
    assert recorded(lambda: functional.conv2d(torch.randn(1, 6, 8, 8), torch.randn(6, 1, 4, 4), groups=6)) == {}
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    slope, = torch.autograd.grad(functional.conv2d(x, torch.randn(6, 1, 4, 4), groups=6).square().sum(), x, create_graph=True)
    assert recorded(lambda: slope.square().sum().backward()) == {}
    counts = recorded(lambda: functional.conv2d(torch.randn(1, 6, 8, 8), torch.randn(8, 3, 3, 3), padding=1, groups=2))
    assert counts == {Convolution("y", (2, 3, 8, 8), (4, 3, 3, 3), 1, (1, 1)): 1}


@pytest.mark.parametrize("wanted", ["x", "w", "y"])
@pytest.mark.parametrize("stride, padding, kernel", [(1, (1, 1), 3), (1, (0, 0), 1), (2, (0, 0), 3), (1, (2, 0), 3)])
def test_all_ways_compute_a_tensor_of_the_size_that_is_wanted(benchmarks, wanted, stride, padding, kernel):
    from convolutions import Convolution, Tensors, ways
    conv = Convolution(wanted, (2, 3, 9, 9), (5, 3, kernel, kernel), stride, padding)
    calls = ways(conv, Tensors(torch.device("cpu")))
    assert len(calls) >= 2
    for name, call in calls.items():
        results = [result for result in call() if result is not None] if name.startswith(("backward", "phases")) else [call()]
        # The phases write each pixel once, so that together they have as many.
        assert sum(result.numel() for result in results) == math.prod(getattr(conv, wanted)), name
    assert conv.flops == 2 * math.prod(conv.y) * 3 * kernel ** 2


def test_a_generators_convolutions_are_those_that_it_runs(benchmarks):
    from bench_generator import build, convolutions_of, inputs_of
    cpu = torch.device("cpu")
    for cfg in ("raycond2", "raycond3-t"):
        G = build(cfg, 16, 256, "pinhole", cpu, cmax=16)
        ws, c = inputs_of(G, 2, cpu)
        counts = recorded(lambda G=G, ws=ws, c=c: G.synthesis(ws, c, noise_mode="const"))
        expected = collections.Counter(conv if conv.w[0] > 3 else conv._replace(x=(2, conv.x[1], 1, conv.x[2] * conv.x[3]))
                                       for conv in convolutions_of(G, 2, cpu))              # ToRGB's products have no rows and columns
        # The network may lay its kernels down by one transposed convolution or by four small ones.
        by_parts = expected - counts
        assert all(conv.wanted == "x" and conv.stride == 2 for conv in by_parts), cfg
        parts = counts - expected
        for conv, count in by_parts.items():
            mine = {part.w[2:]: n for part, n in parts.items() if part.x == conv.y and part.w[:2] == (conv.w[1], conv.w[0])}
            assert mine == {(a, b): count for a in (1, 2) for b in (1, 2)}, (cfg, conv)
        assert sum(parts.values()) == 4 * sum(by_parts.values()), cfg


def test_every_run_of_the_obedience_matrix_can_be_trained(benchmarks, camera_zip, tmp_path, monkeypatch):
    """Its options are train.py's, its fields the preset's, and no two rows are the same training."""
    import obedience

    import train
    from training import presets
    prints = {}
    for name, row in obedience.RUNS.items():
        assert "," not in name, "--only splits at commas"
        cfg = row.options.split()[0].removeprefix("--cfg=")
        options = [f"--outdir={tmp_path}", f"--data={camera_zip}", "-n", *obedience.COMMON.split(), *row.options.split()]
        with monkeypatch.context() as patch:
            patch.setitem(presets.PRESETS, cfg, replace(presets.PRESETS[cfg], **row.fields))
            result = CliRunner().invoke(train.main, options)
        assert result.exit_code == 0, (name, result.output)
        prints[options_of(result.output)["fingerprint"]] = name
    assert len(prints) == len(obedience.RUNS), prints
