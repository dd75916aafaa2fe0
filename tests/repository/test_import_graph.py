"""The shape of the house: floors, cycles, the size of rooms and functions, and method names."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import import_graph
from checkout import tracked
from import_graph import ROOT

MAX_FUNCTION = 60
MAX_ENTRIES = 19
# One file per member is what these rooms are for.
MEMBERS = {
    "ditaccel/attention",
    "ditaccel/caching",
    "ditaccel/finetuning/students",
    "eval/metrics",
    "pipelines",
    "tests",
    "tests/attention",
    "tests/caching",
    "tests/support/tiny",
}
# What every package has is not something to choose from.
_NO_ENTRY = {"__init__.py", "__main__.py", "README.md", "py.typed"}

# File -> why it may import a method's file or name a method in a text.
MAY_NAME = {
    "ditaccel/__init__.py": "the public names",
    "ditaccel/config/published.py": "which method `published:` means where none is named",
    "ditaccel/finetuning/command.py": "examples in --help",
    "ditaccel/tuning/command.py": "examples in --help",
    "ditaccel/tuning/masks.py": "what tune searches is a step mask",
    "eval/bench/attention.py": "times the clustering of one method",
    "eval/bench/maps/choice.py": "chooses the maps of one method",
    "eval/bench/overhead.py": "the configs that are timed by default",
    "eval/bench/sla.py": "times one method",
    "eval/bench/trajectory.py": "compares one forecast along a trajectory",
    "eval/command.py": "examples in --help",
}


def test_every_room_has_a_floor() -> None:
    floors = [room for floor in import_graph.FLOORS for room in floor]
    assert len(floors) == len(set(floors))
    assert set(floors) == set(import_graph.room_graph())


def test_no_arrow_leads_up() -> None:
    assert import_graph.upward(import_graph.room_graph()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = import_graph.cycles(import_graph.module_graph())
    short = {tuple(m.removeprefix("ditaccel.") for m in group) for group in found}
    assert short == set()


def test_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert import_graph.cycles(graph) == [["b", "c"]]
    assert import_graph.upward({"core": {"io", "errors"}}) == ["core -> io"]


def test_imports_in_functions_and_for_types_count() -> None:
    graph = import_graph.module_graph()
    assert "ditaccel.pipelines" in graph["ditaccel.config.specs"]  # inside a function
    assert "ditaccel.core.denoising.tracker" in graph["ditaccel.attention.engine.planner"]
    assert "ditaccel.attention" not in graph["ditaccel.config"]


def test_the_diagram_shows_the_arrows_between_rooms() -> None:
    assert "  api --> sessions\n" in import_graph.diagram()


def test_no_room_has_more_than_19_files_or_rooms() -> None:
    entries = defaultdict(set)
    for path in tracked():
        for folder in path.parents[:-1]:
            entries[folder.as_posix()].add(path.relative_to(folder).parts[0])
    rooms = {f for f, names in entries.items() if any(name.endswith(".py") for name in names)}
    sizes = {room: len(entries[room] - _NO_ENTRY) for room in rooms - MEMBERS}
    assert {room: n for room, n in sizes.items() if n > MAX_ENTRIES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {}
    for path in tracked():
        if path.suffix != ".py":
            continue
        for node in ast.walk(import_graph.tree(ROOT / path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            in_triton = any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
            if lines > MAX_FUNCTION and not in_triton:
                long[path.as_posix(), node.name] = lines
    assert long == {}


def _methods() -> dict[str, str]:
    """Name of each registered method -> the module that registers it."""
    found = {}
    for module, path in import_graph.sources().items():
        for node in ast.walk(import_graph.tree(path)):
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "method":
                    name = decorator.args[0]
                    assert isinstance(name, ast.Constant)
                    found[str(name.value)] = module
    return found


def _texts(path: Path) -> list[str]:
    """The string literals of a file but its docstrings."""
    documents, found = set(), []
    for node in ast.walk(import_graph.tree(path)):  # parents come before what is in them
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            documents.add(id(body[0].value))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in documents else [node.value]
    return found


def _naming(method: str, text: str) -> bool:
    """Whether a text names a method; `reuse` is also a word of English."""
    if method == "reuse":
        return text == method or "reuse:" in text
    return re.search(rf"(?<![\w-]){method}(?!\w)", text) is not None


def test_a_method_is_known_by_name_in_its_own_file_only() -> None:
    methods = _methods()
    assert {"taylorseer", "lite_attention"} <= methods.keys()
    found = set()
    for module, path in import_graph.sources().items():
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(("pipelines/", "eval/peers/", "ditaccel/finetuning/students/")):
            # presets are data; a peer is named like the method that it competes with; a student
            # trains a method
            continue
        for method, own in methods.items():
            # A method of several files has a package of its own.
            parent = own.rpartition(".")[0]
            home = own if parent == f"ditaccel.{import_graph.room_of(own)}" else parent
            if module == home or module.startswith(f"{home}."):
                continue
            named = any(_naming(method, text) for text in _texts(path))
            imported = any(o == home or o.startswith(f"{home}.") for o in _imports(module))
            if named or imported:
                found.add(where)
    assert found - MAY_NAME.keys() == set()


def _imports(module: str) -> set[str]:
    return import_graph.module_graph()[module]


def _is_of_the_command_line(path: Path) -> bool:
    return path.stem in ("cli", "command", "arguments") or path.parent.name == "bench"


def test_no_room_below_the_commands_writes_an_option_of_the_command_line() -> None:
    found = set()
    for path in import_graph.sources().values():
        if _is_of_the_command_line(path):
            continue
        # A text with spaces: others are arguments of programs, or CSS.
        messages = [text for text in _texts(path) if " " in text]
        if any(re.search(r"(?<![\w-])--[a-z][\w-]+(?![\w:-])", text) for text in messages):
            found.add(path.relative_to(ROOT).as_posix())
    # Options of another program: `ray start --head`.
    found -= {"ditaccel/batch/workers/ray_engine.py"}
    assert found == set()
