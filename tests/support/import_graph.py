"""The import graph of the package, drawn from its source alone.

Every import counts, also those inside functions and those for type checking. A room is a folder in
the root of the package (`ditaccel.core`, `ditaccel.kernels`) or a single file there (`api.py`).
`make docs` writes the diagram of the rooms into CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folder -> package (see `setup.py`).
PACKAGES = {
    "ditaccel": "ditaccel",
    **{room: f"ditaccel.{room}" for room in ("kernels", "pipelines", "eval")},
}
# From the ground up: a room imports rooms of lower floors only, and none of its own floor.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "warning", "kernels"),
    ("plugins",),
    ("pipelines",),
    ("core",),
    ("io",),
    ("config",),
    ("caching", "attention"),
    ("calls",),
    ("reports",),
    ("sessions",),
    ("api",),
    ("batch", "diagnosis", "finetuning", "tuning"),
    ("export",),
    ("eval",),
    ("ditaccel",),
    ("cli",),
    ("__main__",),
)

Graph = dict[str, set[str]]


@cache
def sources() -> dict[str, Path]:
    """All modules of the package by their full name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(module: str) -> set[str]:
    """The modules of the package that a module imports, wherever in its text."""
    known = sources()
    is_package = known[module].name == "__init__.py"
    package = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(tree(known[module])):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join((*above, *filter(None, [node.module])))
            # `from .. import config` names a module, `from ..errors import X` something in one.
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & known.keys()
            found |= {base} if not inner <= known.keys() else set()
    return (found & known.keys()) - {module}


@cache
def module_graph() -> Graph:
    """Module -> the modules that it imports; a room that is discovered is named in no import."""
    return {module: _imports(module) for module in sources()}


def room_of(module: str) -> str:
    """The room of a module: `core`, `kernels`, `api`; `ditaccel` for the package's own face."""
    return module.split(".")[1] if "." in module else module


def room_graph() -> Graph:
    """Room -> the rooms that something in it imports."""
    found: Graph = {}
    for module, imported in module_graph().items():
        here = room_of(module)
        found.setdefault(here, set()).update({room_of(other) for other in imported} - {here})
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's algorithm), each of them sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            start = stack.index(node)
            if len(stack) - start > 1:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Arrows between rooms that do not lead to a lower floor, as `room -> room`."""
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    return sorted(
        f"{room} -> {other}"
        for room, others in graph.items()
        for other in others
        if floor[other] >= floor[room]
    )


def _without_detours(graph: Graph) -> Graph:
    """The arrows of an acyclic graph that no longer way replaces."""

    def reached(node: str) -> set[str]:
        return graph[node].union(*map(reached, graph[node]))

    return {
        node: {o for o in others if not any(o in reached(n) for n in others - {o})}
        for node, others in graph.items()
    }


def diagram() -> str:
    """The rooms as a Mermaid diagram; an arrow that follows from two others is left out."""
    arrows = _without_detours(room_graph())
    lines = ["```mermaid", "graph TD"]
    for floor in reversed(FLOORS):
        for room in sorted(set(floor) - {"__main__"}):
            lines += [f"  {room} --> {other}" for other in sorted(arrows.get(room, ()))]
    return "\n".join([*lines, "```"])
