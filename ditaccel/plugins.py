"""Packages of other people: methods, families, metrics and peers that are found once installed.

A package names a module of its own in the entry-point group `ditaccel.plugins`:

    [project.entry-points."ditaccel.plugins"]
    my_package = "my_package.for_ditaccel"

Importing that module registers what it holds, and nothing else is needed: in a script, on the
command line and in worker processes alike. It is imported when a method, family, metric or peer is
looked up for the first time, so that `import ditaccel` stays light.
"""

from __future__ import annotations

import threading
from importlib.metadata import entry_points

from .warning import warn

GROUP = "ditaccel.plugins"
_LOCK = threading.RLock()  # a plugin may itself look something up while it is loaded
_state = {"loaded": False}


def load_plugins() -> None:
    """Import the plugins that are installed, once per process; warn of one that cannot be."""
    with _LOCK:
        if _state["loaded"]:
            return
        _state["loaded"] = True
        for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
            try:
                point.load()
            except Exception as error:  # whatever another package raises
                text = " ".join(str(error).split())
                warn(
                    f"the plugin {point.name!r} ({point.value}) could not be loaded: "
                    f"{type(error).__name__}: {text}; everything else works without it"
                )
