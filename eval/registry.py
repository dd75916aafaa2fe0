"""Tables of things that register themselves by being imported: metrics, peers, feature folders.

The files of a room are found and imported at the first look-up, so a new file is known without an
edit elsewhere; a module of the user's registers in the same way, whenever it is imported, and an
installed plugin is imported at the first look-up too (`ditaccel/plugins.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Generic, TypeVar

from ditaccel.errors import ConfigError
from ditaccel.io.given import suggest
from ditaccel.plugins import load_plugins

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order of their registration.

    Args:
        kind: what an entry is, for messages.
        rooms: packages whose modules register entries.
    """

    def __init__(self, kind: str, *rooms: str) -> None:
        self._kind, self._rooms = kind, rooms
        self._entries: dict[str, tuple[T, str]] = {}
        self._found = False

    def add(self, name: str, entry: T) -> T:
        """Register an entry.

        It is called by a `register` function, whose caller is the owner of the name. A module may
        register its own names again: a cell of a notebook that runs twice does.

        Args:
            name: of the entry.
            entry: what it stands for.

        Raises:
            ConfigError: another module has registered the name.
        """
        owner = sys._getframe(2).f_globals.get("__name__", "?")
        if not any(owner.startswith(f"{room}.") for room in self._rooms):
            self._discover()  # or a name of ours would seem to be free
        taken = self._entries.get(name)
        if taken is not None and taken[1] != owner:
            raise ConfigError(
                f"{owner} registers the {self._kind} {name!r}, which {taken[1]} has registered: "
                "choose another name"
            )
        self._entries[name] = (entry, owner)
        return entry

    def remove(self, name: str) -> None:
        """Take an entry out again, where there is one."""
        self._entries.pop(name, None)

    def __getitem__(self, name: str) -> T:
        """The entry of a name.

        Raises:
            ConfigError: there is none.
        """
        self._discover()
        if name not in self._entries:
            raise ConfigError(f"no {self._kind} {name!r}{suggest(name, self._entries)}")
        return self._entries[name][0]

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(list(self._entries))

    def values(self) -> list[T]:
        """All entries."""
        self._discover()
        return [entry for entry, _ in self._entries.values()]

    def _discover(self) -> None:
        if self._found:
            return
        self._found = True
        for room in self._rooms:
            for module in pkgutil.iter_modules(importlib.import_module(room).__path__):
                importlib.import_module(f"{room}.{module.name}")
        load_plugins()
