"""The loader: one build for many processes, killed builds, failing compilers, RAYCOND_OPS. The compiler is a stand-in."""

import ctypes
import inspect
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import dnnlib
from torch_utils import custom_ops
from torch_utils.ops import backends, bias_act, filtered_lrelu, modulate, upfirdn2d

# Speaks nvcc's language as far as the loader does, logs each call, and lets the host compiler do the work.
FAKE_NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake nvcc 1.0"; exit 0; fi
echo $$ >> "$FAKE_LOG"
sleep "${FAKE_SLEEP:-0}"
if [ -n "$FAKE_ERROR" ]; then echo "remark: nothing"; echo "answer.cu(1): error: $FAKE_ERROR" >&2; exit 2; fi
for arg; do
    case "$arg" in *.cu) source=$arg;; esac
    if [ "$last" = -o ]; then target=$arg; fi
    last=$arg
done
exec g++ -x c++ -shared -fPIC "$source" -o "$target"
"""

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: the loader has nothing to build with")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A plugin with a stand-in compiler and an empty cache, as on a machine with a GPU of capability 9.0."""
    compiler = tmp_path / "nvcc"
    compiler.write_text(FAKE_NVCC)
    compiler.chmod(0o755)
    source = tmp_path / "answer.cu"
    source.write_text('extern "C" int answer() { return 42; }\n')
    for name, value in dict(NVCC=compiler, FAKE_LOG=tmp_path / "log", RAYCOND_OPS_CACHE=tmp_path / "cache").items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("RAYCOND_OPS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(custom_ops, "local_architectures", lambda: ["90"])
    for state in ("_plugins", "_libraries", "_paths"):
        monkeypatch.setattr(custom_ops, state, {})
    return custom_ops.declare(custom_ops.Plugin("answer", (source,)))


def builds(tmp_path):
    log = tmp_path / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@needs_gxx
def test_builds_once_and_loads(stand_in, tmp_path):
    assert custom_ops.get_plugin(stand_in).answer() == 42
    custom_ops.get_plugin(stand_in)
    assert len(builds(tmp_path)) == 1


@needs_gxx
@pytest.mark.parametrize("change", ["source", "header", "architecture", "torch", "flag", "compiler"])
def test_what_the_library_depends_on_makes_a_new_one(stand_in, tmp_path, monkeypatch, change):
    header = tmp_path / "answer.cuh"
    header.write_text("// 1\n")
    plugin = custom_ops.Plugin("answer", stand_in.sources, (header,))
    first = custom_ops.build(plugin, ["90"])
    if change == "source":
        plugin.sources[0].write_text('extern "C" int answer() { return 43; }\n')
    elif change == "header":
        header.write_text("// 2\n")
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    elif change == "flag":
        plugin = custom_ops.Plugin("answer", plugin.sources, plugin.headers, ("-DX",))
    elif change == "compiler":
        other = tmp_path / "nvcc2"
        other.write_text(FAKE_NVCC.replace("1.0", "2.0"))
        other.chmod(0o755)
        monkeypatch.setenv("NVCC", str(other))
    second = custom_ops.build(plugin, ["80"] if change == "architecture" else ["90"])
    assert first != second and first.exists() and second.exists()
    if change == "source":
        assert ctypes.CDLL(str(second)).answer() == 43


@needs_gxx
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of kinds of x86 CPUs")
def test_a_kind_of_cpu_can_be_chosen(tmp_path, monkeypatch):
    """Each has a library of its own, whose name does not depend on the machine that builds it."""
    monkeypatch.setenv("RAYCOND_OPS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    source.write_text('#ifdef __AVX2__\nint bits = 256;\n#else\nint bits = 128;\n#endif\n'
                      'extern "C" __attribute__((visibility("default"))) int answer() { return bits; }\n')
    plugin = custom_ops.Plugin("answer", (), cpu_sources=(source,))
    built = {}
    for march in ("", "x86-64-v2", "x86-64-v3"):
        monkeypatch.setenv("RAYCOND_OPS_MARCH", march)
        built[march] = custom_ops.build(plugin, device_type="cpu")
    assert len(set(built.values())) == 3 and ctypes.CDLL(str(built["x86-64-v2"])).answer() == 128
    monkeypatch.setattr(custom_ops, "_cpu_kind", lambda: "another")
    assert custom_ops.build(plugin, device_type="cpu") == built["x86-64-v3"]
    monkeypatch.setenv("RAYCOND_OPS_MARCH", "z80")
    with pytest.raises(custom_ops.BuildError, match="z80"):
        custom_ops.build(plugin, device_type="cpu")


@needs_gxx
def test_concurrent_processes_build_once(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "0.5")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=lambda: os._exit(custom_ops.get_plugin(stand_in).answer())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [42] * 4
    assert len(builds(tmp_path)) == 1


@needs_gxx
def test_killed_build_leaves_no_lock_and_no_half_file(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SLEEP", "30")
    worker = multiprocessing.get_context("fork").Process(target=custom_ops.build, args=(stand_in,))
    worker.start()
    deadline = time.monotonic() + 30
    while not builds(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)                     # the compiler itself lives on, as it would
    worker.join()
    cache = tmp_path / "cache"
    assert list(cache.glob("*.part")) and not list(cache.glob("*.so"))

    monkeypatch.setenv("FAKE_SLEEP", "0")
    started = time.monotonic()
    assert custom_ops.get_plugin(stand_in).answer() == 42
    assert time.monotonic() - started < 20, "waited for the dead process's lock"
    assert not list(cache.glob("*.part"))
    os.kill(builds(tmp_path)[0], signal.SIGKILL)


@needs_gxx
def test_failing_compiler_says_one_line_and_takes_the_plain_path(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_ERROR", "no such register")
    assert [custom_ops.path("answer", "cuda") for _ in range(3)] == ["plain"] * 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "answer" in said[0] and "plain PyTorch path" in said[0] and "no such register" in said[0]
    assert len(builds(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob("*.so")) and not list((tmp_path / "cache").glob("*.part"))


def test_silence_can_be_asked_for(stand_in, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_ERROR", "no such register")
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    assert custom_ops.path("answer", "cuda") == "plain"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", ["compiler", "cache"])
def test_other_reasons_not_to_build(stand_in, tmp_path, monkeypatch, capsys, missing):
    if missing == "compiler":
        monkeypatch.setenv("NVCC", str(tmp_path / "nowhere"))
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("RAYCOND_OPS_CACHE", str(tmp_path / "file" / "cache"))
    assert custom_ops.path("answer", "cuda") == "plain"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and ("no CUDA compiler" if missing == "compiler" else "RAYCOND_OPS_CACHE") in said[0]


@needs_gxx
def test_native_is_taken_where_it_builds(stand_in, capsys):
    assert custom_ops.path("answer", "cuda") == "native"
    assert custom_ops.library("answer").answer() == 42
    assert capsys.readouterr().err == ""


def test_native_mode_fails_loudly(stand_in, monkeypatch):
    monkeypatch.setenv("RAYCOND_OPS", "native")
    monkeypatch.setenv("FAKE_ERROR", "no such register")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such register"):
            custom_ops.path("answer", "cuda")


def test_native_mode_without_a_source_for_the_cpu(stand_in, monkeypatch):
    monkeypatch.setenv("RAYCOND_OPS", "native")
    with pytest.raises(RuntimeError, match="no native kernel for cpu"):
        custom_ops.path("answer", "cpu")


def test_reference_mode_builds_nothing_and_runs_the_definition(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    assert custom_ops.path("answer", "cuda") == custom_ops.path("answer", "cpu") == "reference"
    assert not builds(tmp_path)
    ran = []
    monkeypatch.setattr(bias_act.reference, "bias_act", lambda x, *rest: ran.append(1) or x)
    bias_act.bias_act(torch.zeros([1, 2]))
    assert ran


@pytest.mark.parametrize("value", ["cuda", "Auto", "0"])
def test_unknown_mode_is_the_users_mistake(monkeypatch, value):
    monkeypatch.setenv("RAYCOND_OPS", value)
    with pytest.raises(dnnlib.UserError, match=f"RAYCOND_OPS={value}: expected one of auto, native, reference"):
        bias_act.bias_act(torch.zeros([1, 2]))


@needs_gxx
def test_one_choice_of_the_path(stand_in, tmp_path, monkeypatch):
    """What the caller wants comes first, then what the op takes, then whether there is a library."""
    x = torch.zeros([1])
    asked = []

    def choose(op="answer", takes=True, **kwargs):
        return backends.choose(op, x, lambda: asked.append(1) or takes, **kwargs)

    assert choose(impl="ref") == "reference" and not asked
    assert choose() == choose(impl="cuda") == "plain" and choose(always=True) == "operator" and choose(takes=False, always=True) == "plain"
    assert len(asked) == 4
    assert torch.func.vmap(lambda y: y + (choose(always=True) == "plain"))(x).item() == 1 and len(asked) == 4
    custom_ops.declare(custom_ops.Plugin("cpu_answer", (), cpu_sources=(tmp_path / "answer.cpp",)))
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 42; }')
    assert choose("cpu_answer") == "operator"
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    assert choose("cpu_answer") == "reference"
    with pytest.raises(AssertionError, match="impl 'cpu'"):
        choose(impl="cpu")


def test_cuda_is_only_asked_for_where_there_is_a_cuda_kernel():
    """StyleGAN3's functions have impl='cuda' as their default; the ops that only CPUs have do not."""
    defaults = {fn.__name__: inspect.signature(fn).parameters["impl"].default
                for fn in (bias_act.bias_act, upfirdn2d.upfirdn2d, filtered_lrelu.filtered_lrelu, modulate.modulate, modulate.demodulation)}
    assert defaults == dict(bias_act="cuda", upfirdn2d="cuda", filtered_lrelu="cuda", modulate="auto", demodulation="auto")
    assert not custom_ops._plugins["modulate"].sources


def test_cpu_never_builds(stand_in, tmp_path):
    assert custom_ops.path("answer", "cpu") == "plain"
    assert not builds(tmp_path) and not (tmp_path / "cache").exists()


def test_import_builds_nothing(tmp_path):
    """Nor does it look for a compiler or write a cache."""
    code = ("import subprocess; subprocess.run = subprocess.Popen = None\n"
            "from torch_utils.ops import bias_act, upfirdn2d, conv2d_resample, grid_sample_gradfix, fma\n"
            "import torch; upfirdn2d.upsample2d(bias_act.bias_act(torch.zeros([1, 2, 4, 4]), act='lrelu'), upfirdn2d.setup_filter([1, 3, 3, 1]))")
    root = os.path.dirname(os.path.dirname(custom_ops.__file__))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root, "RAYCOND_OPS_CACHE": str(tmp_path / "cache")})
    assert not (tmp_path / "cache").exists()
