"""Which metrics a run measures, why it leaves others out, and the judge of prompts."""

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch
from ditaccel.eval.comparison.sampler import Sample
from ditaccel.eval.judge import Judge
from ditaccel.eval.metrics import extractors, fvd, real
from ditaccel.eval.metrics.base import METRICS, Need, Per, metrics, score
from ditaccel.eval.options import Options
from ditaccel.eval.shapes.features import FeatureNet

from ditaccel.errors import UsageError
from ditaccel.io.models import Sheet

SAMPLE = Sample("p000-s0", "a red circle", 0)
FRAMES = np.full((1, 16, 16, 3), 100, np.uint8)


def judge(**options: Any) -> Judge:
    return Judge(Options(quiet=True, **options), Sheet(), None)


def test_a_plain_run_measures_what_needs_nothing_but_pictures() -> None:
    plain = judge()
    packages = {m.package for m in metrics() if m.package}
    absent = {name for name in packages if importlib.util.find_spec(name) is None}
    assert "torchmetrics" not in absent
    needs_more = {
        m.key for m in metrics() if set(m.needs) != {Need.PICTURES} or m.package in absent
    }
    assert {m.key for m in plain.metrics} == set(METRICS) - needs_more
    assert set(plain.not_available) == needs_more | {"accuracy"}
    assert plain.not_available["fid_dense"] == extractors.HOW
    values = plain.judge(SAMPLE, FRAMES, FRAMES)
    assert set(values) == {m.key for m in metrics() if m.per is Per.SAMPLE}
    assert values["identical"] is True and values["ssim"] == pytest.approx(1.0)
    assert values["lpips"] is None


def test_without_torchmetrics_its_metrics_are_left_out_with_the_reason(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    without = judge()
    assert "ditaccel[eval]" in without.not_available["ssim"]
    values = without.judge(SAMPLE, FRAMES, FRAMES)
    assert values["ssim"] is None and values["psnr"] == 99.0


def test_a_metric_of_an_optional_package_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, METRICS["feature_distance"].package, None)
    without = judge()
    assert "ditaccel[features]" in without.not_available["feature_distance"]
    assert without.judge(SAMPLE, FRAMES, FRAMES)["feature_distance"] is None


def test_what_every_result_has_comes_first_and_sets_come_last() -> None:
    order = [(not m.essential, m.per is Per.SET) for m in metrics()]
    assert order == sorted(order)
    assert {m.key for m in metrics() if m.essential} == {"psnr", "mse", "identical"}
    for metric in metrics():
        assert metric.title and metric.about
        if Need.WEIGHTS in metric.needs or metric.package:
            assert metric.how, f"{metric.key} does not say how to get what it needs"


def test_a_feature_folder_brings_distances_and_a_judge_of_prompts(tmp_path) -> None:
    torch.manual_seed(0)
    FeatureNet().save_pretrained(tmp_path)
    full = judge(features=str(tmp_path))
    assert [m.key for m in full.metrics][-3:] == ["colour", "shape", "direction"]
    assert full.not_available["fid_real"] == real.HOW and "fid_dense" not in full.not_available
    values = full.judge(SAMPLE, FRAMES, FRAMES)
    assert {"colour", "shape"} <= set(values) and "direction" not in values
    assert not {"colour", "shape"} & set(full.judge(Sample("s", "a cat", 0), FRAMES, FRAMES))


def test_metrics_with_the_same_weights_load_them_once(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    FeatureNet().save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=frames)
    loads = []
    load = extractors.load_extractor
    monkeypatch.setattr(fvd, "load_extractor", lambda spec: loads.append(spec) or load(spec))
    both = judge(weights={"fvd": str(tmp_path)}, real=str(tmp_path / "real.npz"))
    assert {"fvd_dense", "fvd_real"} <= {metric.key for metric in both.metrics}
    assert loads == [str(tmp_path)]
    with pytest.raises(UsageError, match="fvd_dense: no metric of this name takes weights"):
        judge(weights={"fvd_dense": str(tmp_path)})


def test_a_folder_of_another_kind_is_opened_by_who_knows_it(tmp_path) -> None:
    """A user's own kind of feature folder, with a judge of its own."""

    class Words:
        scores = (score("words"),)

        def __call__(self, frames: Any, prompt: str, label: int | None) -> dict[str, float]:
            return {"words": float(len(prompt.split()))}

    def opens(folder):
        if not (folder / "mine.txt").exists():
            return None
        return extractors.Extractor("mine", 1, lambda images: torch.zeros(1, 1), judge=Words())

    with pytest.raises(UsageError, match="holds no feature network"):
        judge(features=str(tmp_path))
    extractors.register_folder("mine", opens)
    try:
        (tmp_path / "mine.txt").touch()
        found = judge(features=str(tmp_path))
        assert found.features == {"name": "mine", "dim": 1}
        assert found.judge(SAMPLE, FRAMES, FRAMES)["words"] == 3.0
    finally:
        extractors.FOLDERS.remove("mine")
