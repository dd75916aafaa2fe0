"""Random calls of every operator in plain torch, compared with its definition in float64."""

import json
import pkgutil
from pathlib import Path

import pytest
from ditaccel.kernels import fuzz
from ditaccel.kernels.fuzz import operators

from ditaccel import kernels


def test_every_folder_of_kernels_is_an_operator_with_random_calls() -> None:
    folders = {module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg}
    assert set(operators()) == folders
    for name, module in operators().items():
        assert module.check(0, "torch") == [], name
        quick, slow = module.INTERPRETED
        assert 0 < quick < slow


@pytest.mark.parametrize("first", range(0, 160, 40))
@pytest.mark.parametrize("operator", operators())
def test_random_calls_agree_with_the_definition(operator: str, first: int) -> None:
    check = operators()[operator].check
    wrong = {seed: check(seed, "torch") for seed in range(first, first + 40)}
    assert {seed: text for seed, text in wrong.items() if text} == {}


def test_a_run_goes_on_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[int] = []

    class Operator:
        @staticmethod
        def check(seed: int, backend: str, device: str) -> list[str]:
            checked.append(seed)
            return ["off"] if seed == 12 else []

    monkeypatch.setattr(fuzz, "operators", lambda: {"one": Operator})
    file = tmp_path / "fuzz.json"
    run = ["--seed", "10", "--journal", str(file), "--cases"]
    assert fuzz.main([*run, "2"]) == 0 and checked == [10, 11]
    assert fuzz.main([*run, "4", "--stop-after", "1"]) == 1 and checked == [10, 11, 12]
    assert fuzz.main([*run, "4"]) == 1, "a case of the journal failed"
    assert checked == [10, 11, 12, 13]
    assert "0 left; failed so far: 12" in capsys.readouterr().out
    assert json.loads(file.read_text()) == {"torch cpu one": {"next": 14, "failed": [12]}}
    assert fuzz.main(["--backend", "triton", *run, "1"]) == 0, "each backend has its own place"
