"""Rules about the repository itself: folders, file lengths, packaging lists."""

import re

import pytest
from checkout import ROOT, tracked

TOP_LEVEL = {"ditaccel", "kernels", "pipelines", "eval", "tests", "samples"}
SOURCE = (".py", ".html", ".css", ".js")
MAX_LINES = 500


def test_top_level_folders_are_the_six_rooms() -> None:
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert {name for name in folders if not name.startswith(".")} <= TOP_LEVEL


def test_no_source_file_is_longer_than_500_lines() -> None:
    lengths = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path in tracked()
        if path.suffix in SOURCE
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_every_folder_of_a_room_is_a_package() -> None:
    """`setup.py` finds packages by their `__init__.py`; one without would miss in the wheel."""
    folders = {
        path.parent
        for path in tracked()
        if path.suffix == ".py" and path.parts[0] in ("ditaccel", "kernels", "pipelines", "eval")
    }
    assert [str(path) for path in folders if not (ROOT / path / "__init__.py").exists()] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    """`save_pretrained` writes where a part was loaded from, for one."""
    place = re.compile(rb"(?<![\w.~-])/(?:home|Users|root|work|workspace)/\w")
    kinds = (".py", ".md", ".json", ".yaml", ".toml", ".ipynb", ".sh", ".csv", ".txt", "")
    files = [path for path in tracked() if path.suffix in kinds and (ROOT / path).is_file()]
    assert [str(path) for path in files if place.search((ROOT / path).read_bytes())] == []


def test_pinned_packages_hold_no_trap() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = {pin.split("==")[0].lower() for pin in pins}
    assert all("==" in pin for pin in pins)
    # A torchvision that does not match torch breaks every diffusers import; torch-fidelity without
    # torchvision breaks torchmetrics.
    assert names.isdisjoint({"torchvision", "torch-fidelity"})


def test_network_is_blocked_in_tests() -> None:
    import socket

    with pytest.raises(OSError, match="must not reach the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="must not reach the network"):
        socket.getaddrinfo("example.org", 80)
