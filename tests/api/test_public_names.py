"""The public names and their signatures, held by a snapshot: who changes them sees it in a diff.

To take a change over, write the snapshot again and commit it:

    python -P tests/api/test_public_names.py
"""

import difflib
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import ditaccel

SNAPSHOT = Path(__file__).with_name("public_names.txt")


def _signature(value):
    """The parameters and what is returned, without addresses in memory."""
    try:
        parameters = inspect.signature(value)
    except (TypeError, ValueError):
        return []
    lines, named = [], False
    for parameter in parameters.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            lines.append("*")
            named = True
        lines.append(re.sub(r" at 0x[0-9a-f]+", "", str(parameter)))
    returned = parameters.return_annotation
    return [*lines, *([] if returned is parameters.empty else [f"-> {returned}"])]


def _members(cls):
    """Public methods and properties that a class itself, or a base of ours, defines."""
    found = {}
    own = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("ditaccel"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or name in own:
                continue
            if isinstance(member, property):
                found[name] = ["(property)"]
            elif isinstance(member, (classmethod, staticmethod)):
                found[name] = _signature(getattr(cls, name))
            elif inspect.isfunction(member):
                found[name] = _signature(member)
    return found


def written():
    """Each public name and each public member of a class, with one parameter per line."""
    lines = []
    for name in sorted(ditaccel.__all__):
        value = getattr(ditaccel, name)
        listed = {f"{'class' if inspect.isclass(value) else 'def'} {name}": _signature(value)}
        if inspect.isclass(value):
            listed |= {f"  .{m}": found for m, found in sorted(_members(value).items())}
        for head, parameters in listed.items():
            lines += [head, *(f"    {parameter}" for parameter in parameters)]
    return "\n".join(lines) + "\n"


def test_public_names_and_signatures_are_those_of_the_snapshot():
    known, now = SNAPSHOT.read_text(encoding="utf-8"), written()
    changes = difflib.unified_diff(
        known.splitlines(), now.splitlines(), "public_names.txt", "ditaccel", lineterm="", n=0
    )
    assert known == now, (
        "the public names changed; if that is meant, run python -P tests/api/test_public_names.py "
        "and commit the snapshot:\n" + "\n".join(changes)
    )


def test_every_public_name_is_documented():
    for name in ditaccel.__all__:
        value = getattr(ditaccel, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value) and value.__module__.startswith("ditaccel"):
            for member in _members(value):
                assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"


def test_names_are_sorted_and_listed_once():
    assert list(ditaccel.__all__) == sorted(set(ditaccel.__all__))
    assert set(ditaccel.__all__) <= set(dir(ditaccel))


if __name__ == "__main__":
    SNAPSHOT.write_text(written(), encoding="utf-8")
