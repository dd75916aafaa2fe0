"""Write the kernels as the sources that `kernel-builder` of the Hugging Face Hub reads.

    python -m ditaccel.kernels.hub OUT

`kernels.get_kernel(...)` loads what was built and uploaded from there without an installed
ditaccel. The layout is that of kernels which need no compiler (`torch-noarch`): `build.toml`, and a
Python package in `torch-ext/` that imports the standard library, torch, triton and itself. Nothing
is uploaded here.

A tool for developers, which wheels leave out.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

ROOM = Path(__file__).resolve().parent
NAME = "ditaccel-kernels"
# Tools that stay here; they need a checkout.
TOOLS = ("aot.py", "build.py", "builds.py", "fuzz.py", "hub.py")
BUILD = """\
[general]
name = "{name}"
version = {version}
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda", "rocm"]

[general.hub]
repo-id = "{repository}"

[torch-noarch]
"""
CARD = """\
---
license: apache-2.0
tags: [kernels]
---

# {name}

Sparse attention over tiles, sparse-linear attention, and what their maps are made of: in Triton on
GPUs, in plain torch on CPUs. Each operation has a definition in plain torch, against which the
others are tested.

```python
from kernels import get_kernel

kernels = get_kernel("{repository}", version={version}, trust_remote_code=True)
```

None of them has been timed on a GPU yet.
"""


def modules() -> list[Path]:
    """The files of the package, from the top of the room."""
    found = (path.relative_to(ROOM) for path in ROOM.rglob("*.py"))
    return sorted(path for path in found if path.name not in TOOLS)


def write(out: Path, repository: str, version: int = 1) -> Path:
    """Write the layout; returns the folder of the package.

    Args:
        out: an empty folder, or one that is not there yet.
        repository: on the Hub, `user/name`.
        version: of the kernel's interface, from 1.
    """
    facts = {"name": NAME, "repository": repository, "version": version}
    package = out / "torch-ext" / NAME.replace("-", "_")
    package.mkdir(parents=True)
    texts = {path: (ROOM / path).read_text(encoding="utf-8") for path in modules()}
    # Several versions may be loaded side by side, and torch knows operators by name.
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:12]
    space = f"{package.name}_{digest}"
    for path, text in texts.items():
        (package / path).parent.mkdir(exist_ok=True)
        own = text.replace('"ditaccel::', f'"{space}::')
        own = own.replace("torch.ops.ditaccel.", f"torch.ops.{space}.")
        (package / path).write_text(own, encoding="utf-8")
    (out / "build.toml").write_text(BUILD.format(**facts), encoding="utf-8")
    (out / "CARD.md").write_text(CARD.format(**facts), encoding="utf-8")
    shutil.copy(ROOM.parent / "LICENSE", out)
    return package


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write the kernels in the layout of the Hub.")
    parser.add_argument("out", type=Path, help="folder to write, which must not be there yet")
    parser.add_argument("--repository", default="user/ditaccel-kernels", help="user/name")
    parser.add_argument("--version", type=int, default=1, help="of the interface (default: 1)")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    package = write(args.out, args.repository, args.version)
    print(f"{args.out}: {len(modules())} modules in {package.relative_to(args.out)}")


if __name__ == "__main__":
    main()
