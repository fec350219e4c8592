"""The shell scripts: .venv is set up as it should be, and Slurm's scripts start what they say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.presets import RECIPES

ROOT = Path(__file__).resolve().parent.parent


# --- .ci/setup-venv

STUB = """#!/bin/bash
# Stands for python and for the python of the environment; writes down what pip is asked for.
case "$*" in
    *version_info*)         exit {too_old} ;;
    --version)              echo "Python 3.99" ;;
    "-m venv --clear "*)    mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    *"pip --version"*)      exit 0 ;;
    *importlib.metadata*)   exit 1 ;;
    *"pip "*)               echo "$*" >> "$PIP_LOG"; [[ "$*" != *download.pytorch.org* ]] || exit {cpu_index} ;;
esac
"""


def set_up(tmp_path, too_old=0, cpu_index=0, nvidia=False):
    """Runs a copy of .ci/setup-venv with stubs; (process, what pip was asked for)."""
    (tmp_path / "project" / ".ci").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in (".ci/setup-venv", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / "project" / name)
    stubs = {name: STUB.format(too_old=too_old, cpu_index=cpu_index) for name in ("python3", "python")}
    if nvidia:
        stubs["nvidia-smi"] = "#!/bin/bash\n"
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for tool in ("bash", "dirname", "grep", "uname", "mkdir", "cp"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    log = tmp_path / "pip.log"
    log.touch()
    environment = dict(PATH=str(tmp_path / "bin"), PIP_LOG=str(log), PYTHON="")
    result = subprocess.run(["bash", tmp_path / "project" / ".ci" / "setup-venv"], env=environment, capture_output=True, text=True)
    return result, log.read_text().splitlines()


HAS_DRIVER = os.path.exists("/proc/driver/nvidia/version")
needs_no_driver = pytest.mark.skipif(HAS_DRIVER or sys.platform != "linux", reason="has an NVIDIA driver, or is no Linux")


@needs_no_driver
def test_without_a_driver_the_cpu_wheels_come_first(tmp_path):
    result, asked = set_up(tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = asked
    assert "--index-url https://download.pytorch.org/whl/cpu" in first and "--retries 0" in first
    assert first.endswith("-c constraints.txt torch==2.13.0")
    assert second.endswith("install -c constraints.txt -e .[dev]")


@needs_no_driver
def test_where_that_site_is_blocked_the_usual_index_is_taken(tmp_path):
    result, asked = set_up(tmp_path, cpu_index=1)
    assert result.returncode == 0 and "taking it from the usual index" in result.stdout
    assert len(asked) == 2 and "--index-url" not in asked[1]


def test_with_a_driver_the_usual_index_is_taken_at_once(tmp_path):
    result, asked = set_up(tmp_path, nvidia=True)
    assert result.returncode == 0
    line, = asked
    assert line.endswith("install -c constraints.txt -e .[dev]") and "--index-url" not in line


def test_without_a_python_it_says_so_in_one_line(tmp_path):
    result, asked = set_up(tmp_path, too_old=1)
    assert result.returncode == 1 and not asked and not (tmp_path / "project" / ".venv").exists()
    line, = result.stderr.splitlines()
    assert "3.10" in line and "make PYTHON=" in line


def test_make_offers_what_the_readme_says():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in listed.splitlines()] == ["demo", "test", "test-slow", "lint", "clean"]
    runs = (ROOT / ".ci" / "run").read_text()
    assert "make test\n" in runs and "make test-slow" in runs and os.access(ROOT / ".ci" / "run", os.X_OK)


# --- slurm_scripts

SLURM = sorted((ROOT / "slurm_scripts").glob("ray*.sh"))


def submit(script, tmp_path, *arguments, **environment):
    """Runs the script with a python that only prints how it was called."""
    (tmp_path / "python").write_text('#!/bin/bash\npwd\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM") and key not in ("DATA", "OUTDIR", "GPUS", "RAYCOND_DIR")}
    return subprocess.run(["bash", script, *arguments], cwd=tmp_path, env=dict(clean, PYTHON=str(tmp_path / "python"), **environment),
                          capture_output=True, text=True)


def test_a_script_for_each_recipe():
    assert {path.stem for path in SLURM} == RECIPES.keys()


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_script_asks_for_the_authors_gpus(script):
    text = script.read_text()
    recipe = RECIPES[script.stem]
    assert f"#SBATCH --gpus={recipe.gpus}\n" in text and f"#SBATCH --job-name={script.stem}\n" in text
    assert recipe.resume is None or recipe.resume in text


def test_the_readme_shows_how_to_submit():
    assert "DATA=/path/to/eg3d-ffhq.zip sbatch slurm_scripts/raycond2-ffhq.sh\n" in (ROOT / "README.md").read_text()


def test_without_slurm_the_recipe_chooses_the_gpus(tmp_path):
    result = submit(ROOT / "slurm_scripts" / "raycond2-cars.sh", tmp_path, DATA=str(tmp_path))
    assert result.returncode == 0 and "--gpus" not in result.stdout


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_script_trains_its_recipe(script, tmp_path):
    (tmp_path / "data set.zip").touch()
    result = submit(script, tmp_path, "--snap=20", "--desc=a b", DATA="data set.zip", OUTDIR="runs here", GPUS="4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(ROOT), "train.py", f"--recipe={script.stem}", f"--data={tmp_path}/data set.zip",
                                          f"--outdir={tmp_path}/runs here", "--gpus=4", "--snap=20", "--desc=a b"]


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_script_says_what_is_missing_in_one_line(script, tmp_path):
    for environment, said in [({}, "DATA is not set"), (dict(DATA="no.zip"), "DATA=no.zip"), (dict(DATA=".", GPUS="two"), "GPUS=two"),
                              (dict(DATA=".", SLURM_SUBMIT_DIR=str(tmp_path)), "RAYCOND_DIR")]:
        result = submit(script, tmp_path, **environment)
        assert result.returncode == 1 and result.stdout == ""
        line, = result.stderr.splitlines()
        assert said in line and script.stem in line


def test_values_as_editors_and_quotes_leave_them(tmp_path):
    """From a file with Windows' line ends; a ~ in quotes."""
    (tmp_path / "data.zip").touch()
    result = submit(SLURM[0], tmp_path, DATA="~/data.zip\r", OUTDIR="~\r", GPUS="2\r", HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[3:6] == [f"--data={tmp_path}/data.zip", f"--outdir={tmp_path}", "--gpus=2"]


def test_what_slurm_provides_is_used(tmp_path):
    spool = tmp_path / "job123" / "slurm_script"            # sbatch runs a copy of the script
    spool.parent.mkdir()
    shutil.copy(ROOT / "slurm_scripts" / "raycond2-cars.sh", spool)
    result = submit(spool, tmp_path, DATA=str(tmp_path), SLURM_SUBMIT_DIR=str(ROOT), SLURM_GPUS_ON_NODE="8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == str(ROOT) and "--gpus=8" in result.stdout


@pytest.mark.parametrize("name", [*(f"slurm_scripts/{path.name}" for path in SLURM), "slurm_scripts/common.sh", ".ci/run", ".ci/setup-venv"])
def test_shell_scripts_parse(name):
    path = ROOT / name
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "--shell=bash", path], cwd=ROOT, check=True)


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm on this machine")
@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_slurm_accepts_the_script(script):
    result = subprocess.run(["sbatch", "--test-only", script], cwd=ROOT, capture_output=True, text=True)
    if "Unable to contact slurm controller" in result.stderr:
        pytest.skip("no Slurm controller answers")
    assert "nvalid option" not in result.stderr and "rror: unrecognized" not in result.stderr, result.stderr


def test_training_understands_the_scripts(tmp_path):
    """Through train.py, up to the point where it notices that these are no data."""
    result = subprocess.run(["bash", ROOT / "slurm_scripts" / "raycond2-cars.sh", "-n"], cwd=tmp_path, capture_output=True, text=True,
                            env=dict(os.environ, PYTHON=sys.executable, DATA=str(tmp_path), GPUS="1"))
    assert result.returncode == 1 and result.stderr.startswith(f"Error: --data={tmp_path}"), result.stderr
