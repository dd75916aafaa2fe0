"""Build the documentation as a static site, from the READMEs, the docstrings and the commands.

    make docs-site

The READMEs stay what they are: their links lead from file to file. Here, those to other pages are
rewritten, pictures are copied, and links to files that are no page become plain words. Pages that
only the site has are in `pages/`. mkdocstrings reads the docstrings without importing anything.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Sections and their pages: title, and the file that it is made from; `api` and `cli` are generated.
NAV: dict[str, dict[str, str]] = {
    "Start": {
        "Quick start": "README.md",
        "Choose a method": ".docs/pages/choose.md",
        "Recipes": "samples/recipes/README.md",
        "ComfyUI": "samples/comfyui/README.md",
        "Engines": "ditaccel/export/README.md",
        "Questions": ".docs/pages/questions.md",
        "Samples": "samples/README.md",
        "Changes": "CHANGELOG.md",
    },
    "Use": {
        "The plugin": "ditaccel/README.md",
        "Models": "pipelines/README.md",
        "Batch jobs": "ditaccel/batch/README.md",
        "Many machines": "samples/cluster/README.md",
        "Fine-tuning": "ditaccel/finetuning/README.md",
    },
    "Methods": {
        "Caching": "ditaccel/caching/README.md",
        "Sparse attention": "ditaccel/attention/README.md",
        "Calls": "ditaccel/calls/README.md",
        "Kernels": "kernels/README.md",
    },
    "Figures": {
        "Evaluation": "eval/README.md",
        "Committed results": "eval/bench/results/README.md",
    },
    "Reference": {
        "Functions": "api/functions.md",
        "Configs and classes": "api/classes.md",
        "Commands": "api/commands.md",
    },
    "Inside": {
        "How it works": ".docs/pages/how.md",
        "Contributing": "CONTRIBUTING.md",
    },
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_EXTERNAL = re.compile(r"""<(?:script|img|iframe)\b[^>]*\ssrc=["']?(https?:)?//""")
_STYLESHEET = re.compile(r"""<link\b[^>]*rel=["']?stylesheet[^>]*href=["']?(https?:)?//""")


def address(source: str) -> str:
    """The page of the site that a file becomes."""
    path = Path(source)
    if source == "README.md":
        return "index.md"
    if path.name == "README.md":
        return "/".join(path.parts[:-1]) + ".md"
    return path.name.lower() if source.startswith(".docs/") else source.lower()


PAGES = {
    source: address(source) for pages in NAV.values() for source in pages.values()
}  # source -> page


def converted(source: str, pages: Path) -> str:
    """The text of a page, with links as the site needs them.

    Args:
        source: the file, from the top of the repository.
        pages: folder that the pages are written to; pictures are copied there.
    """
    here = PAGES[source]

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        file, _, anchor = target.partition("#")
        path = source if not file else os.path.normpath(Path(source).parent / file)
        index = str(Path(path) / "README.md")
        path = index if index in PAGES and path not in PAGES else path
        if path in PAGES:
            place = os.path.relpath(PAGES[path], Path(here).parent)
            return f"[{label}]({place}{'#' + anchor if anchor else ''})"
        if picture:
            copy = pages / "pictures" / path.replace("/", "-")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, copy)
            place = os.path.relpath(copy.relative_to(pages), Path(here).parent)
            return f"![{label}]({place})"
        return label if "`" in label else f"{label} (`{path}`)"

    parts = _FENCE.split((ROOT / source).read_text(encoding="utf-8"))
    text = "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)
    # Markdown inside HTML is read only where it says so; diagrams would be drawn from the network.
    text = text.replace("<details>", '<details markdown="1">').replace("```mermaid", "```text")
    return re.sub(r"(?<=[^\n|])\n(\* |- |\d+\. )", _as_list, text)


def _as_list(found: re.Match[str]) -> str:
    """A list behind a line of text: GitHub sees it there, Python-Markdown needs an empty line."""
    before = found.string[: found.start()].rpartition("\n")[2]
    joined = re.match(r"\s*(\* |- |\d+\. |  )", before) is not None
    return found[0] if joined else "\n" + found[0]


def public_names() -> tuple[list[str], list[str]]:
    """Functions and classes of `ditaccel.__all__`, read without importing it."""
    tree = ast.parse((ROOT / "ditaccel" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
            return [n for n in names if n[0].islower()], [n for n in names if n[0].isupper()]
    raise SystemExit("ditaccel/__init__.py has no __all__")


def commands(python: str) -> str:
    """All commands with their options, as `--help` prints them."""
    code = (
        "from ditaccel import cli\n"
        "for name in cli.COMMANDS:\n"
        "    print(f'\\n## ditaccel {name}\\n\\n```text')\n"
        "    print(cli._parser(name).chosen.format_help().rstrip())\n"
        "    print('```')\n"
    )
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"docs-site: the commands could not be read: {done.stderr.strip()}")
    return f"# Commands\n\nEach has a function of the same name.\n{done.stdout}"


def sources(work: Path, python: str) -> Path:
    """Write all pages; returns their folder."""
    pages = work / "pages"
    for source, page in PAGES.items():
        place = pages / page
        place.parent.mkdir(parents=True, exist_ok=True)
        if not source.startswith("api/"):
            place.write_text(converted(source, pages), encoding="utf-8")
    functions, classes = public_names()
    for name, title, members in (
        ("functions", "Functions", functions),
        ("classes", "Configs and classes", classes),
    ):
        text = "\n\n".join(f"::: ditaccel.{member}" for member in members)
        (pages / f"api/{name}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
    (pages / "api/commands.md").write_text(commands(python), encoding="utf-8")
    shutil.copy(HERE / "style.css", pages)
    return pages


def tree(work: Path) -> Path:
    """The package as it is imported: the rooms next to it are parts of it (see `setup.py`)."""
    package = work / "tree" / "ditaccel"
    package.mkdir(parents=True)
    for path in (ROOT / "ditaccel").iterdir():
        (package / path.name).symlink_to(path)
    for room in ("kernels", "pipelines", "eval"):
        (package / room).symlink_to(ROOT / room)
    return package.parent


def configuration(work: Path, pages: Path, out: Path) -> Path:
    """The settings of MkDocs with pages and folders filled in."""
    settings: dict[str, Any] = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
    settings["docs_dir"], settings["site_dir"] = str(pages), str(out)
    settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(tree(work))]
    settings["nav"] = [
        {section: [{title: PAGES[source]} for title, source in found.items()]}
        for section, found in NAV.items()
    ]
    path = work / "mkdocs.yml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def outside(out: Path) -> list[str]:
    """Pages that would fetch something from another host when they are viewed."""
    return [
        str(page.relative_to(out))
        for page in out.rglob("*.html")
        for text in [page.read_text(encoding="utf-8")]
        if _EXTERNAL.search(text) or _STYLESHEET.search(text)
    ]


def main() -> None:
    """Build the site; ends with an error where a link is broken or a page needs the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--python", default=sys.executable, help="one that imports ditaccel")
    args = parser.parse_args()
    work = ROOT / "build" / "site-sources"
    shutil.rmtree(work, ignore_errors=True)
    pages = sources(work, args.python)
    config = configuration(work, pages, args.out.resolve())
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(config)]
    if subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode:
        raise SystemExit("docs-site: the site was not built; the lines above say why")
    if found := outside(args.out):
        raise SystemExit(f"docs-site: these pages would fetch from the network: {', '.join(found)}")
    print(f"docs-site: open {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
