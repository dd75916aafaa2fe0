"""A prompt alone is a prompt, wherever several may be given."""

import pytest
from tiny import tiny_wan

import ditaccel
from ditaccel.errors import UsageError
from ditaccel.io import prompts
from ditaccel.tuning import calibration


def test_one_prompt_is_not_taken_for_its_letters():
    assert prompts.listed("a red circle") == ["a red circle"]
    assert prompts.listed({"class_labels": [3]}) == [{"class_labels": [3]}]
    assert prompts.listed(iter(("a", "b"))) == ["a", "b"]
    assert prompts.as_calls("a", {"height": 8}) == [{"height": 8, "prompt": "a"}]
    assert prompts.as_calls([{"height": 4}], {"height": 8}) == [{"height": 4}]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "prompts is empty"),
        ("", None),
        (3, "prompts is of type int; give prompts"),
        (["a", 3], "item 1 of prompts is of type int"),
        ([["a"]], "item 0 of prompts is of type list"),
        (b"a", "item 0 of prompts is of type int"),
    ],
)
def test_what_is_no_prompt_is_one_line(given, line):
    if line is None:
        assert prompts.listed(given) == [given]  # an empty prompt is one
        return
    with pytest.raises(UsageError, match=line):
        prompts.listed(given)


class Enough(Exception):
    pass


def counting(calls):
    def run(*args, **call):
        calls.append(call.get("prompt", call.get("prompt_embeds")))
        raise Enough

    return run


@pytest.mark.parametrize("given", ["a red circle", ["a red circle"]])
def test_verbs_run_one_prompt_once(given, monkeypatch):
    """Of each verb the first pipeline call: it has the whole prompt."""
    pipe, _ = tiny_wan()
    calls = []
    monkeypatch.setattr(type(pipe), "__call__", counting(calls))
    target = ditaccel.Target(computed_share=0.5)
    with pytest.raises(Enough):
        ditaccel.tune(pipe, given, target, num_inference_steps=8)
    with pytest.raises(Enough):
        ditaccel.tune(pipe, given, ditaccel.Target(attention_error=0.02), num_inference_steps=8)
    lines = []
    with pytest.raises(Enough):
        calibration.calibrate(pipe, given, progress=lines.append)
    assert calls == ["a red circle"] * 3 and "dense run 1 of 1" in lines[0]


def test_finetune_takes_one_prompt(monkeypatch, tmp_path):
    pipe, _ = tiny_wan()
    calls = []
    monkeypatch.setattr(type(pipe), "__call__", counting(calls))
    with pytest.raises(Enough):
        ditaccel.finetune(pipe, "a red circle", out=tmp_path, steps=1, quiet=True)
    assert calls == ["a red circle"]
