"""Files that somebody changed: one line with file and place, and nothing raw gets through."""

import json
from pathlib import Path

import pytest

from ditaccel.errors import UsageError
from ditaccel.io import checked
from ditaccel.io.checked import items, maybe, number, read_record, read_records, record, text, whole

SHAPE = record(
    {"name": text, "size": number(0, 100)},
    {
        "count": whole(0),
        "on": checked.flag,
        "kind": checked.choice("a", "b"),
        "rows": items(checked.row(whole(), text)),
        "by": checked.table(maybe(number())),
    },
)


def wrong(tmp_path: Path, content: str) -> str:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_record(path, SHAPE, "run it again")
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    line.encode()
    return line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 3}, "name must be text, not a number; run it again"),
        ({"size": "1"}, "size must be a number, not text"),
        ({"size": True}, "size must be a number, not true or false"),
        ({"size": 101}, "size must lie from 0 to 100"),
        ({"size": 10**400}, "size must lie from 0 to 100"),
        ({"count": 1.5}, "count must be a whole number, not a number"),
        ({"count": -1}, "count must be a whole number from 0"),
        ({"on": 1}, "on must be true or false"),
        ({"kind": "c"}, "kind must be one of a, b"),
        ({"kind": []}, "kind must be one of a, b"),
        ({"rows": {}}, "rows must be a list, not an object"),
        ({"rows": [[1, "x"], [1]]}, "rows[1] must be a list of 2"),
        ({"rows": [[1, None]]}, "rows[0][1] must be text, not null"),
        ({"by": {"x\n\ud800": []}}, "by.x\\n\\ufffd must be a number, not a list"),
        ({"other": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}, "nested too deeply"),
    ],
)
def test_file_and_place_in_one_line(tmp_path: Path, change: dict, words: str) -> None:
    assert words in wrong(tmp_path, json.dumps({"name": "n", "size": 1, **change}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "the content must be an object, not a list"),
        ("{}", "name is missing"),
        ('{"name": "n", "size": NaN}', "size must be a finite number"),
        ('{"name": "n", "size": 1e999}', "size must be a finite number"),
        ("[" * 100_000, "damaged (nested too deeply)"),
        ('{"name": ' + "9" * 6000 + "}", "damaged"),
        ("", "damaged"),
    ],
)
def test_what_json_itself_lets_through(tmp_path: Path, content: str, words: str) -> None:
    assert words in wrong(tmp_path, content)


def test_lone_surrogates_are_made_legible(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"name": "cut \ud83d emoji", "size": 1, "\ud800": {"k": ["\udc00"]}}')
    data = read_record(path, SHAPE, "")
    assert data == {"name": "cut \ufffd emoji", "size": 1, "\ufffd": {"k": ["\ufffd"]}}


def test_lines_are_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_records(path, SHAPE, "") == []
    path.write_text('{"name": "n", "size": 1}\n\n{"name": "n", "size": -1}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3 is damaged: size must lie .*; delete"):
        read_records(path, SHAPE, "delete it")
    path.write_text("[" * 100_000 + "\n" + '{"name": "n", "size": 1}\n')
    with pytest.raises(UsageError, match="line 1 is damaged"):
        read_records(path, SHAPE, "")
