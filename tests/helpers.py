"""What several tests share: the reference numbers and how they are judged."""

import json
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

DATA = Path(__file__).parent / "data"


def load_golden(name):
    """`tests/data/NAME` as a dict of arrays; 0-d string entries that hold JSON come back parsed."""
    out = {}
    with np.load(DATA / name) as archive:
        for key in archive.files:
            value = archive[key]
            if value.dtype.kind == "U" and value.ndim == 0:
                value = json.loads(str(value)) if str(value)[:1] in "[{" else str(value)
            out[key] = value
    return out


def assert_close_rel(actual, expected, tol, what=""):
    """max|actual - expected| <= tol * max|expected|, shapes equal, no NaN."""
    actual = actual.detach().cpu().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    expected = expected.detach().cpu().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    scale = float(np.abs(expected).max()) if expected.size else 0.0
    error = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()) if expected.size else 0.0
    assert error <= tol * scale, f"{what}: off by {error:.3g}, allowed {tol * scale:.3g} ({tol} x {scale:.3g})"


def run_train(*args):
    """train.py in this process: (exit code, output)."""
    import train
    result = CliRunner().invoke(train.main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output + repr(result.exception)
    return result.exit_code, result.output


def options_of(output):
    return json.loads(output[output.index("{") : output.rindex("}") + 1])


def assert_refused(command, *args, says):
    """The click command ends with one line that holds all of `says`. Returns it."""
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    message = result.stderr[result.stderr.index("Error:"):].strip()
    assert result.exit_code != 0 and "\n" not in message, result.stderr
    for part in says:
        assert part in message, message
    return message
