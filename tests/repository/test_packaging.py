"""What a user gets from the wheel, seen from a clean environment (no network, seconds)."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import ditaccel

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ditaccel", "kernels", "pipelines", "eval")
PACKAGES = ("ditaccel", "ditaccel.kernels", "ditaccel.pipelines", "ditaccel.eval")
# Names that our own folders have, and that must never become top-level imports of a user.
FORBIDDEN = ("kernels", "pipelines", "eval", "tests", "samples")
DATA = (".py", ".html", ".css", ".js", ".yaml", ".json", ".typed")

# Tools for developers of the kernels, named in setup.py too.
TOOLS = ("aot.py", "build.py", "builds.py", "fuzz.py", "hub.py")

pytestmark = pytest.mark.xdist_group("packaging")


def run(command: list[str | Path], cwd: Path, **env: str) -> str:
    """What a command prints, run without this process's import path.

    Args:
        command: program and arguments.
        cwd: where it runs.
        **env: further variables.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needed(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What pip would install for requirements of no extra, found among what is installed here."""
    found: dict[str, metadata.Distribution] = {}
    left = list(requirements)
    while left:
        requirement = Requirement(left.pop())
        name = requirement.name.lower().replace("_", "-")
        unwanted = requirement.marker and not requirement.marker.evaluate({"extra": ""})
        if name in found or unwanted:
            continue
        found[name] = metadata.distribution(requirement.name)
        left += found[name].requires or ()
    return found


def install(wheel: Path, folder: Path) -> Path:
    """Python of a new environment in `folder` with a wheel and what it requires; no network.

    What is required is linked from this environment. What else is installed here cannot be
    imported there, so that a dependency that nobody declared is missed.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], cwd=folder)
    python = folder / "venv" / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-compile"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], cwd=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", code], folder).strip())
    (ours,) = metadata.distributions(name="ditaccel", path=[str(site)])
    for distribution in needed(ours.requires or ()).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            link = site / top
            if not link.exists() and top != "__pycache__":
                link.symlink_to(str(distribution.locate_file(top)))
    return python


def test_data_files_of_packages_are_declared():
    """Without a wheel: a file that `package-data` does not name is left out of it."""
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = facts["tool"]["setuptools"]["package-data"]
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.suffix not in {*DATA} - {".py"} or not (path.parent / "__init__.py").is_file():
                continue  # (measurements lie in folders that are not packages)
            folder = ".".join(path.relative_to(ROOT).parts[:-1])
            package = folder if room == "ditaccel" else f"ditaccel.{folder}"
            assert any(path.match(each) for each in declared.get(package, ())), path
            found.add(package)
    assert found == set(declared)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source distribution and with the wheel that was built from it.

    They are made from a copy, because setuptools leaves `build/` behind in its source folder.
    """
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source], cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and what it requires, without any extra."""
    return install(wheel, tmp_path_factory.mktemp("user"))


def test_source_distribution_is_whole(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if name.startswith(("tests/", "samples/"))]


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(name).decode())
    assert facts["Version"] == ditaccel.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in facts.get_all("Classifier")
    assert facts["Description-Content-Type"] == "text/markdown"
    assert set(facts.get_all("License-File")) == {"LICENSE", "NOTICE"}


def test_one_version() -> None:
    """It is written where Python reads it; the citation must follow."""
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in facts["project"] and "version" in facts["project"]["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ditaccel.__version__
    assert f"\n## [{ditaccel.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_notice_names_the_data_of_others() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for path in (ROOT / "pipelines" / "schedules").glob("*.yaml"):
        facts = yaml.safe_load(path.read_text())
        if "source" in facts:
            (line,) = (line for line in notice.splitlines() if line.startswith(path.name))
            assert facts["licence"].split()[0] in line.replace("no licence", "none"), line


def test_wheel_holds_every_module_and_the_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for room in ROOMS:
        prefix = "ditaccel" if room == "ditaccel" else f"ditaccel/{room}"
        for path in (ROOT / room).rglob("*"):
            # committed benchmark results are for readers of the repository, not for the wheel
            tool = room == "kernels" and path.name in TOOLS
            left_out = tool or {"__pycache__", "results"} & set(path.parts)
            if path.suffix in DATA and not left_out:
                expected.add(f"{prefix}/{path.relative_to(ROOT / room).as_posix()}")
    missing = sorted(expected - names)
    assert not missing, f"not in the wheel (see setup.py): {missing}"
    assert "ditaccel/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_wheel_lacks_the_tools_that_the_checkout_has(wheel: Path) -> None:
    tools = {
        f"ditaccel/kernels/{path.relative_to(ROOT / 'kernels').as_posix()}"
        for path in (ROOT / "kernels").rglob("*.py")
        if path.name in TOOLS
    }
    assert {"ditaccel/kernels/aot.py", "ditaccel/kernels/attention/builds.py"} <= tools
    assert not tools & set(zipfile.ZipFile(wheel).namelist())
    # An editable install, which is what the tests run in, maps the folder.
    assert Path(importlib.import_module("ditaccel.kernels.attention.builds").__file__).exists()


def test_wheel_installs_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ditaccel"}


@pytest.fixture(scope="module")
def imported(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process of that environment finds out, since every start of torch takes seconds."""
    code = (
        "import importlib, importlib.util, json, sys, ditaccel\n"
        "heavy = ('diffusers', 'transformers', 'triton', 'matplotlib', 'torchmetrics', 'av')\n"
        "loaded = [name for name in heavy if name in sys.modules]\n"
        f"files = [importlib.import_module(n).__file__ for n in {PACKAGES!r}]\n"
        f"specs = {{n: importlib.util.find_spec(n) for n in {FORBIDDEN!r}}}\n"
        "origins = {n: str(s.origin) for n, s in specs.items() if s}\n"
        "print(json.dumps({'loaded': loaded, 'files': files, 'origins': origins}))"
    )
    return json.loads(run([python, "-c", code], tmp_path_factory.mktemp("out")).splitlines()[-1])


def test_packages_import_from_the_wheel(python: Path, imported: dict[str, Any]) -> None:
    venv = python.parent.parent.resolve()
    files = imported["files"]
    assert all(Path(file).resolve().is_relative_to(venv) for file in files), files


def test_no_folder_of_ours_becomes_a_top_level_import(imported: dict[str, Any]) -> None:
    found = imported["origins"]
    assert not {n: o for n, o in found.items() if "ditaccel" in o or str(ROOT) in o}, found


def test_import_is_lean(imported: dict[str, Any]) -> None:
    assert imported["loaded"] == []


def test_command_line_starts_from_the_wheel(python: Path, tmp_path: Path) -> None:
    script = python.parent / "ditaccel"
    assert "eval" in run([script, "--help"], cwd=tmp_path)


def test_sample_models_load_from_the_wheel(python: Path, tmp_path: Path) -> None:
    folder = ROOT / "samples" / "models" / "shapes-dit"
    if not (folder / "model_index.json").exists():
        pytest.skip("samples/models/shapes-dit is not in this checkout")
    code = (
        "import sys\n"
        "from ditaccel.io.models import load_pipeline, read_prompts, read_sheet\n"
        "sheet = read_sheet(sys.argv[1])\n"
        "print(type(load_pipeline(sys.argv[1])).__name__, len(read_prompts(sheet.prompts)) > 0)"
    )
    line = run([python, "-c", code, folder], cwd=tmp_path).splitlines()[-1]
    assert line == "DiTPipeline True"


def test_judge_of_the_samples_loads_from_the_wheel(python: Path, tmp_path: Path) -> None:
    folder = ROOT / "samples" / "models" / "shapes-features"
    if not folder.exists():
        pytest.skip("samples/models/shapes-features is not in this checkout")
    code = (
        "import sys, torch\n"
        "from ditaccel.eval.shapes.features import FeatureNet\n"
        "net = FeatureNet.from_pretrained(sys.argv[1])\n"
        "print(tuple(net.features(torch.rand(2, 3, 32, 32)).shape))"
    )
    shape = run([python, "-c", code, folder], cwd=tmp_path).splitlines()[-1]
    assert shape == "(2, 64)"


@pytest.mark.slow
def test_smoke_script(python: Path, tmp_path: Path) -> None:
    """What the release runs on the wheel: a tiny pipeline, undo, and doctor."""
    told = run([python, "-P", ROOT / ".ci" / "smoke.py"], cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "works" in told.splitlines()[-1] and str(ROOT) not in told, told
