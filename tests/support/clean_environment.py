"""An environment that holds a wheel and nothing but what the wheel asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def run(command: list[str | Path], cwd: Path, **env: str) -> str:
    """What a command prints, run without this process's import path.

    Args:
        command: program and arguments.
        cwd: where it runs.
        **env: further variables.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needed(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What pip would install for requirements of no extra, found among what is installed here."""
    found: dict[str, metadata.Distribution] = {}
    left = list(requirements)
    while left:
        requirement = Requirement(left.pop())
        name = requirement.name.lower().replace("_", "-")
        unwanted = requirement.marker and not requirement.marker.evaluate({"extra": ""})
        if name in found or unwanted:
            continue
        found[name] = metadata.distribution(requirement.name)
        left += found[name].requires or ()
    return found


def install(wheel: Path, folder: Path) -> Path:
    """Python of a new environment in `folder` with a wheel and what it requires; no network.

    What is required is linked from this environment. What else is installed here cannot be
    imported there, so that a dependency that nobody declared is missed.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], cwd=folder)
    python = folder / "venv" / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-compile"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], cwd=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", code], folder).strip())
    (ours,) = metadata.distributions(name="ditaccel", path=[str(site)])
    for distribution in needed(ours.requires or ()).values():
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            link = site / top
            if not link.exists() and top != "__pycache__":
                link.symlink_to(str(distribution.locate_file(top)))
    return python
