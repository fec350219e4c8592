"""What torch_utils.misc tells about modules: do the ranks agree, and what lies in them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_utils import distributed, misc

ROOT = Path(__file__).parent.parent


class Mixed(torch.nn.Module):
    """Tensors of several dtypes, among them values that compare in their own ways."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 3)
        self.register_buffer("steps", torch.tensor(5))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("gaps", torch.tensor([float("nan"), 1.0, float("inf")]))


# (what rank 1 changes, what must be ignored for the check to pass, the start of the message)
CASES = [
    (lambda m: m.fc.bias[2].add_(1e-6), r".*\.bias", "rank 1: Mixed.fc.bias differs from rank 0"),
    (lambda m: m.steps.add_(1), r"Mixed\.steps", "rank 1: Mixed.steps differs from rank 0"),
    (lambda m: m.mask.logical_not_(), r"Mixed\.mask", "rank 1: Mixed.mask differs from rank 0"),
    (lambda m: m.gaps[0].zero_(), r"Mixed\.gaps", "rank 1: Mixed.gaps differs from rank 0"),
    (lambda m: (m.fc.weight.mul_(2), m.gaps[1].fill_(2), m.steps.zero_()), r".*weight|.*gaps|.*steps",
     "rank 1: Mixed.fc.weight differs from rank 0, as do 2 more"),
]


def verdict(module, ignore_regex=None):
    try:
        misc.check_ddp_consistency(module, ignore_regex)
    except AssertionError as error:
        return str(error)
    return "same"


def worker(rank, address, path):
    torch.set_num_threads(1)
    distributed.init(rank, 2, torch.device("cpu"), init_method=address, timeout_s=60)
    verdicts = []
    for change, ignore_regex, _ in [(lambda m: None, None, ""), *CASES]:
        torch.manual_seed(0)
        module = Mixed().requires_grad_(False)
        if rank == 1:
            change(module)
        verdicts.append([verdict(module), verdict(module, ignore_regex), verdict(module, "fc")])
    torch.save(verdicts, f"{path}/{rank}.pt")
    distributed.shutdown()


def test_ranks_that_differ_are_told_which_tensor(tmp_path):
    torch.multiprocessing.spawn(worker, args=(f"tcp://127.0.0.1:{distributed.free_port()}", str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == [["same"] * 3] * (len(CASES) + 1) and second[0] == ["same"] * 3
    assert second[1:] == [[message, "same", message] for _, _, message in CASES]        # "fc" matches no whole name


def test_one_process_agrees_with_itself():
    assert verdict(Mixed()) == "same"


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4))

    def forward(self, x, scale):
        return self.inner(self.inner(x)) * scale, x.half(), None


def summary(capsys, *args, **kwargs):
    """(outputs, the table as a list of cells per line, without empty cells)."""
    outputs = misc.print_module_summary(*args, **kwargs)
    lines = capsys.readouterr().out.strip("\n").splitlines()
    return outputs, [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines], lines


def test_summary_counts_and_returns_the_outputs(capsys):
    module = Twice().eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    outputs, table, lines = summary(capsys, module, [x, 2.0])
    assert torch.equal(outputs[0], module(x, 2.0)[0]) and outputs[2] is None
    assert table == [
        ["layer", "type", "weights", "state", "output"],
        ["(whole)", "Twice", "28", "9", "float32 [3, 4], float16 [3, 4]"],
        ["inner", "Sequential", "28", "9", "float32 [3, 4]"],
        ["inner.0", "Linear", "20", "float32 [3, 4]"],
        ["inner.2", "BatchNorm1d", "8", "9", "float32 [3, 4]"],
    ]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 0, 2, 4, 4]


def test_summary_with_all_calls_or_few_levels(capsys):
    args = (Twice().eval(), [torch.zeros(3, 4), 1.0])
    inner = ["inner", "inner.0", "inner.1", "inner.2"]
    assert [row[0] for row in summary(capsys, *args, skip_redundant=False)[1]] == ["layer", "(whole)", *inner, *inner]
    assert [row[0] for row in summary(capsys, *args, max_nesting=1)[1]] == ["layer", "(whole)", "inner"]
    assert [row[0] for row in summary(capsys, *args, max_nesting=0)[1]] == ["layer", "(whole)"]


def test_summary_leaves_no_hooks_even_after_an_error():
    module = Twice()
    with pytest.raises(RuntimeError):
        misc.print_module_summary(module, [torch.zeros(3, 5), 1.0])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


KEEPS = """
import ctypes, resource, sys, torch
from torch_utils import memory
torch.set_num_threads(1)
if sys.argv[1] == "1":
    memory.keep_freed()
for _ in range(20):
    torch.ones(2 ** 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2 ** 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    """Without it every new tensor makes the system hand out its pages again."""
    faults = [int(subprocess.run([sys.executable, "-c", KEEPS, keep], capture_output=True, text=True, check=True, cwd=ROOT).stdout) for keep in "01"]
    assert faults[1] < faults[0] / 5, faults
