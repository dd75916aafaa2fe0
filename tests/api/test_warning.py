"""A warning points at the line of the user's own that led to it."""

import inspect
import threading
import warnings

import pytest
from tiny import tiny_flux, tiny_wan

import ditaccel
from ditaccel.core import transformers as families
from ditaccel.warning import plain_warnings, warn


def lines_of(caught):
    return {(w.filename, w.lineno) for w in caught if str(w.message).startswith("ditaccel: ")}


def here():
    """File and line of the caller."""
    frame = inspect.currentframe().f_back
    return frame.f_code.co_filename, frame.f_lineno


@pytest.mark.parametrize(("config", "steps"), [("balanced", 2), ("lite_attention", 6)])
@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
def test_one_out_of_a_generation_points_at_the_call_of_the_pipeline(make, config, steps):
    """A scheduler step count (by the tracker) and a short sequence (from within a processor)."""
    pipe, call = make()
    call = {**call, "num_inference_steps": steps}
    with ditaccel.accelerated(pipe, config), pytest.warns(UserWarning) as caught:
        line = here(), pipe(**call)
    assert lines_of(caught) == {line[0]}


def test_one_out_of_a_verb_points_at_the_verb(monkeypatch):
    monkeypatch.setattr(families, "adapter_for", lambda name: None)
    pipe, _ = tiny_wan()
    with pytest.warns(UserWarning, match="no family") as caught:
        line = here(), ditaccel.accelerate(pipe)
    ditaccel.restore(pipe)
    assert lines_of(caught) == {line[0]}
    with pytest.warns(UserWarning, match="no family") as caught, ditaccel.accelerated(pipe):
        line = here()
    file, number = line
    assert lines_of(caught) == {(file, number - 1)}


def test_a_thread_without_a_line_of_the_users_is_no_error():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn, args=("told",))
        thread.start()
        thread.join()
    assert [str(w.message) for w in caught] == ["ditaccel: told"]


def test_a_command_shows_a_warning_as_one_line():
    """With the file and the line of our own code behind it, it is three lines of noise."""
    shown = warnings.formatwarning
    with plain_warnings():
        told = [
            warnings.formatwarning(UserWarning("ditaccel: a\nb"), UserWarning, "cli.py", 7),
            warnings.formatwarning(FutureWarning("old name"), FutureWarning, "x.py", 1),
        ]
    assert told == ["ditaccel: warning: a b\n", "ditaccel: warning: old name\n"]
    assert warnings.formatwarning is shown
