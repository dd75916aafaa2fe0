"""Job files that people really have: any text, number and depth; a row fails, the job lives."""

from __future__ import annotations

import csv
import datetime
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_folders import FACTS, plan

from ditaccel.batch.jobs import RawRow, read_rows
from ditaccel.batch.manifest import Planner, Settings, read_manifest, write_manifest
from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.models import Sheet, read_prompts

UNUSUAL = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
BOUNDED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def planned(tmp_path: Path, path: Path, **options: Any) -> list[Any]:
    """Items of a file, written to a manifest and read back."""
    items, _ = Planner(FACTS, Settings(**options), tmp_path).plan(read_rows(path))
    write_manifest(tmp_path / "manifest.jsonl", items)
    assert read_manifest(tmp_path / "manifest.jsonl") == items
    for item in items:
        assert "\n" not in item.error and len(item.error) < 900
    return items


@pytest.mark.parametrize("character", UNUSUAL)
def test_unusual_line_separators_stay_inside_their_cell(tmp_path: Path, character: str) -> None:
    text = f"a red{character}circle"
    (tmp_path / "j.csv").write_text(f"prompt,seed\n{text},3\nb,4\n", encoding="utf-8", newline="")
    (tmp_path / "j.tsv").write_text(f"prompt\tseed\n{text}\t3\nb\t4", encoding="utf-8", newline="")
    line = json.dumps({"prompt": text, "seed": 3}, ensure_ascii=False)
    (tmp_path / "j.jsonl").write_text(f'{line}\n{{"prompt": "b"}}', encoding="utf-8", newline="")
    (tmp_path / "j.txt").write_text(f"{text}\nb\n", encoding="utf-8", newline="")
    for suffix in ("csv", "tsv", "txt", "jsonl"):
        rows = read_rows(tmp_path / f"j.{suffix}")
        if suffix == "jsonl" and ord(character) < 32:
            assert not rows[0].error  # json.dumps has escaped it
        assert [row.values.get("prompt") for row in rows] == [text, "b"], suffix
    assert read_prompts(tmp_path / "j.txt") == [text, "b"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_line_ends_and_delimiters_of_spreadsheets(tmp_path: Path, end: str, delimiter: str) -> None:
    lines = [["Prompt", "SEED", "Negative Prompt", "size", "meta.Split"]]
    lines.append([f'"a{delimiter} b{end}c"', "3.0", "x", "64X64", "Test"])
    (tmp_path / "j.csv").write_bytes(
        ("\ufeff" + end.join(delimiter.join(line) for line in lines) + end).encode()
    )
    (row,) = read_rows(tmp_path / "j.csv")
    (item,) = plan(tmp_path, row.values)
    assert item.error == "" and item.prompt == f"a{delimiter} b{end}c" and item.seed == 3
    assert (item.negative_prompt, item.meta) == ("x", {"Split": "Test"})
    assert (item.call["width"], item.call["height"]) == (64, 64)


def test_a_comma_in_a_number_and_a_cell_too_many_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "j.csv").write_text("prompt;guidance\na;3,5\nb;1;2\nc;4\n")
    first, second, third = planned(tmp_path, tmp_path / "j.csv")
    assert "with a point, not a comma" in first.error and third.error == ""
    assert "3 cells for 2 columns" in second.error and "a semicolon" in second.error


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("prompt,stepz", "did you mean 'steps'"),
        ("promt;seed", "unknown column 'promt'; did you mean 'prompt'"),
        ("prompt\tsede", "did you mean 'seed'"),
        ("Prompt,prompt", "twice"),
    ],
)
def test_an_unknown_column_gets_a_hint(tmp_path: Path, header: str, words: str) -> None:
    (tmp_path / "j.csv").write_text(f"{header}\na,1\n")
    with pytest.raises(UsageError, match=words):
        for row in read_rows(tmp_path / "j.csv"):
            for item in plan(tmp_path, row.values):
                raise UsageError(item.error)


def test_a_comment_that_may_be_a_prompt_is_said(tmp_path: Path) -> None:
    (tmp_path / "j.txt").write_text("# words\n#hashtag art\n\\#1 fan\n#\n#!x\n")
    said: list[str] = []
    assert [r.values["prompt"] for r in read_rows(tmp_path / "j.txt", said.append)] == ["#1 fan"]
    assert len(said) == 1 and "line 2" in said[0] and "\\#" in said[0]
    assert read_prompts(tmp_path / "j.txt") == ["#1 fan"]


def test_half_a_character_fails_its_row_alone(tmp_path: Path) -> None:
    lines = ['{"prompt": "a cat \\ud83d"}', '{"prompt": "fine"}', '{"prompt": "b", "m\\udc00": 1}']
    lines.append('{"prompt": "c", "meta": {"k": ["\\ud83d"]}}')
    (tmp_path / "j.jsonl").write_text("\n".join(lines))
    first, second, third, fourth = planned(tmp_path, tmp_path / "j.jsonl")
    assert "prompt holds half a character (\\ud83d" in first.error and second.error == ""
    assert "half a character" in third.error and "meta holds half" in fourth.error


def test_bytes_that_are_not_utf8_fail_their_row_alone(tmp_path: Path) -> None:
    (tmp_path / "j.csv").write_bytes(b"prompt,seed\ncaf\xe9,1\nfine,2\n")
    first, second = planned(tmp_path, tmp_path / "j.csv")
    assert "prompt holds a byte that is not UTF-8 (0xe9); save the file" in first.error
    assert second.error == ""
    (tmp_path / "j.txt").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(UsageError, match="is UTF-16 text; save it as UTF-8"):
        read_rows(tmp_path / "j.txt")


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"prompt": "a", "seed": "' + "9" * 5000 + '"}',
        '{"prompt": "a", "fps": ' + "9" * 4000 + "}",
        '{"prompt": "a", "size": "' + "9" * 5000 + 'x64"}',
        '{"prompt": "a", "call": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"prompt": "a", "call": {"eta": ' + "[" * 200 + "]" * 200 + "}}",
        '{"prompt": "a", "call": "' + "[" * 3000 + '"}',
        '{"prompt": "a", "call": {"eta": NaN}}',
        '{"prompt": "a", "config": "taylorseer:interval=' + "[" * 3000 + '"}',
        '{"prompt": "a", "config": "taylorseer:interval=' + "9" * 5000 + '"}',
        '{"prompt": "a", "image": "' + "x" * 5000 + '"}',
        '{"prompt": "a", "image": "~nouser/x"}',
        '{"prompt": "a", "image": "a\\u0000b"}',
        '{"prompt": "a", "image": "http://[x"}',
        '{"prompt": "a", "name": "' + "n" * 300 + '"}',
        json.dumps({"prompt": "a", "name": "\N{CAT FACE}" * 64}),
    ],
)
def test_any_number_depth_and_name_fails_its_row_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "j.jsonl").write_text(f'{line}\n{{"prompt": "fine"}}\n')
    bad, good = planned(tmp_path, tmp_path / "j.jsonl")
    assert bad.error and good.error == ""


def test_the_longest_names_fit_a_file_system(tmp_path: Path) -> None:
    (item,) = plan(tmp_path, {"prompt": "a", "name": "n" * 200})
    assert item.error == ""
    (tmp_path / f".{item.name}.latents.safetensors.{1 << 22}.draft").write_text("")


def test_parquet_values_without_a_form_in_json(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    when = datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.UTC)
    row = {
        "prompt": "a",
        "seed": Decimal("7"),
        "fps": Decimal("12.5"),
        "guidance": float("nan"),  # how some writers say that a cell is empty
        "meta.day": datetime.date(2024, 2, 29),
        "meta.when": when,
        "meta.price": Decimal("1.10"),
        "meta.raw": b"\xff\x00",
        "meta.list": [datetime.time(1, 2)],
    }
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "j.parquet")
    (item,) = planned(tmp_path, tmp_path / "j.parquet")
    assert item.error == "" and (item.seed, item.fps) == (7, 12.5)
    assert "guidance_scale" not in item.call
    assert item.meta == {
        "day": "2024-02-29",
        "when": when.isoformat(),
        "price": "1.10",
        "raw": "/wA=",
        "list": ["01:02:00"],
    }


def test_parquet_values_that_python_cannot_hold_fail_their_row(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    far = arrow.array([1 << 50, 0], arrow.timestamp("ms"))
    table = arrow.table({"prompt": ["a", "b"], "meta.when": far})
    parquet.write_table(table, tmp_path / "j.parquet")
    bad, good = planned(tmp_path, tmp_path / "j.parquet")
    assert "meta.when" in bad.error and good.error == ""


def test_a_class_by_name_or_number_in_every_format(tmp_path: Path) -> None:
    facts = replace(
        FACTS, pipeline="DiTPipeline", arguments={"class_labels": False}, family="dit",
        labels={"red circle": 0, "cat": 4}, sheet=Sheet(),
    )  # fmt: skip
    rows = [
        {"class": "cat"},
        {"label": "4"},
        {"Class Label": 4},
        {"prompt": "Cat"},
        {"prompt": "4"},
    ]
    found = plan(tmp_path, *({**row, "name": str(i)} for i, row in enumerate(rows)), facts=facts)
    assert [(item.error, item.class_label) for item in found[:1]] == [("", 4)]
    assert {item.class_label for item in plan(tmp_path, {"class": "4.0"}, facts=facts)} == {4}
    for row in rows:
        (item,) = plan(tmp_path, row, facts=facts)
        assert (item.error, item.class_label) == ("", 4)
    (wrong,) = plan(tmp_path, {"class": "red cirle"}, facts=facts)
    assert "did you mean 'red circle'" in wrong.error


def test_a_very_long_cell_is_a_cell(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "j.csv").write_text(f"prompt,seed\n{'x' * 200_000},1\nb,2\n")
    assert [len(r.values["prompt"]) for r in read_rows(tmp_path / "j.csv")] == [200_000, 1]
    assert csv.field_size_limit() == before


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(codec=None, categories=["Cs", "Cc", "L", "Zl"]))
    | st.binary()
    | st.dates()
    | st.decimals()
    | st.sampled_from([10**400, "9" * 5000, "[" * 2000, "~nouser/x", "\0", "x" * 300, "1x1"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    [
        *("prompt", "negative_prompt", "class_label", "seed", "fps", "config", "height", "frames"),
        *("steps", "guidance", "image", "video", "size", "name", "call", "meta", "meta.x", "Seed "),
    ]
)


@BOUNDED
@given(st.lists(st.dictionaries(COLUMNS | st.text(max_size=5), ANYTHING, max_size=4), max_size=3))
def test_any_row_is_made_or_fails_alone(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    raw = [RawRow(i, row) for i, row in enumerate([*rows, {"prompt": "fine"}], 1)]
    items, _ = Planner(FACTS, Settings(), tmp_path).plan(raw)
    write_manifest(tmp_path / "m.jsonl", items)
    assert read_manifest(tmp_path / "m.jsonl") == items
    assert any(item.prompt == "fine" and not item.error for item in items)
    for item in items:
        assert len(item.error.splitlines()) <= 1 and len(item.error) < 900


@BOUNDED
@given(st.sampled_from(["txt", "csv", "tsv", "jsonl", "parquet"]), st.data())
def test_any_file_is_read_or_refused_in_one_line(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    header = data.draw(st.sampled_from(["", "prompt,seed\n", "prompt;seed\n", '{"prompt": ']))
    body = data.draw(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    path = tmp_path / f"any.{suffix}"
    path.write_bytes(header.encode() + body)
    try:
        items, _ = Planner(FACTS, Settings(), tmp_path).plan(read_rows(path))
    except DitaccelError as error:
        assert len(str(error).splitlines()) == 1
        return
    write_manifest(tmp_path / "m.jsonl", items)
    assert read_manifest(tmp_path / "m.jsonl") == items


CELL = st.text(st.characters(codec="utf-8"), max_size=20)


@BOUNDED
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4), st.sampled_from(",;\t"))
def test_what_a_spreadsheet_writes_comes_back(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "meta.x"), *rows])
    (tmp_path / "any.csv").write_bytes(buffer.getvalue().encode())
    expected = [
        {k: v for k, v in zip(("prompt", "meta.x"), r, strict=True) if v.strip()} for r in rows
    ]
    expected = [row for row in expected if row]
    if not expected:
        with pytest.raises(UsageError, match="holds no row"):
            read_rows(tmp_path / "any.csv")
        return
    assert [row.values for row in read_rows(tmp_path / "any.csv")] == expected
