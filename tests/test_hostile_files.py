"""Files that want to do harm: none runs, none takes memory or time, each ends in one line that names the file.

The files are in hostile_files.py.
"""

import collections
import contextlib
import gc
import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import hostile_files
import pytest
import torch
from click.testing import CliRunner
from helpers import DATA
from PIL import Image

import calc_metrics
import gen_images
import legacy
from dnnlib import UserError
from network_files import known_names, restricted_pickle, safetensors_format
from torch_utils import persistence
from training import networks_stylegan2
from training.dataset import open_stored
from training.run import state as training_state

ROOT = Path(__file__).parents[1]
CANARY = Path("/tmp") / f"hostile-canary-{os.getpid()}"
FILES = hostile_files.all_files(CANARY)
NAMES_OF_PLAIN_VALUES = {name: known_names.ALLOWED[name]
                         for name in ("_codecs.encode", "__builtin__.set", "builtins.set")}
NAMES_OF_PLAIN_VALUES["__builtin__.bytes"] = restricted_pickle.Allowed("__builtin__.bytes", bytes)
LOADER = """
import gc, json, resource, sys, time
from pathlib import Path
import torch
import legacy
from training import networks_stylegan2
from dnnlib import UserError
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1024
before, folder = peak(), Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for path in sorted(folder.iterdir(), key=lambda path: int(path.stem)):
    begin = time.perf_counter()
    try:
        legacy.load_network_pkl(path)
        outcome, message = 'loaded', ''
    except UserError as error:
        outcome, message = 'refused', error.format_message()
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)
    seconds = time.perf_counter() - begin
    result = dict(file=path.stem, outcome=outcome, message=message, seconds=seconds, mb=peak() - before)
    print(json.dumps(result), flush=True)
gc.collect()
networks = [type(obj).__name__ for obj in gc.get_objects() if isinstance(obj, torch.nn.Module)]
assert not networks, networks
"""


def load_in_a_process(files, folder, timeout=300):
    """name -> what became of that file, with 8 GB of addresses; `mb` is the peak so far above what the imports took. No
    network may be left.
    """
    folder.mkdir()
    for number, data in enumerate(files.values()):
        (folder / f"{number}.pkl").write_bytes(data)
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, "-c", LOADER, str(folder)], env=env, capture_output=True, text=True,
                          timeout=timeout)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(results) == len(files), (done.returncode, list(files)[len(results)],
                                                                 done.stderr[-2000:])
    return dict(zip(files, results))


def test_canary_works(tmp_path):
    """What the files ask for would leave a trace."""
    data = hostile_files.program(hostile_files.evil(tmp_path / "canary"))
    pickle.loads(data)
    assert (tmp_path / "canary").exists()


def test_there_are_enough():
    groups = (hostile_files.EXECUTION, hostile_files.STATE, hostile_files.BOUNDS, hostile_files.CONTENT,
              hostile_files.TENSORFLOW,
              hostile_files.ARGUMENTS)
    named = len(hostile_files.SYSTEM) + 6 + len(hostile_files.DOTTED)
    assert len(FILES) == named + sum(map(len, groups[:-1])) and sum(map(len, groups)) > 100


@pytest.mark.parametrize("kind", FILES)
def test_refused_in_one_line(kind, tmp_path):
    data, message = FILES[kind]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        legacy.load_network_pkl(path)
    line = error.value.format_message()
    assert "\n" not in line and len(line) < 1000 and line.startswith(f"{path}: ")
    assert "MemoryError" not in line and "RecursionError" not in line
    assert not CANARY.exists()


def test_none_takes_memory_or_time_or_leaves_a_network(tmp_path):
    results = load_in_a_process({kind: data for kind, (data, _) in FILES.items()}, tmp_path / "files")
    assert {kind: result for kind, result in results.items() if result["outcome"] != "refused"} == {}
    assert {kind: result["seconds"] for kind, result in results.items() if result["seconds"] > 8} == {}
    assert {kind: result["mb"] for kind, result in results.items() if result["mb"] > 700} == {}
    assert not CANARY.exists()


def test_init_arguments_cannot_allocate(tmp_path):
    files = {kind: hostile_files.network(hostile_files.meta(kwargs)) for kind,
             kwargs in hostile_files.ARGUMENTS.items()}
    files |= {f"released, {kind}": hostile_files.released_network(kwargs) for kind,
              kwargs in hostile_files.ARGUMENTS.items()}
    results = load_in_a_process(files, tmp_path / "files", timeout=100)
    assert {kind: result for kind, result in results.items() if result["outcome"] != "refused"
            or "MemoryError" in result["message"]} == {}
    assert {kind: result["seconds"] for kind, result in results.items() if result["seconds"] > 5} == {}
    assert max(result["mb"] for result in results.values()) < 500


# ---------------------------------------------------------------------------------------------------------------------
# Plain pickle.load on files of our own format, whose only functions are ours. It imports what the file names.

@pytest.mark.parametrize("kind",
                         ["source with side effects", "source and our class name", "source and their class name",
                          "class name in a meta",
                                  "module name in a meta", "function in a meta", "antigravity in a meta",
                          "train.py in a meta"])
def test_plain_pickle_runs_no_source(kind):
    data = FILES[kind][0]
    with pytest.raises(UserError):
        pickle.loads(data)
    assert not CANARY.exists() and "antigravity" not in sys.modules


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors: eight bytes of length, a JSON header, the tensors.

HEADERS = {
    "length of 2^62":       struct.pack("<Q", 1 << 62) + b"{}",
    "length of 100 MB":     struct.pack("<Q", 100 << 20) + b"{}",
    "length of 2^64 - 1":   b"\xff" * 8 + b"{}",
    "no JSON":              struct.pack("<Q", 4) + b"{{{{",
    "nested JSON":          struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no tensors":           struct.pack("<Q", 2) + b"{}",
    "tensor beyond":        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999]}}  ',
    "only a length":        struct.pack("<Q", 2),
    "nothing":              b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_safetensors(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[kind])
    with pytest.raises(UserError) as error:
        legacy.load_network_pkl(path)
    line = error.value.format_message()
    assert "\n" not in line and len(line) < 1000 and str(path) in line and "MemoryError" not in line


# ---------------------------------------------------------------------------------------------------------------------
# Commands.

@pytest.mark.parametrize("kind",
                         ["name os.system", "memo number", "nested tuples", "tensor of another shape",
                          "evil in storage"])
@pytest.mark.parametrize("command", ["gen_images", "calc_metrics", "legacy"])
def test_commands_say_it_in_one_line(command, kind, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(FILES[kind][0])
    main, args = {
        "gen_images":   (gen_images.main,
                         [f"--network={path}", "--seeds=0", f"--outdir={tmp_path / 'out'}", "--device=cpu"]),
        "calc_metrics": (calc_metrics.main, [f"--network={path}", "--metrics=fid50k_full", "--device=cpu"]),
        "legacy":       (legacy.main, [f"--source={path}", f"--dest={tmp_path / 'converted.pkl'}"]),
    }[command]
    result = CliRunner().invoke(main, args)
    lines = [line for line in result.output.splitlines() if line.strip() and line != f"Loading {path} ..."]
    assert result.exit_code == 1 and len(lines) == 1 and lines[0].startswith(f"Error: {path}: "), result.output
    assert not (tmp_path / "converted.pkl").exists() and not CANARY.exists()


# ---------------------------------------------------------------------------------------------------------------------
# What is odd and does no harm.

def test_metadata_is_not_followed(tmp_path, monkeypatch):
    """Paths in a file are not opened, numbers that are none are not used."""
    G = networks_stylegan2.Generator(**hostile_files.KWARGS)
    kwargs = dict(class_name="os.system", path="../../../../etc/passwd", resolution=float("nan"))
    path = tmp_path / "odd.pkl"
    persistence.save(dict(G_ema=G, training_set_kwargs=kwargs,
                          camera_stats=dict(radius=float("nan"), pivot=[float("inf")])), path)
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and args else None)
    data = legacy.load_network_pkl(path)
    assert data["training_set_kwargs"]["path"] == kwargs["path"] and isinstance(data["G_ema"],
                                                                                networks_stylegan2.Generator)
    assert str(path) in opened and not any("passwd" in name for name in opened)


def test_collection_goes_on_after_a_failure():
    for data in (pickle.dumps(dict(a=1)), hostile_files.program(hostile_files.of_line("os.system"))):
        with contextlib.suppress(UserError):
            known_names.load(io.BytesIO(data))
        assert gc.isenabled()


def test_calc_metrics_calls_nothing_that_a_file_names(tmp_path):
    """torch.hub.load runs hubconf.py of a folder and takes any further argument."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hubconf.py").write_text(f"def f(**kwargs):\n    open({str(tmp_path / 'canary')!r}, 'w')\n")
    kwargs = dict(class_name="torch.hub.load", repo_or_dir=str(tmp_path / "hub"), model="f", source="local",
                  path="x.zip")
    torch.manual_seed(0)
    path = tmp_path / "hostile.pkl"
    persistence.save(dict(G_ema=networks_stylegan2.Generator(**hostile_files.KWARGS), training_set_kwargs=kwargs), path)
    for metric in ("fid50k_full", "pose_error"):
        result = CliRunner().invoke(calc_metrics.main, [f"--network={path}", f"--metrics={metric}", "--device=cpu"])
        assert not (tmp_path / "canary").exists() and result.exit_code == 1
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    kwargs = dict(path=str(tmp_path), surprise=1)
    with pytest.raises(UserError, match="surprise.*--data"):
        open_stored(kwargs)
    with pytest.raises(UserError, match="torch.hub.load.*--data"):
        open_stored(dict(kwargs, class_name="torch.hub.load"))


def test_harmless_values_come_back():
    """Shared parts, big dicts, all lengths, all protocols: whatever a pickler writes for such values."""
    shared = ["x" * 3000, (1, None, True), dict(a=1.5)]
    value = dict(many={f"k{i}": i for i in range(3000)}, list=list(range(3000)), shared=[shared] * 20,
                 numbers=[2 ** 31, -2 ** 40, 255, 256, 65536, -1, 1e300], keys={2: "a", None: "b", True: "c"},
                 set={"a", "b"},
                 empty=[(), [], {}, set(), "", b""],
                 lengths=[text * n for n in (0, 1, 190, 255, 256, 70_000) for text in (b"x", "\xe4")],
                 tuples=[(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], big=b"x" * 100_000)
    for protocol in (2, 3, 4, 5):
        for pickler in (pickle.dumps, pickle._dumps):
            stream = io.BytesIO(b"before" + pickler(value, protocol) + b"after")
            stream.seek(6)
            found = restricted_pickle.RestrictedUnpickler(stream, NAMES_OF_PLAIN_VALUES).load()
            assert found == value and found["shared"][0] is found["shared"][1] and stream.read() == b"after"
    buffer = io.BytesIO(pickle.dumps([bytearray(b"x" * 10), bytearray(100_000)], 5))
    assert restricted_pickle.RestrictedUnpickler(buffer, {}).load() == [bytearray(b"x" * 10), bytearray(100_000)]


# ---------------------------------------------------------------------------------------------------------------------
# Fuzzing: damaged files either load or end in UserError.

def own_file():
    torch.manual_seed(0)
    stream = io.BytesIO(b"")
    persistence.dump(dict(G_ema=networks_stylegan2.Generator(**hostile_files.KWARGS),
                          training_set_kwargs=dict(path="x.zip")), stream)
    return stream.getvalue()


OPCODES = "".join(opcode.code for opcode in pickletools.opcodes).encode("latin1")


def damaged(data, opcodes, rng):
    """The file with one to four changes, mostly where opcodes and their arguments lie."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = min(max(rng.choice(opcodes) + rng.choice((0, 0, 1, 2)), 2), len(data) - 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at] = rng.choice(OPCODES)
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 9, 1000))]
        elif kind == 4:
            other = rng.choice(opcodes)
            data[at:at] = data[other : other + rng.choice((1, 3, 20, 500))]
        else:
            del data[rng.randrange(2, len(data)):]
        if len(data) < 3:
            return bytes(data)
    return bytes(data)


def shared_file(folder):
    """A .safetensors, and where its header lies."""
    path = folder / "shared.safetensors"
    safetensors_format.save(dict(G_ema=networks_stylegan2.Generator(**hostile_files.KWARGS)), path)
    data = path.read_bytes()
    return data, range(8 + struct.unpack("<Q", data[:8])[0])


def state_file(folder):
    """A training state of nothing much, and where its pickle and its directory lie."""
    path = str(folder / "training-state-000000.pt")
    tensors = {"G": {"weight": torch.ones(3, 4)}}
    training_state.save(dict(format=1, step=1, networks=tensors, optimizers=tensors, pl_mean=torch.zeros([]),
                             augmentation={}, status=dict(cur_nimg=8),
                             random=[dict(torch=torch.zeros(8, dtype=torch.uint8), python=(3, (1, 2), None))]), path,
                        {"a": 1})
    data = Path(path).read_bytes()
    return data, [*range(1200), *range(data.index(b"PK\1\2"), len(data))]


def fuzz(seconds, seed, folder):
    """Counts of outcomes by kind of file; raises whatever is no UserError."""
    rng = random.Random(seed)
    pickles = [path.read_bytes() for path in sorted((DATA / "pickles").glob("*.pkl"))] + 3 * [own_file()]
    kinds = dict(pickle=([(data, [position for _, _, position in pickletools.genops(data)]) for data in pickles],
                         legacy.load_network_pkl),
                 safetensors=([shared_file(folder)], legacy.load_network_pkl),
                 pt=([state_file(folder)], lambda path: training_state.load(str(path))))
    counts = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kind = rng.choice(("pickle", "pickle", "safetensors", "pt"))
        sources, load = kinds[kind]
        path = folder / f"damaged.{kind}"
        path.write_bytes(damaged(*rng.choice(sources), rng))
        try:
            load(path)
            counts[kind, "loaded"] += 1
        except UserError as error:
            counts[kind, "refused"] += 1
            message = error.format_message()
            assert "\n" not in message and len(message) < 1000 + len(str(folder)) and "RecursionError" not in message
    return counts


def limited_fuzz(seconds, seed, folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = fuzz(seconds, seed, folder)
    gc.collect()
    assert all(counts[kind, "refused"] > 20 for kind in ("pickle", "safetensors", "pt")), counts
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20      # KB


def test_fuzz(tmp_path):
    limited_fuzz(15, seed=0, folder=tmp_path)


@pytest.mark.slow
def test_fuzz_longer(tmp_path):
    limited_fuzz(240, seed=int(time.time()), folder=tmp_path)
