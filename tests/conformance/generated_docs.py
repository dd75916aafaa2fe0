"""The tables of the documents, written from the classes and data that they describe.

    make docs

A table stands in any Markdown file between `<!-- generated: NAME -->` and `<!-- end of NAME -->`;
`TABLES` says what makes it. A test fails where one is stale.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import import_graph
import support_table
from ditaccel.eval.metrics.base import Metric, metrics
from ditaccel.eval.peers.base import PEERS
from ditaccel.pipelines import FamilyAdapter
from documents import ROOT, documents
from tiny import FAMILIES

from ditaccel import config, pipelines

_MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_OPTION = re.compile(r"^        (\w+): (.*?)(?=^        \w|\Z)", re.DOTALL | re.MULTILINE)
_ARXIV = re.compile(r"\d{4}\.\d{5}")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    top, *body = (
        f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in (head, *rows)
    )
    return "\n".join([top, "|---" * len(head) + "|", *body])


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0].rstrip(".")


def _own(kind: str) -> list[type[config.MethodConfig]]:
    """The methods of a kind, those that are there to be compared with last."""
    found = [cls for cls in config.methods().values() if cls.kind == kind]
    return sorted(found, key=lambda cls: (cls.baseline, cls.method))


def _source(cls: type[config.MethodConfig]) -> str:
    if not cls.paper:
        return "to compare with" if cls.baseline else "this project"
    if _ARXIV.fullmatch(cls.paper):
        return f"[{cls.paper}](https://arxiv.org/abs/{cls.paper})"
    return f"[{cls.paper.rstrip('/').rpartition('/')[2]}]({cls.paper})"


def methods(kind: str) -> str:
    """What there is of a kind."""
    rows = [
        (f"`{c.method}`", f"`{c.__name__}`", _first_line(c.__doc__), _source(c)) for c in _own(kind)
    ]
    return table(("method", "config", "what it does", "source"), rows)


def _meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its options."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, text = (base.__dict__.get("__doc__") or "").partition("    Args:\n")
        text = re.split(r"^    \w", text, maxsplit=1, flags=re.MULTILINE)[0]
        for name, meaning in _OPTION.findall(text):
            found[name] = " ".join(meaning.partition("\n\n")[0].split())
    return found


def options(kind: str) -> str:
    """Each method's options, folded."""
    parts = []
    for cls in _own(kind):
        meanings = _meanings(cls)
        fields = dataclasses.fields(cls)
        rows = [(f"`{f.name}`", f"`{f.default!r}`", meanings[f.name]) for f in fields]
        body = table(("option", "default", "meaning"), rows)
        head = f"<summary><code>{cls.__name__}</code></summary>"
        parts.append(f"<details>{head}\n\n{body}\n\n</details>")
    return "\n".join(parts)


@cache
def pipelines_of_diffusers() -> Mapping[str, list[str]]:
    """Transformer class -> pipeline classes that take it, as diffusers' source says."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    found: dict[str, list[str]] = {}
    for path in sorted(Path(spec.origin).parent.glob("pipelines/**/*.py")):
        for part in re.split(r"^(?=class )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            name = re.match(r"class (\w+(?:Pipeline|Refiner))\b", part)
            if name is None or "def __init__(" not in part:
                continue
            signature = part.partition("def __init__(")[2].partition("):")[0]
            for hint in re.findall(r"transformer\w*: *([\w| ]+)", signature):
                for kind in re.findall(r"\w+", hint):
                    names = found.setdefault(kind, [])
                    names += [] if name[1] in names else [name[1]]
    for path in sorted(Path(spec.origin).parent.glob("modular_pipelines/*/modular_pipeline.py")):
        text = "".join(each.read_text(encoding="utf-8") for each in path.parent.glob("*.py"))
        names = re.findall(r"^class (\w+ModularPipeline)\b", text, re.MULTILINE)
        part = r'ComponentSpec\(\s*(?:"transformer\w*"|self\.transformer_name), (\w+)\)'
        for kind in set(re.findall(part, text)):
            found.setdefault(kind, []).extend(names)
    return found


def _about(adapter: FamilyAdapter) -> str:
    """What the docstring of its file calls it."""
    for module in pkgutil.iter_modules(pipelines.__path__):
        loaded = sys.modules[f"{pipelines.__name__}.{module.name}"]
        if getattr(loaded, "ADAPTER", None) is adapter:
            return _first_line(inspect.getdoc(loaded)).partition(":")[0]
    raise LookupError(adapter.name)


def families() -> str:
    """What there is in `pipelines/`."""
    where = {"none": "not in it", "front": "in front", "back": "behind"}
    rows = []
    for adapter in pipelines.adapters().values():
        names = [n for kind in adapter.transformers for n in pipelines_of_diffusers()[kind]]
        rows.append(
            (
                adapter.name,
                _about(adapter),
                ", ".join(f"`{name}`" for name in adapter.transformers),
                ", ".join(f"`{name}`" for name in sorted(names)),
                where[adapter.text],
                "yes" if adapter.attention else f"no: {adapter.no_attention_because}",
            )
        )
    version = importlib.metadata.version("diffusers")
    pipes = f"pipelines of diffusers {version} that take it"
    return table(
        ("family", "model", "transformer", pipes, "text tokens", "attention methods"), rows
    )


def metric_table() -> str:
    """What `ditaccel eval` measures."""

    def row(metric: Metric) -> tuple[str, ...]:
        needs = [need.value for need in metric.needs if need.value != "pictures"]
        return (
            f"`{metric.key}`",
            metric.title,
            metric.about,
            str(metric.unit),
            "–" if str(metric.better) == "none" else str(metric.better),
            str(metric.per),
            ", ".join(needs) or "–",
        )

    head = ("key", "metric", "measures", "unit", "better", "per", "needs")
    # (the registry's order is that of the imports of this process)
    ordered = sorted(metrics(), key=lambda metric: (str(metric.per), metric.title.lower()))
    judge = (
        "A judge of the sample's own adds accuracies: whether a picture shows what its prompt says."
    )
    return f"{table(head, [row(metric) for metric in ordered])}\n\n{judge}"


def peers() -> str:
    """Whose caches `ditaccel eval` runs."""
    rows = []
    for name in sorted(PEERS):
        peer = PEERS[name]
        given = ", ".join(f"{key}={value}" for key, value in peer.options.items())
        rows.append((f"`{name}`", given, peer.note))
    return table(("peer", "options", "note"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "rooms": import_graph.diagram,
    "caching methods": lambda: methods("cache"),
    "options of caching methods": lambda: options("cache"),
    "attention methods": lambda: methods("attention"),
    "options of attention methods": lambda: options("attention"),
    "call methods": lambda: methods("calls"),
    "options of call methods": lambda: options("calls"),
    "families": families,
    "metrics": metric_table,
    "peers": peers,
    "support table": lambda: support_table.render(
        {name: row for name, row in support_table.read().items() if name in FAMILIES}
    ),
}


def filled(text: str) -> str:
    """A document with its tables written again; those that `TABLES` does not know stay."""

    def written(match: re.Match[str]) -> str:
        make = TABLES.get(match[2])
        return match[0] if make is None else f"{match[1]}{make()}\n{match[3]}"

    return _MARKED.sub(written, text)


def marked() -> dict[str, list[str]]:
    """Name of a table -> the documents that it is in."""
    found: dict[str, list[str]] = {}
    for path in documents():
        for match in _MARKED.finditer((ROOT / path).read_text(encoding="utf-8")):
            found.setdefault(match[2], []).append(path)
    return found


def main() -> None:
    """Write all tables; print which documents have changed."""
    for path in sorted({path for paths in marked().values() for path in paths}):
        old = (ROOT / path).read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            (ROOT / path).write_text(new, encoding="utf-8")
            print(f"{path}: tables updated")


if __name__ == "__main__":
    main()
