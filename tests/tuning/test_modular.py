"""What compares or writes pictures refuses modular pipelines in one line, before anything runs."""

from __future__ import annotations

import pytest
from ditaccel.eval.comparison.sampler import Sampler
from tiny import FAMILIES

import ditaccel
from ditaccel.io.asking import refuse_modular

MODULAR = [name for name in ("flux3", "minimax_h3") if name in FAMILIES]


@pytest.fixture(params=MODULAR)
def pipe(request, monkeypatch):
    pipe, _ = FAMILIES[request.param]()

    def never(*args, **kwargs):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(type(pipe), "__call__", never)
    return pipe


def refused(verb):
    return pytest.raises(ditaccel.UnsupportedError, match=f"^{verb} does not work on modular pipe")


def test_tune(pipe):
    with refused("tune"):
        ditaccel.tune(pipe, ["a red circle"], ditaccel.Target(psnr=30), steps=7)


def test_generate(pipe, tmp_path):
    with refused("generate"):
        ditaccel.generate(pipe, ["a red circle"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_eval(pipe):
    with refused("eval"):
        Sampler(pipe, {}, 7)


def test_others_are_not_refused():
    refuse_modular(type(FAMILIES["flux"]()[0]), "tune")
