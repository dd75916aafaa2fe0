"""Every option of every config is checked against its annotation, and named when it is wrong."""

import dataclasses
import math
import os
import typing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from ditaccel.kernels import FEATURE_MAPS
from hypothesis import given, settings
from hypothesis import strategies as st

import ditaccel
from ditaccel import config as configs
from ditaccel.attention.sla.config import FeatureMapName
from ditaccel.caching.engine.forecast import BASES
from ditaccel.caching.engine.options import Basis, MemoryBudget
from ditaccel.config.option_types import arms_of, checked, checked_value
from ditaccel.errors import ConfigError

NEEDED = {"step_mask": {"steps": (0,)}}
OPTIONS = [
    (cls, each.name, typing.get_type_hints(cls)[each.name])
    for cls in configs.methods().values()
    for each in dataclasses.fields(cls)
]
ANYTHING = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    st.lists(st.integers() | st.text() | st.none() | st.lists(st.floats())),
    st.dictionaries(st.text(), st.integers()),
    st.sampled_from([10**400, np.float32(0.5), np.int8(2), torch.tensor(1), Path("x"), int, 1j]),
)


def wrong_for(hint):
    """Values that no arm of an annotation takes."""
    arms = arms_of(hint)
    values = [b"a", {}, object(), 1j, {1, 2}, math.nan, math.inf, -math.inf, 10**400, 10**5000]
    if type(None) not in arms:
        values.append(None)
    if bool not in arms:
        values += [True, False, np.True_]
    if int not in arms and float not in arms:
        values += [3, np.int64(3)]
    if float not in arms:
        values += [2.5, np.float32(2.5), Fraction(5, 2)]
    if str not in arms:
        values += ["no such word", "", "1"]
    if not any(typing.get_origin(a) is tuple for a in arms):
        values += [[1], (1, 2), np.arange(3)]
    return values


@pytest.mark.parametrize(("cls", "name", "hint"), OPTIONS)
def test_what_is_of_another_type_is_one_line_that_names_the_option(cls, name, hint):
    for value in wrong_for(hint):
        with pytest.raises(ConfigError) as raised:
            cls(**{**NEEDED.get(cls.method, {}), name: value})
        line = str(raised.value)
        assert line.startswith(f"{cls.method}: {name} is ") and "; it must be " in line
        assert "\n" not in line and len(line) < 400


@pytest.mark.parametrize(("cls", "name", "hint"), OPTIONS)
@settings(max_examples=30)
@given(data=st.data())
def test_no_value_at_all_ends_in_another_error(cls, name, hint, data):
    value = data.draw(ANYTHING)
    try:
        made = cls(**{**NEEDED.get(cls.method, {}), name: value})
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    hash(made)
    # what is accepted can be saved, and is read back to the same config
    setting = ditaccel.AccelerationConfig(**{cls.kind: made})
    assert configs.from_dict(configs.to_dict(setting)) == setting


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        ("adaptive_taylor", {"tolerance": "a"}, "tolerance is 'a'; it must be a finite number"),
        ("adaptive_taylor", {"tolerance": None}, "tolerance is None"),
        ("adaptive_taylor", {"final": 2.5}, "final is 2.5; it must be a whole number"),
        ("adaptive_taylor", {"target": "outptu"}, "; did you mean 'output'?"),
        ("svg2", {"top_p": True}, "top_p is True; it must be a finite number"),
        ("sla", {"critical": 5}, "not a percentage: give critical=0.05"),
        ("sla", {"negligible": 10}, "give negligible=0.1"),
        ("sla", {"cube": (4, 4)}, "give frames, rows and columns"),
        ("lite_attention", {"must_keep": [[1]]}, "a list of pairs of whole numbers"),
    ],
)
def test_lines_say_what_is_wanted(method, options, line):
    with pytest.raises(ConfigError) as raised:
        configs.methods()[method](**options)
    assert line in str(raised.value)


def test_plain_forms_take_the_place_of_what_means_the_same():
    made = ditaccel.StepMaskConfig(steps=[0, np.int64(2), torch.tensor(5)], total=np.int32(8))
    assert made == ditaccel.StepMaskConfig(steps=(0, 2, 5), total=8) and hash(made)
    assert {type(s) for s in made.steps} == {int} and type(made.total) is int
    assert ditaccel.StepMaskConfig(steps=range(3)).steps == (0, 1, 2)
    assert ditaccel.StepMaskConfig(steps=np.array([0, 3])).steps == (0, 3)
    tolerance = ditaccel.AdaptiveTaylorConfig(tolerance=np.float32(0.5)).tolerance
    assert type(tolerance) is float and tolerance == 0.5
    assert type(ditaccel.SVG2Config(dense_steps=2).dense_steps) is int
    assert type(ditaccel.SVG2Config(dense_steps=0.0).dense_steps) is float
    assert ditaccel.SLAConfig(weights=Path("a") / "b").weights == os.path.join("a", "b")
    assert ditaccel.LiteAttentionConfig(must_keep=[[0, 5]]).must_keep == ((0, 5),)


def test_words_of_options_are_those_that_the_code_knows():
    assert typing.get_args(Basis) == BASES
    assert set(typing.get_args(FeatureMapName)) == set(FEATURE_MAPS)


SIZES = {
    1: [1, "1 byte"],
    1024: [1024, "1024", "1024 B", "1024 bytes", "1KiB"],
    64_000: ["64 kB", "64k", "64_000"],
    5 * 10**8: ["500 MB", "500mb", ".5gb", 5e8],
    2 * 10**9: ["2GB", "2 GB", "2G", "2.0 gb", "2e9", 2e9],
    2**31: ["2 GiB", "2gib", "2 Gi", "2048MiB"],
}


@pytest.mark.parametrize(("size", "text"), [(s, t) for s, texts in SIZES.items() for t in texts])
def test_usual_spellings_of_a_size_of_memory(size, text):
    assert MemoryBudget.parse(text) == size
    assert ditaccel.TaylorSeerConfig(memory_budget=text).memory_budget == text


@pytest.mark.parametrize(
    "text", ["lots", "2 iB", "GB", "2 GBit", "-2GB", "", "1.2.3GB", "2GBs", "1e999"]
)
def test_what_is_no_size_of_memory_is_said(text):
    with pytest.raises(ConfigError, match="write bytes or a size such as '2GB' or '500 MiB'"):
        ditaccel.TaylorSeerConfig(memory_budget=text)


@pytest.mark.parametrize("nothing", [0, "0", "0.2", 0.0, -1])
def test_a_budget_of_nothing_is_said(nothing):
    with pytest.raises(ConfigError, match="it must be positive"):
        ditaccel.TaylorSeerConfig(memory_budget=nothing)


def test_a_config_class_of_somebody_else_is_checked_without_a_word_of_its_own():
    @checked()
    @dataclasses.dataclass(frozen=True)
    class Theirs:
        share: float = 0.5
        places: tuple[int, ...] = ()

    assert Theirs(1, places=[2]) == Theirs(1.0, (2,))
    with pytest.raises(ConfigError, match="Theirs: share is 'x'; it must be a finite number"):
        Theirs("x")


def test_a_label_is_text():
    with pytest.raises(ConfigError, match="AccelerationConfig: label is 3; it must be text"):
        ditaccel.AccelerationConfig(cache=ditaccel.ReuseConfig(), label=3)


def test_an_argument_alone_is_checked_the_same_way():
    assert checked_value("", "seed", int, 3) == 3
    with pytest.raises(ConfigError, match=r"^seed is 1\.5; it must be a whole number$"):
        checked_value("", "seed", int, 1.5)


@pytest.mark.parametrize(("cls", "name", "hint"), OPTIONS)
def test_words_of_options_are_known_to_editors_and_mypy(cls, name, hint):
    """Text is open for what a user names alone: files and sizes."""
    files = ("weights", "plan", "save_plan", "schedule")
    assert str not in arms_of(hint) or name in (*files, "memory_budget")
