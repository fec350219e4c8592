"""Builds and loads the native sources of the ops; decides whether an op's native path is available.

- Sources are CUDA or C++ without torch, with `extern "C"` launchers. nvcc or g++ compiles them into a shared library,
  which is called through ctypes: a build takes seconds, needs no torch headers and fits every torch version.
  (ops/backends.py makes operators of them with torch.library.)
- A library is built on first use and kept in $RAYCOND_OPS_CACHE, by default in `dnnlib.make_cache_dir_path("ops")`.
  Its name holds a hash of sources, flags, compilers, architectures and torch version. Libraries for CPUs are specific
  to one kind of CPU.
- Processes that want the same library wait for each other on a file lock. The lock ends with its process. A library
  gets its name only when it is complete, so that nobody takes the remains of a killed build for one.
- RAYCOND_OPS=auto (default): native on CUDA, and on CPUs for ops that have a source for them. If that fails, one line
  on stderr says why, and the plain PyTorch path is taken. RAYCOND_OPS=native: the same, but RuntimeError instead of
  the plain path. RAYCOND_OPS=reference: the definitions of the ops; nothing is built.
- RAYCOND_OPS_MARCH=x86-64-v3 (or another name that the compiler's -march knows) builds for that kind of CPU instead of
  this machine's: to test and measure what other machines run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import dnnlib

try:
    import fcntl
except ImportError:         # not a POSIX system: renaming alone keeps the cache consistent
    fcntl = None

MODES = ("auto", "native", "reference")
NVCC_FLAGS = ("-O3", "-std=c++17", "--shared", "-Xcompiler", "-fPIC", "-Xcompiler", "-fvisibility=hidden",
              "-cudart", "static", "--threads", "0")
CXX_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
BUILD_TIMEOUT_S = 900

verbosity = "brief"     # "none": silent. "brief": a line per fallback. "full": also builds, with the compiler's output.

Key = tuple[str, str]   # (op, device type)


class BuildError(RuntimeError):
    """A native library could not be built or loaded. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """The native side of one op. Without sources for a device, the op takes its plain path there."""
    name:        str
    sources:     tuple[Path, ...]           # Compiled for GPUs: .cu.
    headers:     tuple[Path, ...] = ()      # Only part of the hash.
    flags:       tuple[str, ...]  = ()      # On top of NVCC_FLAGS or CXX_FLAGS.
    cpu_sources: tuple[Path, ...] = ()      # Compiled for CPUs: .cpp.

    def sources_for(self, device_type: str) -> tuple[Path, ...]:
        return dict(cuda=self.sources, cpu=self.cpu_sources).get(device_type, ())


# ---------------------------------------------------------------------------------------------------------------------
# Which path.

def mode() -> str:
    """The value of RAYCOND_OPS. Raises UserError if it is not one of MODES."""
    value = os.environ.get("RAYCOND_OPS") or "auto"
    if value not in MODES:
        raise dnnlib.UserError(f"RAYCOND_OPS={value}: expected one of {', '.join(MODES)}; unset it for auto")
    return value


_plugins: dict[str, Plugin] = {}
_libraries: dict[Key, ctypes.CDLL] = {}
_paths: dict[tuple[str, str, str], str] = {}


def declare(plugin: Plugin) -> Plugin:
    """Registers an op's native side under its name. Builds nothing."""
    _plugins[plugin.name] = plugin
    return plugin


def path(op: str, device_type: str) -> str:
    """'native', 'plain' or 'reference' for a declared op on tensors of this device type. May build the library."""
    value = mode()
    known = _paths.get((op, device_type, value))
    return _decide(op, device_type, value) if known is None else known


def _decide(op: str, device_type: str, value: str) -> str:
    if value == "reference":
        chosen = "reference"
    elif not _plugins[op].sources_for(device_type):
        if value == "native":
            raise BuildError(f"RAYCOND_OPS=native: {op} has no native kernel for {device_type} tensors; "
                             "set RAYCOND_OPS=auto")
        chosen = "plain"
    else:
        try:
            library(op, device_type)
            chosen = "native"
        except BuildError as error:
            if value == "native":
                raise BuildError(f"RAYCOND_OPS=native: {error}") from error
            if verbosity != "none":
                print(f"raycond: {op}: taking the plain PyTorch path on {device_type}, slower than the native one: "
                      f"{error}", file=sys.stderr, flush=True)
            chosen = "plain"
    _paths[op, device_type, value] = chosen
    return chosen


# Tells torch.compile to call this while tracing and to take the answer as a constant, as
# torch.compiler.assume_constant_result does. Calling that here would import the compiler, which takes seconds.
path._dynamo_marked_constant = True


def library(op: str, device_type: str = "cuda") -> ctypes.CDLL:
    """The loaded native library of a declared op, for the GPUs or the CPU of this machine. Raises BuildError."""
    key = (op, device_type)
    if key not in _libraries:
        if device_type == "cuda" and not torch.cuda.is_available():
            raise BuildError("no CUDA device is available")
        _libraries[key] = get_plugin(_plugins[op], device_type=device_type)
    return _libraries[key]


# ---------------------------------------------------------------------------------------------------------------------
# Building and loading.

def get_plugin(plugin: Plugin, archs: Sequence[str] | None = None, device_type: str = "cuda") -> ctypes.CDLL:
    """Builds `plugin` unless the cache has it, and loads it. `archs`: such as ["90"]; None: this machine's GPUs."""
    target = build(plugin, archs, device_type)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise BuildError(f"cannot load {target}: {_one_line(str(error))}") from error


def build(plugin: Plugin, archs: Sequence[str] | None = None, device_type: str = "cuda") -> Path:
    """The shared library's file in the cache. Compiles it if it is not there. Raises BuildError."""
    command, identity = _cpu_command(plugin) if device_type == "cpu" else _cuda_command(plugin, archs)
    sources = plugin.sources_for(device_type)
    folder = Path(os.environ.get("RAYCOND_OPS_CACHE") or dnnlib.make_cache_dir_path("ops"))
    digest = _digest([*command, *identity], [*sources, *plugin.headers])
    target = folder / f"{plugin.name}{'-cpu' if device_type == 'cpu' else ''}-{digest}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():                     # otherwise another process was faster
                _compile(plugin.name, [*command, *map(str, sources)], target)
    except OSError as error:
        raise BuildError(f"cannot write to {folder}: {_one_line(str(error))}; "
                         "set RAYCOND_OPS_CACHE to a folder that can be written") from error
    return target


def _cuda_command(plugin: Plugin, archs: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The compiler with its flags, and what else the library depends on."""
    compiler = find_nvcc()
    archs = sorted(set(local_architectures() if archs is None else archs))
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    host = ["-ccbin", os.environ["CXX"]] if os.environ.get("CXX") else []
    versions = _compiler_versions(compiler, os.environ.get("CXX") or "g++")
    return [compiler, *NVCC_FLAGS, *plugin.flags, *host, *targets], [*versions]


def _cpu_command(plugin: Plugin) -> tuple[list[str], list[str]]:
    compiler = find_cxx()
    march = os.environ.get("RAYCOND_OPS_MARCH") or "native"
    kind = [_cpu_kind()] if march == "native" else []
    return [compiler, f"-march={march}", *CXX_FLAGS, *plugin.flags], [*_compiler_versions(compiler), *kind]


def find_cxx() -> str:
    """The C++ compiler: $CXX, g++, clang++, c++. Raises BuildError."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "clang++", "c++"]:
        found = shutil.which(candidate)
        if found:
            return found
    reason = f": CXX={named} is not a program" if named else " (g++) is installed"
    raise BuildError(f"no C++ compiler{reason}")


@functools.cache
def _cpu_kind() -> str:
    """What `-march=native` depends on. Machines of different kinds may share the cache."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            lines = stream.read().split("\n\n")[0].splitlines()
        wanted = ("flags", "Features", "model name", "CPU part")
        return platform.machine() + "".join(line for line in lines if line.startswith(wanted))
    except OSError:
        return platform.machine() + platform.processor()


def find_nvcc() -> str:
    """The CUDA compiler: $NVCC, $CUDA_HOME/bin, PATH, /usr/local/cuda. Raises BuildError."""
    named = os.environ.get("NVCC")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    usual = [*(os.path.join(home, "bin", "nvcc") for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in [named] if named else usual:
        found = shutil.which(candidate)
        if found:
            return found
    reason = f"NVCC={named} is not a program" if named else "nvcc is neither in CUDA_HOME nor in PATH"
    raise BuildError(f"no CUDA compiler: {reason}")


def local_architectures() -> list[str]:
    """Compute capabilities of the visible GPUs, such as "90". Raises BuildError without a GPU."""
    if not torch.cuda.is_available():
        raise BuildError("no CUDA device is available")
    pairs = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}{minor}" for major, minor in sorted(pairs)]


def _compile(name: str, command: Sequence[str], target: Path) -> None:
    """Compiles into a temporary folder, then renames. The caller holds the lock, so remains of killed builds can go."""
    for leftover in target.parent.glob(f"{target.stem}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.stem}.", suffix=".part"))
    command = [*command, "-o", str(aside / target.name)]
    compiler = os.path.basename(command[0])
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, errors="replace",
                              timeout=BUILD_TIMEOUT_S)
        if verbosity == "full":
            print(" ".join(command), done.stdout, done.stderr, sep="\n", file=sys.stderr, flush=True)
        if done.returncode != 0 or not (aside / target.name).exists():
            raise BuildError(f"{compiler} failed on {name}: {_first_error(done.stderr + done.stdout, done.returncode)}")
        os.replace(aside / target.name, target)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{compiler} ran for more than {BUILD_TIMEOUT_S} s on {name}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if verbosity == "full":
        print(f"raycond: built {target} in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _digest(identity: Sequence[str], files: Sequence[Path]) -> str:
    parts = hashlib.sha256()
    for item in (torch.__version__, *identity):
        parts.update(item.encode() + b"\0")
    for file in files:
        parts.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return parts.hexdigest()[:20]


@functools.lru_cache(maxsize=8)
def _compiler_versions(*compilers: str) -> tuple[str, ...]:
    versions = []
    for compiler in compilers:
        try:
            done = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
            versions.append(done.stdout)
        except (OSError, subprocess.TimeoutExpired):
            versions.append(f"{compiler}: none")        # the build says what is wrong with it
    return tuple(versions)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds `file` exclusively. The system releases it when the process ends, however it ends: no lock goes stale."""
    with open(file, "w") as stream:
        if fcntl is not None:
            with contextlib.suppress(OSError):          # no locks on this file system: several build, renaming is safe
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _first_error(output: str, code: int) -> str:
    lines = [line for line in output.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
    lines = lines or output.split("\n")
    return _one_line(next((line for line in lines if line.strip()), f"exit status {code}"))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
