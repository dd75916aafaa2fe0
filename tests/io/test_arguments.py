"""What the texts of a command line mean: the same in every command."""

import argparse
import pickle
import re

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from ditaccel.cli import COMMANDS, _parser, main
from ditaccel.errors import ConfigError, UsageError
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
    assert set(needed) | {"bench", "export", "report"} == set(COMMANDS)


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


COMMAND_LINES = {
    "doctor": ["doctor", "m"],
    "eval": ["eval", "m", "--out", "o"],
    "tune": ["tune", "m", "--out", "o", "--psnr", "3"],
    "finetune": ["finetune", "m", "--out", "o"],
    "generate": ["generate", "m", "--jobs", "j", "--out", "o"],
}


def _options(command: str, bench: str = "") -> dict[str, argparse.Action]:
    """Option -> how a command declares it."""
    parser = _parser(command)
    for name in filter(None, (command, bench)):
        (below,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = below.choices[name]
    return {text: action for action in parser._actions for text in action.option_strings}


def test_an_option_of_one_name_has_the_same_help_in_every_command() -> None:
    from ditaccel.eval.bench.command import benches

    declared = [_options(command) for command in COMMAND_LINES]
    declared += [_options("bench", bench) for bench in benches()]
    # What differs is the default, in parentheses, or what is counted.
    for option in ("--device", "--pipeline", "--prompts", "--threads", "--seed", "--call"):
        found = [options[option] for options in declared if option in options]
        texts = {re.sub(r" for rows .*?it| \(default.*", "", str(a.help)) for a in found}
        assert len(texts) == 1 and len({a.metavar for a in found}) == 1, (option, texts)
        assert len(found) > 1, option
    assert {o["--device"].default for o in declared if "--device" in o} == {"auto"}
    for option, begins in (("--limit", "only the first N "), ("--steps", "scheduler steps")):
        for options in declared:
            if option in options:
                assert str(options[option].help).startswith(begins)


@pytest.mark.parametrize(
    ("command", "more", "line"),
    [
        ("finetune", ["--inference-steps", "3"], "--inference-steps is called --steps now"),
        ("eval", ["--prompts", "4"], "--prompts names a file; for the first 4 prompts use --limit"),
        ("generate", ["--seeds", "1,1"], "--seeds '1,1' names a seed twice"),
        ("tune", ["--steps", "0"], "--steps must be a whole number"),
        ("eval", ["--device", "nonsense"], "--device nonsense: torch knows no such device"),
    ],
)
def test_a_wrong_option_is_one_line_that_begins_with_it(command, more, line, capsys) -> None:
    try:
        assert main([*COMMAND_LINES[command], *more]) == 2
    except SystemExit as ended:
        assert ended.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"error: {line}" in said


def test_steps_of_finetune_are_not_taken_for_updates(capsys) -> None:
    assert main([*COMMAND_LINES["finetune"], "--steps", "600"]) == 2
    assert "--steps counts scheduler steps; also say how many --updates" in capsys.readouterr().err


def test_errors_name_arguments_and_commands_show_options(monkeypatch, capsys) -> None:
    error = ConfigError("x: it is no good", "max_input")
    assert str(error) == "max_input x: it is no good" and error.argument == "max_input"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    monkeypatch.setattr("ditaccel.batch.command.read_rows", _raising(error))
    assert main(COMMAND_LINES["generate"]) == 2
    assert "error: --max-input x: it is no good\n" in capsys.readouterr().err
    # Not an option of this command: the argument's own name.
    monkeypatch.setattr("ditaccel.batch.command.read_rows", _raising(UsageError("y", "other")))
    assert main(COMMAND_LINES["generate"]) == 2
    assert "error: other y\n" in capsys.readouterr().err


def _raising(error: Exception):
    def function(*_):
        raise error

    return function
