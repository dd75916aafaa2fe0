"""Configs on the Hub: fetched by its client (a stand-in, here); one line where it fails."""

from pathlib import Path

import huggingface_hub
import pytest
from ditaccel.eval import specs
from huggingface_hub import constants
from tiny import tiny_dit

import ditaccel
from ditaccel import AccelerationConfig, UsageError
from ditaccel import config as configs

ADDRESS = "hf://somebody/schedules/flux/fast.yaml"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, str | None]]:
    """What the Hub is asked for; it has one config, whatever it is called there."""
    path = tmp_path / "cached.yaml"
    AccelerationConfig.of(ditaccel.TaylorSeerConfig(interval=3), label="theirs").save(path)
    seen: list[tuple[str, str, str | None]] = []

    def download(repo: str, file: str, revision: str | None = None) -> str:
        seen.append((repo, file, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return seen


def test_accelerate_takes_an_address(asked) -> None:
    pipe, _ = tiny_dit()
    ditaccel.accelerate(pipe, ADDRESS)
    assert ditaccel.is_accelerated(pipe)
    assert AccelerationConfig.load(ADDRESS.replace("schedules", "schedules@v1")).label == "theirs"
    assert asked == [
        ("somebody/schedules", "flux/fast.yaml", None),
        ("somebody/schedules", "flux/fast.yaml", "v1"),
    ]


def test_commands_take_an_address(asked) -> None:
    (row,) = specs.parse_config(ADDRESS)
    assert configs.resolve(row.spec, "flux").cache.interval == 3
    assert row.label == "fast" and asked == [("somebody/schedules", "flux/fast.yaml", None)]


@pytest.mark.parametrize(
    "address",
    [
        "hf://somebody",
        "hf://somebody/repo",
        "hf://a/b/c.txt",
        "hf://a/b@x/y@z/c.yaml",
        "hf://a//b.yaml",
    ],
)
def test_a_wrong_address_is_one_line(address: str) -> None:
    with pytest.raises(UsageError, match=r"hf://user/repo/file\.yaml"):
        AccelerationConfig.load(address)


def test_offline_is_one_line() -> None:
    """The real client, which tests run offline."""
    assert constants.HF_HUB_OFFLINE
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set") as error:
        AccelerationConfig.load(ADDRESS)
    assert "\n" not in str(error.value) and ADDRESS in str(error.value)


def test_what_the_hub_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, file: str, revision: str | None = None) -> str:
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UsageError, match="check the address and the network") as error:
        AccelerationConfig.load(ADDRESS)
    assert "no route" in str(error.value) and "\n" not in str(error.value)
