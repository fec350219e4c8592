"""Runs that stop and go on: exactly, from whatever stopped them, and without losing a file."""

import functools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import SMALL, camera_labels, write_dataset
from helpers import assert_refused, run_train

import train
from dnnlib import EasyDict
from metrics.results import read_curves
from torch_utils import signals
from training.run import resume
from training.run import state as training_state
from training.run.config import fingerprint
from training.run.status import Status, read_stats

ROOT = Path(__file__).parent.parent
ADA = ["--aug=ada", "--p=0.3", "--mirror=1", "--tick=0.016", "--snap=1"]
PRESETS = {"raycond2": ["--cfg=raycond2"], "raycond3-t": ["--cfg=raycond3-t", "--mbstd-group=2"]}


def arguments(outdir, data, *args):
    return [f"--outdir={outdir}", f"--data={data}", *ADA, *SMALL, *map(str, args)]


def command(outdir, data, *args):
    return [sys.executable, str(ROOT / "train.py"), *arguments(outdir, data, *args)]


def finish(outdir, data, *args):
    """The command as a process of its own, which must succeed. Returns its output."""
    done = subprocess.run(command(outdir, data, *args), capture_output=True, text=True, timeout=300, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


refused = functools.partial(assert_refused, train.main)


def only_run(outdir):
    folder, = Path(outdir).iterdir()
    return folder


def last_state(folder):
    return training_state.load(training_state.states_of(str(folder))[0])


def leaves(value, name=""):
    """All values of nested containers by name."""
    if isinstance(value, dict):
        return {key: leaf for k, item in value.items() for key, leaf in leaves(item, f"{name}/{k}").items()}
    if isinstance(value, (list, tuple)):
        return leaves(dict(enumerate(value)), name)
    return {name: value}


def assert_same_training(folder, expected):
    """Networks, optimisers, ADA, counters and random numbers agree to the last bit. Statistics do to rounding, since their sums are cut elsewhere."""
    ours, theirs = (leaves({key: value for key, value in last_state(f).items() if key != "config"}) for f in (folder, expected))
    assert ours.keys() == theirs.keys()
    compared = 0
    for name, value in ours.items():
        if "seconds" in name or "Timing" in name or "Resources" in name:
            continue
        if name.startswith(("/status/reported", "/status/collector")):
            torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=0)
        else:
            assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name
        compared += 1
    assert compared > 100
    a, b = ([{key: value for key, value in record.items() if key.startswith(("Loss/", "Progress/"))} for record in read_stats(str(f))]
            for f in (folder, expected))
    assert len(a) == len(b) > 1
    for ours, theirs in zip(a, b):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value["num"] == theirs[name]["num"] and value["mean"] == pytest.approx(theirs[name]["mean"], rel=1e-9, abs=1e-12), name


# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset, gpus", [("raycond2", 1), *(pytest.param(preset, gpus, marks=pytest.mark.slow)
                                                             for preset, gpus in [("raycond2", 2), ("raycond3-t", 1), ("raycond3-t", 2)])])
def test_half_and_half_is_the_whole(preset, gpus, camera_zip, tmp_path):
    """Eight steps equal six and two in a new process, with another number of loader workers; the cut lies within a tick and an interval of ADA."""
    options = [*PRESETS[preset], f"--gpus={gpus}"]
    finish(tmp_path / "whole", camera_zip, *options, "--kimg=0.064")
    finish(tmp_path / "parts", camera_zip, *options, "--kimg=0.048")
    output = finish(tmp_path / "parts", camera_zip, *options, "--kimg=0.064", "--workers=2")
    assert "Continues the run" in output and "0.048 kimg and 6 steps are done" in output
    parts = only_run(tmp_path / "parts")
    state = last_state(parts)
    assert state["step"] == 8 and state["status"]["cur_nimg"] == 64 and float(state["augmentation"]["p"]) not in (0, 0.3)
    assert_same_training(parts, only_run(tmp_path / "whole"))


def wait_for(process, path, timeout=120):
    deadline = time.time() + timeout
    while not list(path.glob("*/training-state-*.pt")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("number, code, gpus", [
    (signal.SIGTERM, 75, 1),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGUSR1, 75, 2),
                                                              (signal.SIGHUP, 75, 1), (signal.SIGHUP, 75, 2)])])
def test_signals_save_and_leave(number, code, gpus, camera_zip, tmp_path):
    options = ["--cfg=raycond2", f"--gpus={gpus}", "--kimg=0.24", "--workers=1", "--snap=5"]
    process = subprocess.Popen(command(tmp_path / "runs", camera_zip, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=dict(os.environ, OMP_NUM_THREADS="1"), preexec_fn=functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL))
    wait_for(process, tmp_path / "runs")
    process.send_signal(number)
    start = time.time()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code and time.time() - start < 25, output
    assert f"{number.name}: the state was saved" in output
    folder = only_run(tmp_path / "runs")
    stopped = last_state(folder)
    assert 0 < stopped["step"] < 30
    output = finish(tmp_path / "runs", camera_zip, *options)
    assert f"{stopped['step']} steps are done" in output
    finish(tmp_path / "whole", camera_zip, *options)
    assert_same_training(folder, only_run(tmp_path / "whole"))
    assert list(tmp_path.joinpath("runs").iterdir()) == [folder] and not list(folder.glob("*.part"))


def test_a_request_while_nothing_is_unsaved_leaves_at_once():
    handler = signal.getsignal(signal.SIGTERM)
    with signals.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.number == signal.SIGUSR1                    # in the middle of a step: it is finished first
        with pytest.raises(signals.Interrupted), stop.may_leave():
            pytest.fail("it was asked to stop before")
    with signals.StopRequest() as stop, pytest.raises(signals.Interrupted), stop.may_leave():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    with signals.StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)                     # the same Ctrl-C, by another way
        assert stop.number == signal.SIGINT
        time.sleep(signals.SAME_PRESS_S + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requests_and_kills_of_two_processes(camera_zip, tmp_path):
    """At any moment, while the processes start too: they all end soon, without a traceback, and the end is that of an untouched run."""
    options = ["--cfg=raycond2", "--gpus=2", "--kimg=0.4", "--workers=1", "--snap=3"]
    finish(tmp_path / "whole", camera_zip, *options)
    rng, environment, codes = random.Random(0), dict(os.environ, OMP_NUM_THREADS="1"), []
    for i in range(12):
        process = subprocess.Popen(command(tmp_path / "runs", camera_zip, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env=environment)
        time.sleep(i + rng.uniform(0, 1))
        process.send_signal([signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGUSR1][i % 4])
        start = time.time()
        output, _ = process.communicate(timeout=60)             # its children hold the pipe, so they have ended too
        assert time.time() - start < 25, (i, output)
        codes.append(process.returncode)
        assert "Traceback" not in output or "run_process" not in output, (i, output)
        assert codes[-1] != 1 or "Aborted" in output, output
    assert 75 in codes, codes
    finish(tmp_path / "runs", camera_zip, *options)
    with_states = [folder for folder in (tmp_path / "runs").iterdir() if training_state.states_of(str(folder))]
    assert len(with_states) == 1
    assert_same_training(with_states[0], only_run(tmp_path / "whole"))


SLOW_WRITER = """
import sys, time
import dnnlib.util
import torch_utils.persistence, training.run.state
whole = dnnlib.util.open_whole
class Slow:
    def __init__(self, stream): self.stream = stream
    def write(self, data):
        time.sleep(0.0003)
        return self.stream.write(data)
    def __getattr__(self, name): return getattr(self.stream, name)
import contextlib
@contextlib.contextmanager
def slow(path, text=False):
    with whole(path, text) as stream:
        yield Slow(stream)
torch_utils.persistence.open_whole = training.run.state.open_whole = slow
import training.run.snapshots, training.run.status
training.run.snapshots.ImageSnapshots.save_fakes = lambda *args: None       # pictures are not what is tested here, and take long
training.run.status._tensorboard_writer = lambda *args: None
training.run.status.save_curves = lambda *args: None
import train
train.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_thirty_kills(camera_zip, tmp_path):
    """`kill -9` at random moments, writing included; each restart goes on from a whole state; the end is that of an untouched run."""
    options = ["--cfg=raycond2", "--kimg=0.96", "--workers=1", "--tick=0.016"]
    finish(tmp_path / "whole", camera_zip, *options)
    outdir = tmp_path / "runs"
    line = [sys.executable, "-c", SLOW_WRITER, *arguments(outdir, camera_zip, *options)]
    rng, steps, kills, parts_seen = random.Random(0), 0, 0, 0
    while kills < 30:
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
        wait_for(process, outdir) if steps == 0 else None
        before = steps
        deadline = time.time() + 60
        while steps == before and time.time() < deadline and process.poll() is None:        # until it has got further
            time.sleep(0.05)
            steps = max(steps, newest_step(outdir))
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "it ended before thirty kills: " + process.communicate()[0]
        process.kill()
        process.communicate()
        kills += 1
        folder = only_run(outdir)
        parts_seen += bool(list(folder.glob("*.part")))
        for path in training_state.states_of(str(folder)):
            training_state.load(path)                   # whole
        assert newest_step(outdir) >= steps             # nothing is lost but the steps since
        steps = newest_step(outdir)
    assert parts_seen > 0, "no kill hit the writer"
    finish(outdir, camera_zip, *options)
    assert_same_training(only_run(outdir), only_run(tmp_path / "whole"))
    assert not list(only_run(outdir).glob("*.part"))


def newest_step(outdir):
    states = training_state.states_of(str(only_run(outdir)))
    return training_state.load(states[0], mmap=True)["step"] if states else 0


# ---------------------------------------------------------------------------------------------------------------------

def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_fills(camera_zip, tmp_path):
    """Files that cannot grow any more: one line, and what was there before is whole."""
    finish(tmp_path / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.016")
    folder = only_run(tmp_path / "runs")
    before = {path.name: path.read_bytes() for path in folder.glob("*-0*")}
    done = subprocess.run(command(tmp_path / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.032"), capture_output=True, text=True, timeout=120,
                          preexec_fn=limit_files)
    assert done.returncode == 1 and "make room" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("*-0*")} == before and last_state(folder)["step"] == 2
    assert "2 steps are done" in finish(tmp_path / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.032")


@pytest.mark.slow
def test_a_full_tmpfs(camera_zip, tmp_path):
    """The same on a file system without room."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mount)]).returncode != 0:
        pytest.skip("needs to mount a tmpfs")
    try:
        finish(mount / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.008")
        folder = only_run(mount / "runs")
        left = shutil.disk_usage(mount).free
        (mount / "ballast").write_bytes(bytes(left - 200_000))
        done = subprocess.run(command(mount / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.032"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert last_state(folder)["step"] == 1
        (mount / "ballast").unlink()
        finish(mount / "runs", camera_zip, "--cfg=raycond2", "--kimg=0.016")
    finally:
        subprocess.run(["umount", "-l", str(mount)])


# ---------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def begun(tmp_path_factory, camera_zip):
    """The run folder of two steps."""
    outdir = tmp_path_factory.mktemp("begun")
    code, output = run_train(*arguments(outdir, camera_zip, "--cfg=raycond2", "--kimg=0.016"))
    assert code == 0, output
    return only_run(outdir)


@pytest.fixture
def copied(begun, tmp_path):
    """A copy of that run, in an --outdir of its own."""
    return Path(shutil.copytree(begun, tmp_path / "runs" / begun.name))


def test_the_same_command_again(copied, camera_zip):
    outdir, same = copied.parent, arguments(copied.parent, camera_zip, "--cfg=raycond2")
    code, output = run_train(*same, "--kimg=0.016")
    assert code == 0 and "has trained for its 0.016 kimg" in output and "--new" in output
    assert [path.name for path in outdir.iterdir()] == [copied.name]
    code, output = run_train(*same, "--kimg=0.016", "--seed=1")                # another configuration
    assert code == 0 and "Continu" not in output and len(list(outdir.iterdir())) == 2
    code, output = run_train(*same, "--kimg=0.008", "--new")
    assert code == 0 and "Continu" not in output and len(list(outdir.iterdir())) == 3


def test_a_run_of_the_time_when_noaug_was_the_default(camera_zip, tmp_path):
    """The same command continues it, again and again; a run with --aug=noaug in its command is another one, and --aug=ada starts one."""
    same = [f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "--tick=0.008", "--snap=1", *SMALL]
    assert run_train(*same, "--aug=noaug", "--kimg=0.008")[0] == 0
    folder = only_run(tmp_path)
    code, output = run_train(*same, "--kimg=0.016", "-n")
    assert code == 0 and "Continues" not in output and "augment_kwargs" in output and f"--resume={folder}" in output
    path = folder / "training_options.json"
    options = json.loads(path.read_text())
    assert options.pop("aug") == "noaug"
    path.write_text(json.dumps(options))                        # as they were then
    for kimg, steps in (("0.016", 1), ("0.024", 2)):
        code, output = run_train(*same, f"--kimg={kimg}")
        assert code == 0 and f"{steps} steps are done" in output and "goes on without augmentation; --aug=ada starts another run" in output, output
    options = json.loads(path.read_text())
    assert only_run(tmp_path) == folder and options["augment_kwargs"] is None and options["aug"] is None
    for args, begins in [(["--aug=noaug"], False), (["--aug=ada"], True), (["--new"], True), (["--augpipe=color"], True)]:
        code, output = run_train(*same, "--kimg=0.032", "-n", *args)
        assert code == 0 and ("Continues the run" not in output) == begins, (args, output)


def test_data_elsewhere(copied, camera_zip, tmp_path):
    """Clusters copy the data to another place for each job."""
    elsewhere = tmp_path / "scratch" / Path(camera_zip).name
    elsewhere.parent.mkdir()
    shutil.copy(camera_zip, elsewhere)
    code, output = run_train(*arguments(copied.parent, elsewhere, "--cfg=raycond2", "--kimg=0.024"))
    assert code == 0 and "Changed: Data" in output and str(elsewhere) in output and last_state(copied)["step"] == 3
    assert json.loads((copied / "training_options.json").read_text())["training_set_kwargs"]["path"] == str(elsewhere)


def test_a_change_of_processes(copied, camera_zip):
    output = finish(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024", "--gpus=2")
    assert "Changed: processes 1 -> 2" in output and last_state(copied)["step"] == 3 and len(last_state(copied)["random"]) == 2


def test_damaged_states_are_passed_over(copied, camera_zip):
    good = training_state.states_of(str(copied))[0]
    whole = Path(good).read_bytes()
    (copied / "training-state-000007.pt").write_bytes(whole[: len(whole) // 2])
    code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024"))
    assert code == 0 and "training-state-000007.pt" in output and "damaged" in output and "2 steps are done" in output
    for path in training_state.states_of(str(copied)):
        Path(path).write_bytes(whole[:1000])
    refused(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.032"), says=["none of its states", "--new"])


def test_a_damaged_state_does_not_count_as_the_newest(copied, camera_zip):
    """Else --keep=1 would remove the good one."""
    whole = Path(training_state.states_of(str(copied))[0]).read_bytes()
    middle = len(whole) // 2
    (copied / "training-state-000007.pt").write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096:])      # its length is right
    for kimg, done in (("0.024", 2), ("0.032", 3)):
        code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", f"--kimg={kimg}", "--keep=1"))
        assert code == 0 and f"{done} steps are done" in output, output
    assert sorted(path.name for path in copied.glob("training-state*")) == ["training-state-000000_032.pt", "training-state-000007.pt.damaged"]


def at_tick(monkeypatch, tick, action):
    """Calls `action` before the line of that tick is printed."""
    printed = Status.print_tick

    def print_tick(self, augment_p):
        if self.counters.tick == tick:
            action()
        printed(self, augment_p)

    monkeypatch.setattr(Status, "print_tick", print_tick)


@pytest.fixture
def hang_up():
    """Sends SIGHUP to this process, as if it had been started without nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield functools.partial(os.kill, os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_hangs_up_saves_and_leaves(camera_zip, tmp_path, monkeypatch, hang_up):
    at_tick(monkeypatch, 2, hang_up)
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=0.08"), "--snap=50")
    assert code == 75 and "SIGHUP: the state was saved" in output
    assert last_state(only_run(tmp_path))["status"]["tick"] == 3
    assert "SIGHUP: the state was saved" in (only_run(tmp_path) / "log.txt").read_text()


def test_nohup_keeps_a_run_alive(camera_zip, tmp_path, monkeypatch, hang_up):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_tick(monkeypatch, 1, hang_up)
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=0.032"), "--snap=50")
    assert code == 0 and "SIGHUP" not in output and last_state(only_run(tmp_path))["status"]["cur_nimg"] == 32
    with signals.handled({signal.SIGHUP: signals.interrupt}):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_before_the_first_step_leaves_in_a_line(number, camera_zip, tmp_path, monkeypatch, hang_up):
    """While a process starts, nothing is there to be saved."""
    monkeypatch.setattr(train, "run_process", lambda *args: os.kill(os.getpid(), number) or time.sleep(5))
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=0.08"))
    assert code == 128 + number and f"{number.name}: stopped while nothing was under way" in output


def test_a_reader_that_leaves_at_a_tick_with_a_snapshot(camera_zip, tmp_path, monkeypatch):
    """The tick is finished, as other processes may be at it, and so is the step that follows."""
    at_tick(monkeypatch, 1, lambda: signals.StopRequest.ask(signals.BROKEN_PIPE))
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=0.08"))
    folder = only_run(tmp_path)
    assert code == 75 and "The reader of the output has gone: the state was saved" in output
    assert last_state(folder)["status"]["cur_nimg"] == 32 and (folder / "network-snapshot-000000_024.pkl").exists()


@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_reader_that_leaves_ends_the_run_with_its_state_saved(gpus, camera_zip, tmp_path):
    """`train.py ... | head -3`: one line on stderr, and the rest in log.txt."""
    process = subprocess.Popen(command(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=4", f"--gpus={gpus}"), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 75
    folder = only_run(tmp_path)
    expected = f"The reader of the output has gone: the state was saved in {folder}. The same command continues.\n"
    assert errors == expected and last_state(folder)["step"] > 0
    log = (folder / "log.txt").read_text()
    assert log.endswith(expected) and "4 kimg to go." in log


def test_a_request_at_a_tick_without_a_snapshot(camera_zip, tmp_path, monkeypatch):
    """What is not saved is not left behind."""
    at_tick(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=0.08"), "--snap=50")
    assert code == 75 and "SIGTERM: the state was saved" in output
    state = last_state(only_run(tmp_path))
    assert state["status"]["tick"] == 3 and state["step"] == 6


def test_a_folder_whose_name_is_no_utf8(copied):
    folder = Path(os.fsdecode(os.fsencode(copied.parent) + b"/r\xfcns"))
    copied.rename(folder)
    path, notes = training_state.newest(str(folder))
    assert notes == [] and training_state.load(path, mmap=True)["step"] == 2


def test_a_byte_order_mark_does_no_harm(tmp_path):
    """Options and statistics that somebody has opened in an editor on Windows."""
    folder = tmp_path / "00000-run"
    folder.mkdir()
    files = {"training_options.json": dict(fingerprint="x"), "stats.jsonl": {"Progress/tick": dict(mean=1)},
             "metric-fid8.jsonl": dict(results=dict(fid8=2.0), snapshot_pkl="network-snapshot-000004.pkl")}
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document) + "\n", encoding="utf-8-sig")
    assert resume.find_run(str(tmp_path), EasyDict(fingerprint="x", total_kimg=1)).run_dir == str(folder)
    assert read_stats(str(folder)) == [files["stats.jsonl"]]
    assert read_curves(str(folder)) == {"fid8": {"fid8": [(4, 2.0)]}}


def test_a_broken_line_of_statistics_costs_no_run(copied, camera_zip):
    with open(copied / "stats.jsonl", "ab") as stream:
        stream.write(bytes(100) + b"\n[1]\n{\n")
    assert run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024"))[0] == 0


def test_a_state_names_no_functions(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)
    torch.save(dict(format=1, step=Evil()), tmp_path / "training-state-000001.pt")
    with pytest.raises(training_state.UserError, match="training-state-000001.pt"):
        training_state.load(str(tmp_path / "training-state-000001.pt"))
    assert not (tmp_path / "ran").exists()


def _with(path, **changes):
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


@pytest.mark.parametrize("changes, says", [
    (dict(step="2"), "'step'"), (dict(networks=None), "'networks'"), (dict(networks=dict(G=1)), "'networks'"), (dict(status=None), "'status'"),
    (dict(status={}), "'status'"), (dict(config="{"), "'config'"), (dict(config="[" * 10000), "'config'"), (dict(config="3"), "'config'"),
    (dict(format=2), "format 2"), (dict(format=torch.zeros(2)), "no training state"), (dict(format="1\n" * 1000), "no training state"),
    (dict(random=3), "'random'"),
])
def test_states_of_another_kind(copied, changes, says):
    path = training_state.states_of(str(copied))[0]
    _with(path, **changes)
    with pytest.raises(training_state.UserError, match=says):
        training_state.load(path)


@pytest.mark.parametrize("changes", [
    dict(random=[{}]), dict(random=[dict(torch=torch.zeros(3, dtype=torch.uint8), cuda=None, numpy=(), python=())]), dict(optimizers={}),
    dict(optimizers=dict(G={}, D={})), dict(networks={}), dict(augmentation={}), dict(pl_mean=torch.zeros(3)), dict(status=dict(cur_nimg=16)),
])
def test_states_that_do_not_fit(copied, camera_zip, changes):
    _with(training_state.states_of(str(copied))[0], **changes)
    refused(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024"), says=["training-state-000000_016.pt", "does not fit"])


def _bytes_out_of_nothing():
    class Huge:
        def __reduce__(self):
            return bytearray, (0x70000000,)
    return Huge()


def _packed(path):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(2 ** 28) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("spoil, says", [
    (lambda path: _with(path, status=_bytes_out_of_nothing()), "bytearray"), (_packed, "compressed"),
    (lambda path: Path(path).write_bytes(pickle.dumps(dict(format=1))), "no training state"),
])
def test_states_that_would_allocate(copied, spoil, says):
    path = training_state.states_of(str(copied))[0]
    spoil(path)
    tracemalloc.start()
    with pytest.raises(training_state.UserError, match=says):
        training_state.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_a_changed_option_is_said(copied, camera_zip):
    """It begins a new run, which people may not have meant."""
    code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024", "--batch=16", "-n"))
    assert code == 0 and f"--resume={copied}" in output and "batch_size 8 -> 16" in output
    code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024", "-n"))
    assert code == 0 and "Continues the run" in output and "new run" not in output


@pytest.mark.parametrize("options", [["--cfg=stylegan2"], ["--cmax=8"], ["--rays=published"], ["--kimg=0.016"], ["--dcond=pose"], ["other data"]])
def test_a_run_that_could_not_go_on_is_not_suggested(options, copied, camera_zip, tmp_path):
    data = camera_zip
    if options == ["other data"]:
        data, options = tmp_path / "other.zip", []
        shutil.copy(camera_zip, data)
    code, output = run_train(*arguments(copied.parent, data, "--cfg=raycond2", "--kimg=0.024", "--seed=3", "-n", *options))
    assert code == 0 and "--resume" not in output and "new run" not in output, output


def test_an_older_run_that_fits_is_suggested(copied, camera_zip):
    """Where the newest one does not."""
    newer = shutil.copytree(copied, copied.parent / "00001-broken")
    for path in newer.glob("training-state*"):
        path.write_bytes(b"")
    code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024", "--batch=16", "-n"))
    assert code == 0 and f"--resume={copied}." in output


@pytest.mark.parametrize("options", [b"", b"[]", b'{"training_set_kwargs": 5}', b'{"training_set_kwargs": {"path": 5}}', b'{"G_kwargs": []}'])
def test_damaged_options_of_another_run_end_no_new_one(options, copied, camera_zip):
    (copied / "training_options.json").write_bytes(options)
    code, output = run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024", "--batch=16", "-n"))
    assert code == 0 and "--resume" not in output


def test_a_run_from_before_classes_moved_goes_on(copied, camera_zip):
    """Its files name D by its old name."""
    def as_before(text):
        assert "training.networks.discriminator.Discriminator" in text
        return text.replace("training.networks.discriminator.Discriminator", "training.discriminator.Discriminator")

    state = training_state.states_of(str(copied))[0]
    options = copied / "training_options.json"
    options.write_text(as_before(options.read_text()))
    _with(state, config=as_before(training_state.load(state)["config"]))
    same = arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024")
    code, output = run_train(*same, "-n", "--batch=16")
    assert code == 0 and f"--resume={copied}" in output and "batch_size 8 -> 16" in output and "class_name" not in output[output.index("note "):]
    code, output = run_train(*same, "-n", f"--resume={copied}", "--batch=16")
    assert code == 0 and "Changed since then: batch_size 8 -> 16" in output and "class_name" not in output[output.index("note "):]
    code, output = run_train(*same)
    assert code == 0 and "Continues the run" in output and "2 steps are done" in output
    assert "training.networks.discriminator.Discriminator" in options.read_text()


def test_fingerprints_have_not_changed_with_the_names_of_classes(copied):
    config = json.loads((copied / "training_options.json").read_text())
    old = dict(config, D_kwargs=dict(config["D_kwargs"], class_name="training.discriminator.Discriminator"))
    assert fingerprint(config, "cameras") == fingerprint(old, "cameras") != fingerprint(dict(old, random_seed=1), "cameras")


def test_a_state_wins_over_the_network_it_started_from(begun, camera_zip, tmp_path):
    network = tmp_path / "start.pkl"
    shutil.copy(begun / "network-snapshot-000000.pkl", network)
    same = arguments(tmp_path / "runs", camera_zip, "--cfg=raycond2", f"--resume={network}")
    code, output = run_train(*same, "--kimg=0.008")
    assert code == 0 and f"Starting from {network}" in output
    network.unlink()
    code, output = run_train(*same, "--kimg=0.016")
    assert code == 0 and "1 steps are done" in output and "Starting from" not in output


def test_another_run_from_a_state(begun, camera_zip, tmp_path):
    """Batch, rates and data may change, and are said; what a state cannot give is refused."""
    code, output = run_train(*arguments(tmp_path / "runs", camera_zip, "--cfg=raycond2", f"--resume={begun}", "--batch=16", "--glr=0.001", "--kimg=0.032"))
    assert code == 0 and "batch_size 8 -> 16" in output and "G_opt_kwargs.lr 0.002 -> 0.001" in output, output
    folder = only_run(tmp_path / "runs")
    state = last_state(folder)
    assert state["status"]["cur_nimg"] == 32 and state["step"] == 3
    assert state["optimizers"]["G"]["param_groups"][0]["lr"] == pytest.approx(0.001 * 4 / 5)
    base = arguments(tmp_path / "none", camera_zip, "--cfg=raycond2", f"--resume={training_state.states_of(str(begun))[0]}", "--kimg=0.032")
    for dry_run in (["-n"], []):
        refused(*base, *dry_run, "--cmax=8", says=["--resume=", "another structure", "network-snapshot"])
    refused(*base, "--rays=published", says=["--rays=pinhole", "--rays=published"])
    large = write_dataset(tmp_path / "large.zip", camera_labels(16), size=32)
    refused(*base, f"--data={large}", says=["img_resolution", "16", "32"])
    refused(*base, f"--resume={tmp_path / 'absent.pt'}", says=["absent.pt", "No such file"])
    refused(*base, f"--resume={tmp_path}", says=["no training-state"])
    assert not (tmp_path / "none").exists()


def test_one_process_at_a_time(copied, camera_zip, monkeypatch):
    monkeypatch.setattr("training.run.folder.LOCK_PATIENCE_S", 0.2)
    hold = ("import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); f.write('process 1 on moon'); f.flush(); "
            "print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", hold, str(copied / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refused(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024"), says=[str(copied), "process 1 on moon", "--new"])
    finally:
        holder.kill()
    assert run_train(*arguments(copied.parent, camera_zip, "--cfg=raycond2", "--kimg=0.024"))[0] == 0


def test_keep(camera_zip, tmp_path):
    code, output = run_train(*arguments(tmp_path, camera_zip, "--cfg=raycond2", "--kimg=3.5", "--batch=500", "--keep=2", "--tick=0.5", "-n"))
    assert code == 0
    folder = tmp_path / "run"
    folder.mkdir()
    for kimg in range(6):
        (folder / f"training-state-{kimg:06d}.pt").write_bytes(b"")
        (folder / f"network-snapshot-{kimg:06d}.pkl").write_bytes(b"")
    for number in ("000003_500", "000005_016", "000005_250"):
        (folder / f"network-snapshot-{number}.pkl").write_bytes(b"")
    (folder / "network-snapshot-best.pkl").write_bytes(b"")
    training_state.prune(str(folder), None)
    assert len(list(folder.glob("network*"))) == 10 and len(list(folder.glob("*.pt"))) == 2
    training_state.prune(str(folder), 1)
    assert sorted(path.name for path in folder.iterdir()) == ["network-snapshot-000005_250.pkl", "network-snapshot-best.pkl", "training-state-000005.pt"]
