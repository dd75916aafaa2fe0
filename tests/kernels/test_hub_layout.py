"""The kernels in the layout of the Hub's `kernels` library, loaded as it loads them."""

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ditaccel.kernels import hub

from ditaccel import kernels


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "kernel"
    hub.write(out, "somebody/ditaccel-kernels", 2)
    return out


def loaded(package: Path, name: str) -> ModuleType:
    """A package from a path, under a name of its own, as `get_local_kernel` imports one."""
    spec = importlib.util.spec_from_file_location(name, package / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_file(layout: Path) -> None:
    facts = tomllib.loads((layout / "build.toml").read_text())
    general = facts["general"]
    assert general["name"] == "ditaccel-kernels" and general["version"] == 2
    assert general["hub"] == {"repo-id": "somebody/ditaccel-kernels"}
    assert "torch-noarch" in facts and not facts["torch-noarch"]
    assert {path.name for path in layout.iterdir()} == {
        "build.toml",
        "CARD.md",
        "LICENSE",
        "torch-ext",
    }


def test_imports_are_those_that_the_hub_allows(layout: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in (layout / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= allowed, (path, names)
    assert not [path for path in layout.rglob("*.py") if path.name in hub.TOOLS]


def test_it_computes_the_same_beside_ours(layout: Path) -> None:
    """Also operators for autograd, whose names must differ from those of the installed package."""
    theirs = loaded(layout / "torch-ext" / "ditaccel_kernels", "ditaccel_kernels_from_the_hub")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 16, generator=generator) for _ in range(3))
    keep = torch.rand(1, 2, 4, 4, generator=generator) < 0.5
    results = []
    for each in (kernels, theirs):
        tiling = each.Tiling.fixed(64, 16)
        tiles = each.TileMap.from_mask(keep, tiling, tiling)
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = each.tile_attention(*inputs, tiles).output
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert theirs.__all__ == kernels.__all__
