"""What a user gets from the wheel, seen from a clean environment (no network, seconds)."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ditaccel", "kernels", "pipelines", "eval")
PACKAGES = ("ditaccel", "ditaccel.kernels", "ditaccel.pipelines", "ditaccel.eval")
# Names that our own folders have, and that must never become top-level imports of a user.
FORBIDDEN = ("kernels", "pipelines", "eval", "tests", "samples")
DATA = (".py", ".html", ".css", ".js", ".yaml", ".json", ".typed")

# Tools for developers of the kernels, named in setup.py too.
TOOLS = ("aot.py", "build.py", "builds.py", "fuzz.py")

pytestmark = pytest.mark.xdist_group("packaging")


def _run(command: list[str | Path], cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves `build/` behind in its source folder."""
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out]
    _run([sys.executable, "-m", "pip", "wheel", *options, source], cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel; torch and the rest are borrowed from this one."""
    folder = tmp_path_factory.mktemp("user")
    _run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    _run([sys.executable, "-m", "pip", *install], cwd=folder)
    # A path line adds the folder without running its own .pth files, so that the editable
    # install of this checkout stays out.
    site = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site.strip()) / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return python


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


def test_packages_import_from_the_wheel(python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, json\n"
        f"print(json.dumps([importlib.import_module(n).__file__ for n in {PACKAGES!r}]))"
    )
    files = json.loads(_run([python, "-c", code], cwd=tmp_path).splitlines()[-1])
    venv = python.parent.parent.resolve()
    assert all(Path(file).resolve().is_relative_to(venv) for file in files), files


def test_no_folder_of_ours_becomes_a_top_level_import(python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, json\n"
        f"specs = {{n: u.find_spec(n) for n in {FORBIDDEN!r}}}\n"
        "print(json.dumps({n: str(s.origin) for n, s in specs.items() if s}))"
    )
    found = json.loads(_run([python, "-c", code], cwd=tmp_path).splitlines()[-1])
    assert not {n: o for n, o in found.items() if "ditaccel" in o or str(ROOT) in o}, found


def test_import_is_lean(python: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json, ditaccel\n"
        "heavy = ('diffusers', 'transformers', 'triton', 'matplotlib', 'torchmetrics', 'av')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    assert json.loads(_run([python, "-c", code], cwd=tmp_path).splitlines()[-1]) == []


def test_command_line_starts_from_the_wheel(python: Path, tmp_path: Path) -> None:
    script = python.parent / "ditaccel"
    assert "eval" in _run([script, "--help"], cwd=tmp_path)


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
    line = _run([python, "-c", code, folder], cwd=tmp_path).splitlines()[-1]
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
    shape = _run([python, "-c", code, folder], cwd=tmp_path).splitlines()[-1]
    assert shape == "(2, 64)"
