"""What holds the project together: imports in one direction, lists of packages that agree."""

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["dnnlib", "torch_utils", "camera_utils", "network_files", "training", "metrics", "inversion"]
ON_TOP = ["dataset_preprocessing", "demo", "benchmarks", "viewer"]          # scripts, as are the files at the root
NO_CODE = ["tests", "docs", "notebooks", "slurm_scripts", "checkpoints"]    # nothing may be imported from there


# --- imports

def code_folders():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
                  and path.name not in {*NO_CODE, *ignored} and any(path.rglob("*.py")))


def scripts():
    return sorted(path.stem for path in ROOT.glob("*.py"))


def layer_of(name):
    return LAYERS.index(name) if name in LAYERS else len(LAYERS)


def imported_names(source, package):
    """Top-level names that the source imports, wherever in it; relative imports are of its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (package if node.level else node.module.partition(".")[0]), node.lineno


def wrong_imports(files, ours):
    """(file, line, name) for each import of a higher layer. torch_utils.persistence imports classes, and the reader of the
    released format, by name at run time, without an import statement.
    """
    for path, package in files:
        for name, line in imported_names(path.read_text(), package):
            if name in NO_CODE or (name in ours and layer_of(name) > layer_of(package)):
                yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def project_files():
    for folder in code_folders():
        yield from ((path, folder) for path in (ROOT / folder).rglob("*.py"))
    yield from ((ROOT / f"{name}.py", name) for name in scripts())


def test_every_folder_has_its_place():
    assert set(code_folders()) <= {*LAYERS, *ON_TOP}
    assert {"dnnlib", "torch_utils", "camera_utils", "training", "dataset_preprocessing"} <= set(code_folders())


def test_imports_point_one_way():
    ours = {*code_folders(), *scripts()}
    assert not list(wrong_imports(project_files(), ours))


@pytest.mark.parametrize("source", [
    "import training.loss",
    "def f():\n    from training import loss",
    "from legacy import load_network_pkl",
    "import tests.helpers",
])
def test_an_import_that_points_the_other_way_would_be_noticed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(source)
    ours = {"training", "torch_utils", "legacy"}
    assert len(list(wrong_imports([(tmp_path / "module.py", "torch_utils")], ours))) == 1
    assert len(list(wrong_imports([(tmp_path / "module.py", "train")], ours))) == ("tests" in source)


def project_modules():
    """Dotted name -> path, of all packages."""
    files = {path: path.relative_to(ROOT).with_suffix("").parts for path, _ in project_files()}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in files.items()}


def loaded_with(path, modules):
    """The modules of ours that are imported at the top of a file: `from a import b` is a.b, if that is a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if name in modules or node.module in modules)


def circles(imports):
    """Chains of modules that import each other."""
    done = set()

    def follow(name, chain):
        if name in chain:
            yield chain[chain.index(name):]
        elif name not in done:
            for other in imports.get(name, ()):
                yield from follow(other, [*chain, name])
            done.add(name)

    return [circle for name in imports for circle in follow(name, [])]


def test_no_two_modules_import_each_other():
    modules = project_modules()
    assert circles({name: set(loaded_with(path, modules)) - {name} for name, path in modules.items()}) == []


def test_a_circle_would_be_noticed():
    assert circles(dict(a=["b"], b=["c"], c=["b"])) == [["b", "c"]] and circles(dict(a=["b", "c"], b=["c"])) == []


def test_no_folder_holds_more_than_16_modules():
    folders = {path.parent for path, _ in project_files() if path.parent != ROOT}
    counts = {folder.relative_to(ROOT).as_posix(): len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    counts.pop("benchmarks")
    assert counts["training"] > 5 and {folder: count for folder, count in counts.items() if count > 16} == {}


# --- lists of packages

def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required():
    """{name: requirement} of pyproject.toml, extras included."""
    project = pyproject()
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    parsed = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in parsed if requirement.name != project["name"]}


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environment():
    """(conda packages, lines of the pip section)."""
    lines = (ROOT / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    return [line[4:] for line in lines if line.startswith("  - ")], [line[8:] for line in lines if line.startswith("      - ")]


def test_environment_names_the_packages_of_pyproject():
    conda, pip = environment()
    assert conda == [f"python{pyproject()['requires-python']}", "pip", "pip:"]
    assert {"-e .", "-c constraints.txt"} <= set(pip)
    assert sorted(line for line in pip if not line.startswith("-")) == sorted(str(requirement) for requirement in required().values())


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_constraints_pin_each_package_once(python):
    pins = [pin for pin in constraints() if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    # imageio[ffmpeg] brings imageio-ffmpeg, without which there are no videos.
    assert sorted(pin.name for pin in pins) == sorted([*required(), "imageio-ffmpeg"])
    for pin in pins:
        version = re.fullmatch(r"==([0-9][0-9.]*)", str(pin.specifier))
        assert version, pin
        assert pin.name == "imageio-ffmpeg" or required()[pin.name].specifier.contains(version[1]), pin
    assert "torch==2.13.0" in map(str, pins)


def test_requirements_that_the_issue_names():
    project = pyproject()
    assert project["name"] == "raycond" and project["requires-python"] == ">=3.10"
    names = {Requirement(line).name for line in project["dependencies"]}
    assert names == {"torch", "numpy", "click", "pillow", "scipy", "imageio", "ninja", "psutil", "requests", "tqdm", "pyspng"}


def test_notebooks_come_with_a_front_end_and_tests_without():
    extras = {name: {Requirement(line).name for line in lines} for name, lines in pyproject()["optional-dependencies"].items()}
    assert {"jupyterlab", "ipywidgets", "ipykernel"} <= extras["notebooks"]
    assert "jupyterlab" not in extras["dev"] and not any("notebooks" in line for line in pyproject()["optional-dependencies"]["dev"])


def test_everything_importable_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["py-modules"]) == set(scripts())
    packages = {pattern.rstrip("*") for pattern in settings["packages"]["find"]["include"]}
    assert {name for name in code_folders() if (ROOT / name / "__init__.py").exists()} <= packages
