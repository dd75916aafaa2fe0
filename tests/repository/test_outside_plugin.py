"""A package outside the repository adds one of each kind of thing, and nothing of ours changes.

`outside/` is what its author writes. The tests copy it to a temporary folder and put down the
metadata that `pip install` would: the entry point of its `pyproject.toml` is all that names it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = ROOT / "samples" / "models" / "shapes-flux"
MAKE = "outside_ditaccel.model:make"
ROOMS = ("ditaccel", "kernels", "pipelines", "eval", "tests/support", "tests/conformance")


def install(folder, project):
    """What `pip install` leaves: the package, and metadata with its entry points."""
    facts = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for package in project.iterdir():
        if package.is_dir() and package.name != "__pycache__":
            shutil.copytree(package, folder / package.name)
    told = folder / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n"
    )
    lines = []
    for group, points in facts["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")


def fingerprint():
    """Hash of every file that is ours."""
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package installed; our files are the same after all tests."""
    folder, before = tmp_path_factory.mktemp("site"), fingerprint()
    install(folder, HERE / "outside")
    yield folder
    assert fingerprint() == before


def python(site, *words, more=(), status=0):
    """Run Python with the package on its path, as in an environment that has it."""
    path = os.pathsep.join(map(str, (site, *more)))
    env = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *map(str, words)], env=env, capture_output=True, text=True
    )
    assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


def test_doctor_knows_the_family_and_tries_the_methods(site):
    told = python(site, "-m", "ditaccel", "doctor", MODEL, "--pipeline", MAKE, "--json").stdout
    found = json.loads(told)
    assert found["family"] == "outside" and found["ok"]
    methods = {each["name"]: each for each in found["methods"]}
    assert methods["multiples"]["kind"] == "cache" and not methods["multiples"]["reason"]
    assert methods["diagonal"]["kind"] == "attention" and not methods["diagonal"]["reason"]
    assert methods["rounded"]["kind"] == "calls" and not methods["rounded"]["reason"]


SCRIPT = """
import torch

import ditaccel
from ditaccel import config

assert "multiples" in ditaccel.methods() and "outside" in ditaccel.families()
from outside_ditaccel.cache import MultiplesConfig
from outside_ditaccel.model import make

pipe = make({model!r})
pipe.set_progress_bar_config(disable=True)


def run():
    seed = torch.Generator().manual_seed(0)
    call = dict(height=64, width=64, num_inference_steps=8, output_type="np", generator=seed)
    return pipe("a red circle", **call).images


dense = run()
diagonal = "diagonal:reach=0,q_tile=16,k_tile=16,min_tokens=0,break_even=1"
ditaccel.accelerate(pipe, MultiplesConfig(every=4), diagonal)
run()
report = ditaccel.report(pipe)
assert report.forecasts == 6 and report.attention[0].density < 1, report
config.dump(config.parse_spec("multiples:every=4 & rounded:digits=1"), {file!r})
ditaccel.accelerate(pipe, {file!r})
run()
(log,) = ditaccel.report(pipe).call_logs
assert log.calls == log.changed > 0, log
ditaccel.restore(pipe)
assert (run() == dense).all()
"""


def test_accelerate_takes_its_methods_like_ours(site, tmp_path):
    text = SCRIPT.format(model=str(MODEL), file=str(tmp_path / "mine.yaml"))
    python(site, "-c", text)


CONFORMANCE = """
from conformance import METHODS, WORKS, Subject, check_isolation, check_method
from tiny import FAMILIES, TinyFamily, tiny_flux

from outside_ditaccel.model import renamed


def outside():
    pipe, call = tiny_flux()
    return renamed(pipe), {**call, "height": 176, "width": 176}


own = Subject(TinyFamily(outside, "outside"), 5)
assert {"multiples", "diagonal", "rounded"} <= set(METHODS)
found = {method: check_method(own, method) for method in METHODS}
refused = {method: why for method, why in found.items() if why != WORKS}
assert set(refused) == {"condition_cache"}, refused  # (it is given no reference images)
check_isolation(own, " & ".join(METHODS[m].skipping for m in ("multiples", "diagonal", "rounded")))
for name in ("wan", "sd3"):
    subject = Subject(FAMILIES[name], 5)
    for method in ("multiples", "diagonal", "rounded"):
        assert check_method(subject, method, thorough=True) == WORKS, (name, method)
"""


def test_it_passes_the_checks_of_every_family_and_method(site):
    python(site, "-c", CONFORMANCE, more=[ROOT / "tests" / "support"])


def test_eval_compares_its_methods_and_its_peer_by_its_metric(site, tmp_path):
    out = tmp_path / "out"
    diagonal = "diagonal:reach=0,q_tile=16,k_tile=16,min_tokens=0,break_even=1"
    rows = {"multiples": "multiples:every=2", "diagonal": diagonal, "peer": "peer/hold:every=2"}
    configs = [word for spec in rows.values() for word in ("--config", spec)]
    size = ["--limit", 1, "--steps", 6, "--pairs", 1, "--call", "height=64", "--call", "width=64"]
    words = [MODEL, "--pipeline", MAKE, *configs, *size, "--out", out, "--device", "cpu", "--quiet"]
    printed = python(site, "-m", "ditaccel", "eval", *words).stdout
    assert "levels off" in printed
    found = json.loads((out / "summary.json").read_text())["configs"]
    assert found["dense"]["levels_off"] == 0
    for row in rows:
        (figures,) = [each for name, each in found.items() if name.startswith(row)]
        assert figures["levels_off"] > 0, row
    assert "levels off" in (out / "report.html").read_text()


BROKEN = '[project]\nname = "broken"\nversion = "1"\n[project.entry-points."ditaccel.plugins"]\n'


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("raise ValueError('no\\nluck')", "ValueError: no luck"),
        (
            "from ditaccel.config import CacheConfig, method\n"
            "@method('taylorseer')\nclass TakenConfig(CacheConfig): pass",
            "ConfigError: method 'taylorseer', TakenConfig: this name is taken by",
        ),
        (
            "from ditaccel.pipelines import FamilyAdapter, register_family\n"
            "register_family(FamilyAdapter('flux_again', ('FluxTransformer2DModel',), ()))",
            "FluxTransformer2DModel belongs to the family 'flux'",
        ),
        (
            "from ditaccel.eval.metrics.base import Metric, register\n"
            "register(Metric(key='m', title='M', unit='mile', better='lower', about='far'))",
            "metric 'm': unit is 'mile'; it must be one of: dB",
        ),
    ],
)
def test_a_broken_plugin_costs_one_line_and_nothing_else(site, tmp_path, code, line):
    (tmp_path / "project" / "broken_ditaccel").mkdir(parents=True)
    (tmp_path / "project" / "broken_ditaccel" / "__init__.py").write_text(code)
    (tmp_path / "project" / "pyproject.toml").write_text(f'{BROKEN}broken = "broken_ditaccel"\n')
    (tmp_path / "site").mkdir()
    install(tmp_path / "site", tmp_path / "project")
    show = "import ditaccel; print(sorted(ditaccel.methods()), sorted(ditaccel.families()))"
    done = python(site, "-c", show, more=[tmp_path / "site"])
    assert "multiples" in done.stdout and "taylorseer" in done.stdout and "outside" in done.stdout
    (said,) = [text for text in done.stderr.splitlines() if "ditaccel: " in text]
    assert line in said and "the plugin 'broken' (broken_ditaccel) could not be loaded" in said
