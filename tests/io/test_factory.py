"""`--pipeline`: a user's function makes the pipeline, whatever it does; mistakes in one line."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ditaccel.errors import UsageError
from ditaccel.io.factory import read_factory
from ditaccel.io.opening import checkpoint_dtype, choose_device, choose_dtype, open_pipeline

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def written(tmp_path):
    """Writes a module and gives `file.py:make`."""

    def write(body: str, name: str = "mine.py", function: str = "make") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(body))
        return f"{path}:{function}"

    return write


def refused(reference: str) -> str:
    """The one line that a reference ends in."""
    with pytest.raises(UsageError) as told:
        open_pipeline("m", "cpu", None, reference)
    line = str(told.value)
    assert "\n" not in line and len(line) < 600
    return line


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nonsense", "give MODULE:FUNCTION or FILE.py:FUNCTION"),
        (":f", "give MODULE:FUNCTION"),
        ("a:", "give MODULE:FUNCTION"),
        ("no_such_module_at_all:f", "there is no module 'no_such_module_at_all'"),
        ("json.nothing:f", "there is no module 'json.nothing'"),
        ("json:lods", "it has no 'lods'; did you mean 'loads'?"),
        ("math:pi", "pi is float, not a function"),
        ("nowhere.py:f", "there is no file nowhere.py"),
        ("~nouser/x.py:f", "has no home folder here"),
        ("a\0b.py:f", "cannot hold a NUL"),
        ("x" * 5000 + ".py:f", "too long for a path"),
        ("not a module:f", "neither a module's name nor a .py file"),
        ("json:loads", "the function needs 's'"),
        ("os:getcwd", "returned str, which is not a diffusers pipeline"),
    ],
)
def test_references_that_lead_nowhere(reference, words) -> None:
    assert words in refused(reference)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import nothing_here\n", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("def make(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("def make(): return None\n", "returned NoneType"),
        ("def make(): return {}, {}, {}\n", "returned tuple"),
        ("def make(model): raise KeyError('gone')\n", "KeyError: 'gone' (mine.py, line 1)"),
        ("def make():\n    raise ValueError('a\\nb')\n", "ValueError: a (mine.py, line 2)"),
        ("def make(weights): ...\n", "the function needs 'weights'"),
        ("def make(model, /): ...\n", "the function needs 'model'"),
        ("def other(): ...\n", "it has no 'make'"),
    ],
)
def test_functions_that_make_nothing(written, body, words) -> None:
    assert words in refused(written(body))


TINY = f"""
    import sys
    sys.path.append({str(SUPPORT)!r})
    from tiny import tiny_dit
"""


def test_the_function_gets_what_it_takes_and_may_say_more(written) -> None:
    reference = written(
        TINY
        + """
    def make(model, device, dtype=None):
        pipe, _ = tiny_dit(layers=1)
        pipe.told = (model, device, dtype)
        return pipe, {"guidance_scale": 2.0}
    """
    )
    opened = open_pipeline("some model", "cpu", "bfloat16", reference)
    assert opened.pipe.told == ("some model", "cpu", torch.bfloat16)
    assert opened.call == {"guidance_scale": 2.0} and opened.dtype == "float32"
    assert open_pipeline("m", "cpu", None, reference).pipe.told == ("m", "cpu", None)


def test_a_module_in_the_working_folder_and_what_lies_beside_it(
    tmp_path, monkeypatch, written
) -> None:
    written("WORD = 'beside'\n", "lies_beside.py")
    written(
        TINY
        + """
    import lies_beside

    class Made:
        @staticmethod
        def make(**given):
            pipe, _ = tiny_dit(layers=1)
            pipe.told = (lies_beside.WORD, sorted(given))
            return pipe
    """,
        "my_models.py",
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    factory = read_factory("my_models:Made.make")
    assert factory.make("m", "cpu", None).pipe.told == ("beside", ["device", "dtype", "model"])
    assert str(tmp_path) not in sys.path[: len(before)]  # behind all others: it hides none


def test_an_accelerated_or_misplaced_pipeline_is_refused(written) -> None:
    body = (
        TINY
        + """
    import ditaccel
    def make():
        return ditaccel.accelerate(tiny_dit(layers=2)[0], "taylorseer:interval=2")
    """
    )
    assert "returned an accelerated pipeline" in refused(written(body))
    body = (
        TINY
        + """
    def make():
        pipe = tiny_dit(layers=1)[0]
        type(pipe)._execution_device = "cuda"
        return pipe
    """
    )
    from diffusers import DiTPipeline

    before = DiTPipeline._execution_device
    try:
        line = refused(written(body, "elsewhere.py"))
    finally:
        DiTPipeline._execution_device = before
    assert "runs on cuda, and the device is cpu" in line


def test_the_source_is_part_of_the_identity(written) -> None:
    one = read_factory(written("def make(): ...\n", "one.py"))
    other = read_factory(written("def make(): 'other'\n", "two.py"))
    assert one.identity.startswith("one.py:make@") and one.source != other.source


def test_an_annotation_names_the_class(written) -> None:
    from diffusers import DiTPipeline

    texts = (
        "-> DiTPipeline",
        "-> tuple[DiTPipeline, dict]",
        "-> 'DiTPipeline | None'",
        "",
        "-> int",
    )
    found = []
    for i, text in enumerate(texts):
        body = f"from diffusers import DiTPipeline\ndef make() {text}: ...\n"
        found.append(read_factory(written(body, f"annotated{i}.py")).pipeline_class())
    assert found == [DiTPipeline, DiTPipeline, DiTPipeline, None, None]


def test_devices_and_dtypes(tmp_path, monkeypatch) -> None:
    assert choose_device("cpu") == "cpu"
    for text in ("meta", "mps", "nonsense", "cpu:a", "xla", "cuda:99"):
        with pytest.raises(UsageError, match=r"^device "):
            choose_device(text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    from safetensors.torch import save_file

    (tmp_path / "transformer").mkdir()
    path = tmp_path / "transformer" / "a.safetensors"
    assert checkpoint_dtype(tmp_path) is None
    for stored, expected in ((torch.float16, torch.float16), (torch.int8, None)):
        save_file({"w": torch.zeros(9, dtype=stored), "norm": torch.zeros(1)}, path)
        assert checkpoint_dtype(tmp_path) is expected
    assert choose_dtype(tmp_path, "cuda", None) is torch.bfloat16
    assert choose_dtype(tmp_path, "cuda", "float32") is torch.float32
    assert choose_dtype(tmp_path, "cpu", None) is torch.float32
    path.write_bytes(b"torn")
    assert checkpoint_dtype(tmp_path) is None
