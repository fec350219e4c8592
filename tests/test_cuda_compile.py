"""Every .cu of the project compiles for the GPUs that we name, and its library loads beside whatever torch is here."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

import torch_utils
from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.bias_act import cuda as bias_act_cuda
from torch_utils.ops.filtered_lrelu import cuda as filtered_lrelu_cuda
from torch_utils.ops.upfirdn2d import cuda as upfirdn2d_cuda

ROOT = Path(torch_utils.__file__).parents[1]
SOURCES = sorted(path for folder in ("torch_utils", "training") for path in (ROOT / folder).rglob("*.cu"))
EMPTY_ARGS = {"bias_act": bias_act_cuda.Args, "filtered_lrelu": filtered_lrelu_cuda.Args, "upfirdn2d": upfirdn2d_cuda.Args}

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed: the CUDA sources are not compiled")


def test_every_source_is_found_by_name():
    assert {path.stem for path in SOURCES} >= {"bias_act", "filtered_lrelu", "upfirdn2d"}
    declared = {name for name, plugin in custom_ops._plugins.items() if plugin.sources}
    assert {path.stem for path in SOURCES} == declared, "a .cu without a declared plugin, or the reverse"


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_for_sm_80_and_sm_90_and_loads(source, tmp_path, monkeypatch):
    """One library for both, built by the loader itself, so its cache is tested on the real thing as well."""
    monkeypatch.setenv("RAYCOND_OPS_CACHE", str(tmp_path))
    plugin = custom_ops._plugins[source.stem]
    assert source in plugin.sources
    built = custom_ops.build(plugin, archs=["80", "90"])
    code = built.read_bytes()
    assert b"sm_80" in code and b"sm_90" in code
    assert b"torch" not in code.lower(), "the kernels are to load beside any torch"

    library = custom_ops.get_plugin(plugin, archs=["80", "90"])
    assert list(tmp_path.glob("*.so")) == [built] and not list(tmp_path.glob("*.part"))
    if source.stem in EMPTY_ARGS:
        launcher = getattr(library, f"raycond_{source.stem}")
        assert launcher(ctypes.byref(EMPTY_ARGS[source.stem]()), None) == 0, "an empty tensor needs no GPU"


@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_fault_of_cuda_is_an_error(tmp_path, monkeypatch):
    """Without a GPU every launch fails; the launcher must say so, not return an uninitialised tensor."""
    monkeypatch.setenv("RAYCOND_OPS_CACHE", str(tmp_path))
    source = tmp_path / "fault.cu"
    source.write_text('#include "launch.cuh"\n__global__ void nothing() {}\n'
                      "RC_EXPORT int fault(void*, void* stream) { raycond::LaunchScope scope(0, stream); if (scope.error) return scope.error;\n"
                      "    nothing<<<1, 1, 0, raycond::current_stream>>>(); return cudaGetLastError(); }\n")
    library = custom_ops.get_plugin(custom_ops.Plugin("fault", (source,), flags=(f"-I{backends.COMMON}",)), archs=["80"])
    with pytest.raises(RuntimeError, match="CUDA error"):
        backends.launch(library, "fault", bias_act_cuda.Args(), torch.device("cpu"))
