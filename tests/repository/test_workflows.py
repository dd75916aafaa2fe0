"""The workflow files are read as GitHub reads them, and call what there is.

They cannot run here: what they call is in `.ci/`, which runs anywhere.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))


def _read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    found["on"] = found.pop(True)  # YAML 1.1 reads the key `on` as a truth value
    return found


def test_there_are_two() -> None:
    assert [path.name for path in FILES] == ["release.yml", "test.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_jobs(path: Path) -> None:
    workflow = _read(path)
    assert set(workflow) <= {"name", "on", "permissions", "concurrency", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}, "the least, unless a job says more"
    for name, job in workflow["jobs"].items():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"]), name
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file() and "steps" not in job
            continue
        assert job["runs-on"].startswith("ubuntu-") and job["steps"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", step["uses"]), step
            else:
                script = ROOT / step["run"].split()[0]
                assert script.is_file() and script.stat().st_mode & 0o111, script


def test_a_release_is_tested_first_and_needs_no_secret() -> None:
    jobs = _read(FOLDER / "release.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build" and jobs["build"]["needs"] == "test"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (FOLDER / "release.yml").read_text()


def test_pythons_are_those_of_the_package() -> None:
    pythons = _read(FOLDER / "test.yml")["jobs"]["wheel"]["strategy"]["matrix"]["python"]
    text = (ROOT / "pyproject.toml").read_text()
    assert pythons == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
