"""What the texts of a command line mean: the same in every command."""

import argparse

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from ditaccel.cli import COMMANDS, _parser
from ditaccel.io import arguments, given


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2", -2),
        (".5", 0.5),
        ("3.", 3.0),
        ("null", None),
        ("none", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("01", "01"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("[1, 1e-3, a]", [1, 0.001, "a"]),
        ("{a: 1}", {"a": 1}),
        ('["1"]', ["1"]),
        ("'1'", "1"),
        ("a: b", "a: b"),
        ("@x", "@x"),
        ("", ""),
    ],
)
def test_values(text, value) -> None:
    found = arguments.value_of(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["[1", "'a", "{a", "[" * 3000, "[!!python/object:os.system x]"])
def test_values_that_cannot_be_read(text) -> None:
    with pytest.raises(ValueError, match=r"cannot read the value|too deeply"):
        arguments.value_of(text)


@drawn(st.text(max_size=30))
def test_any_text_is_a_value_or_one_line(text) -> None:
    try:
        arguments.value_of(text)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("float32", ("float32", "fp32", "FP32", "torch.float32", "f32")),
        ("float16", ("float16", "fp16", "half")),
        ("bfloat16", ("bfloat16", "bf16")),
        (None, ("auto",)),
    ],
)
def test_dtypes_have_one_vocabulary(name, texts) -> None:
    assert {arguments.dtype(text) for text in texts} == {name}


def test_every_command_takes_every_spelling_of_a_dtype() -> None:
    for words in (
        ["eval", "m", "--out", "o"],
        ["tune", "m", "--out", "o", "--psnr", "3"],
        ["finetune", "m", "--out", "o"],
        ["generate", "m", "--jobs", "j", "--out", "o"],
        ["bench", "attention"],
        ["bench", "sparse_linear"],
        ["doctor", "m"],
    ):
        for spelling, name in (("bf16", "bfloat16"), ("float32", "float32")):
            found = _parser(words[0]).parse_args([*words, "--dtype", spelling]).dtype
            assert found in (name, [arguments.SHORT_DTYPES[name]]), words


def test_every_command_that_loads_a_pipeline_takes_a_factory_and_a_device() -> None:
    needed = {"eval": ["--out", "o"], "tune": ["--out", "o", "--psnr", "3"]}
    needed |= {"finetune": ["--out", "o"], "generate": ["--jobs", "j", "--out", "o"], "doctor": []}
    for command, more in needed.items():
        found = _parser(command).parse_args([command, "m", *more, "--pipeline", "a:b"])
        assert found.pipeline == "a:b"
        assert command == "doctor" or found.device == "auto"
    for bench in ("overhead", "sparsity", "sla", "batch"):
        found = _parser("bench").parse_args(["bench", bench, "m", "--pipeline", "a:b"])
        assert found.pipeline == "a:b" and found.device == "auto", bench
    assert set(needed) | {"bench", "report"} == set(COMMANDS)


@pytest.mark.parametrize(
    "text",
    [
        *("a", "=3", "a=", "1a=3", "generator=1", "output_type=pil", "callback_on_step_end=x"),
        *("num_inference_steps=0", "height=-1", "width=1.5", "num_frames=x", "a=[1", "prompt=x"),
    ],
)
def test_calls_that_cannot_be(text) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.call_argument(text)


def test_calls() -> None:
    assert arguments.call_argument("guidance_scale=1e-3") == ("guidance_scale", 0.001)
    assert arguments.call_argument("negative_prompt=null") == ("negative_prompt", None)
    assert arguments.call_argument("a=b=c") == ("a", "b=c")


def test_numbers_and_lists() -> None:
    parse = arguments.listed("--x", given.whole_argument("--x", 1, 9))
    assert parse("1, 2,3") == [1, 2, 3]
    for text in ("", "0", "10", "1,,2", "a", "9" * 5000, "1.5"):
        with pytest.raises(argparse.ArgumentTypeError) as told:
            parse(text)
        assert len(str(told.value)) < 200
    share = arguments.number("--share", 0, 1, open_ends=True)
    assert share("0.5") == 0.5
    for text in ("0", "1", "nan", "x", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match="between 0 and 1"):
            share(text)
