"""The documentation's site: every document is a page of it, and every link leads to a page."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import documents
import pytest
from checkout import ROOT

import ditaccel

# Documents that are not pages: cards of samples, and tables that are read where they are linked.
# Cards of weights and single tables; a page leads to them.
NO_PAGES = ("samples/models/", "samples/adapters/", "eval/bench/results/")
RESULTS = "eval/bench/results/README.md"
LOCAL = re.compile(r"\]\(([^)#:\s]+)(?:#([^)\s]+))?\)")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """`.docs/build.py`."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / ".docs" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_document_is_a_page(build: ModuleType) -> None:
    written = {source for source in build.PAGES if not source.startswith("api/")}
    there = {path for path in documents.documents() if not path.startswith(NO_PAGES)}
    assert written == there | {RESULTS}
    assert len(set(build.PAGES.values())) == len(build.PAGES), "two pages have one address"


def test_links_lead_to_pages(build: ModuleType, tmp_path: Path) -> None:
    texts = {
        page: build.converted(source, tmp_path)
        for source, page in build.PAGES.items()
        if not source.startswith("api/")
    }
    sources = {page: source for source, page in build.PAGES.items()}
    pictures = 0
    for page, text in texts.items():
        assert "```mermaid" not in text
        for target, anchor in LOCAL.findall(re.sub(r"(?ms)^```.*?^```$", "", text)):
            place = (tmp_path / page).parent / target
            there = str(place.resolve().relative_to(tmp_path.resolve()))
            if there.startswith("pictures/"):
                assert place.resolve().is_file(), f"{page}: {target}"
                pictures += 1
                continue
            assert there in texts, f"{page}: {target}"
            assert not anchor or anchor in documents.anchors(sources[there]), f"{page}: {target}"
    assert pictures > 3


def test_public_names_are_listed(build: ModuleType) -> None:
    functions, classes = build.public_names()
    assert sorted([*functions, *classes]) == sorted(ditaccel.__all__)


@pytest.mark.slow
def test_commands_are_listed(build: ModuleType) -> None:
    text = build.commands(sys.executable)
    for name in ("eval", "tune", "generate", "doctor", "export"):
        assert f"\n## ditaccel {name}\n" in text
    assert "--psnr" in text and str(ROOT) not in text


def test_a_page_that_needs_the_network_is_found(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<script src="https://a.example/x.js"></script>')
    (tmp_path / "b.html").write_text('<a href="https://a.example">link</a><script src="x.js">')
    (tmp_path / "c.html").write_text('<link rel="stylesheet" href="//a.example/x.css">')
    assert sorted(build.outside(tmp_path)) == ["a.html", "c.html"]


@pytest.mark.slow
def test_it_builds(tmp_path: Path) -> None:
    python = ROOT / ".venv-docs" / "bin" / "python"
    if not python.exists():
        pytest.skip("its tools are not installed (`make docs-site` installs them)")
    out = tmp_path / "site"
    script = [str(python), str(ROOT / ".docs" / "build.py"), "--out", str(out)]
    done = subprocess.run([*script, "--python", sys.executable], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accelerate" in (out / "api" / "functions.html").read_text()
