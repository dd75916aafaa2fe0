"""`doctor` says what `accelerate` would do, changes nothing and reads no weight."""

import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import ConfigMixin
from inspection import traces
from tiny import FAMILIES, family_of, generate, tiny_dit, tiny_wan

import ditaccel
from ditaccel import cli
from ditaccel.attention.engine.planner import Watcher
from ditaccel.caching.engine.policy import policy_of
from ditaccel.config import methods
from ditaccel.core import transformers as families
from ditaccel.core.kinds import is_modular
from ditaccel.core.transformers import family_of as adapter_of
from ditaccel.diagnosis.command import hollow_pipeline
from ditaccel.diagnosis.sizes import call_size
from ditaccel.io.models import load_pipeline, read_sheet
from ditaccel.tuning.observe import observed

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "models"


def unwrapped(text):
    """The text as it is before it is wrapped for a terminal."""
    return re.sub(r"\n {4,}", " ", text)


def transformers_of(pipe):
    parts = pipe.components.items()
    return {n: p for n, p in parts if "transformer" in n and p is not None}


def save_configs(pipe, folder):
    """A pipeline folder without weights."""
    folder.mkdir()
    plain = {k: v for k, v in dict(pipe.config).items() if isinstance(v, (bool, float, int))}
    index = {"_class_name": type(pipe).__name__, "vae": [None, None], **plain}
    if isinstance(getattr(pipe, "vae", None), ConfigMixin):
        pipe.vae.save_config(folder / "vae")
        index["vae"] = ["diffusers", type(pipe.vae).__name__]
    for name, part in transformers_of(pipe).items():
        part.save_config(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    pipe.scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(pipe.scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_it_foretells_what_accelerate_does_and_changes_nothing(name, tmp_path, monkeypatch):
    """From the pipeline and from its configs alone; each method is then really put on."""
    pipe, _ = FAMILIES[name]()
    before = traces(pipe)
    found = ditaccel.doctor(pipe)
    assert traces(pipe) == before
    assert found.ok and found.family == family_of(name)
    assert [f.component for f in found.transformers] == list(transformers_of(pipe))
    for method, told in zip([cls() for cls in methods().values()], found.methods, strict=True):
        assert told.name == method.method
        if told.reason or told.to_fit:
            # (ConfigError: a method whose constants have to be measured first)
            with pytest.raises((ditaccel.UnsupportedError, ditaccel.ConfigError)) as raised:
                ditaccel.accelerate(pipe, **{method.kind: method})
            assert told.to_fit or str(raised.value) == told.reason
        else:
            ditaccel.accelerate(pipe, **{method.kind: method})
            report = ditaccel.report(pipe)
            assert len(report.attention) == len(found.transformers) * (method.kind == "attention")
            ditaccel.restore(pipe)
    if is_modular(pipe):
        return  # (blocks that were put together in Python: no folder can name them)
    folder = save_configs(pipe, tmp_path / "model")
    # as it is where every package is installed that some pipeline needs
    monkeypatch.setattr(diffusers, type(pipe).__name__, type(pipe), raising=False)
    hollow = hollow_pipeline(folder, torch.float32)
    if not isinstance(getattr(pipe, "vae", None), ConfigMixin):
        hollow.vae = getattr(pipe, "vae", None)  # a stand-in, which has no file to be made from
    alone = ditaccel.doctor(hollow)
    assert alone.to_dict() == found.to_dict()


def test_command_line_without_weights(tmp_path, capsys):
    folder = shutil.copytree(
        SAMPLES / "shapes-wan", tmp_path / "wan", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert cli.main(["doctor", str(folder)]) == 0
    text = capsys.readouterr().out
    for part in (
        "family wan", "blocks: 10 x WanTransformerBlock", "blocks.*.attn1: 10 x WanAttnProcessor",
        "Method svg2 (attention): works", "Kernel backend torch: can run", "torch 2",
    ):  # fmt: skip
        assert part in text
    assert cli.main(["doctor", str(folder), "--json", "--config", "fast", "--tokens", "1000"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] and [m["name"] for m in data["methods"]] == ["adaptive_taylor"]
    # 2 outputs of 4 x (1 x 2 x 2) channels in bf16 for each of two branches
    channels = json.loads((folder / "transformer" / "config.json").read_text())["out_channels"] * 4
    assert data["methods"][0]["memory"] == 1000 * channels * (2 * 4 + 2 * (2 * 2 + 4) + 2)
    assert cli.main(["doctor", str(folder / "transformer")]) == 0
    assert "family wan" in capsys.readouterr().out


def test_exit_code_is_1_where_nothing_would_happen(tmp_path, capsys):
    pipe, _ = tiny_wan(layers=1)
    folder = save_configs(pipe, tmp_path / "one-block")
    assert cli.main(["doctor", str(folder)]) == 1
    assert "nothing would happen: WanTransformer3DModel has 1 block(s)" in capsys.readouterr().out
    folder = save_configs(tiny_wan()[0], tmp_path / "wan")
    few = ["doctor", str(folder), "--config", "safe", "--steps", "4"]
    assert cli.main(few) == 1
    assert "4 steps are too few for adaptive_taylor" in unwrapped(capsys.readouterr().out)
    assert cli.main([*few[:-1], "5"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{}/nothing"], "holds no model_index.json"),
        (["{}/wan", "--config", "warp"], "no preset 'warp'"),
        (["{}/wan", "--tokens", "0"], "--tokens must be a whole number >= 1: '0'"),
        (["{}/broken"], "cannot be read"),
        (
            ["no-such/model"],
            "nor a model in the local Hub cache; doctor reads",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, line, tmp_path, capsys):
    save_configs(tiny_wan()[0], tmp_path / "wan")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    try:
        code = cli.main(["doctor", *(a.format(tmp_path) for a in arguments)])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    assert line in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_an_accelerated_pipeline_is_looked_at_and_goes_on():
    pipe, call = tiny_dit()
    clean = traces(pipe)
    found = ditaccel.doctor(pipe).to_dict()
    ditaccel.accelerate(pipe, "taylorseer & lite_attention")
    before, expected = traces(pipe), generate(pipe, call)
    assert ditaccel.doctor(pipe).to_dict() == found
    with pytest.raises(ditaccel.ConfigError, match="warp"):
        ditaccel.doctor(pipe, "warp")
    assert [sorted(x) for x in traces(pipe)] == [sorted(x) for x in before]
    assert torch.equal(generate(pipe, call), expected)
    report = ditaccel.report(pipe)
    assert report.total_calls == 2 * call["num_inference_steps"] and len(report.attention) == 1
    ditaccel.restore(pipe)
    assert traces(pipe)[0].keys() == clean[0].keys()


def of_its_own():
    """A scheduler whose step wants more than pipelines give."""
    from diffusers import DDIMScheduler

    class Odd(DDIMScheduler):
        def step(self, model_output, timestep, sample, more):
            raise AssertionError

    return Odd(clip_sample=False)


def test_reasons_come_from_the_pipeline_at_hand():
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    pipe, _ = tiny_dit(scheduler=of_its_own())
    for block in pipe.transformer.transformer_blocks:
        block.attn1.processor = SanaLinearAttnProcessor2_0()
    found = {m.name: m.reason for m in ditaccel.doctor(pipe).methods}
    assert "cannot be stepped as" in found["adaptive_taylor"] and not found["taylorseer"]
    assert "linear attention" in found["lite_attention"]
    assert not ditaccel.doctor(pipe, "adaptive_taylor").ok
    assert ditaccel.doctor(pipe, "taylorseer:interval=2").ok


def test_a_mask_is_held_against_the_steps_that_are_told():
    pipe, _ = tiny_dit()
    config = "step_mask:steps=[0, 1, 2, 20],total=30"
    assert ditaccel.doctor(pipe, config).ok
    assert ditaccel.doctor(pipe, config, steps=30).ok
    assert "this run has 40" in ditaccel.doctor(pipe, config, steps=40).problem


def test_a_transformer_of_no_known_family(monkeypatch, capsys):
    monkeypatch.setattr(families, "adapter_for", lambda name: None)
    pipe, _ = FAMILIES["flux"]()
    clean = traces(pipe)
    found = ditaccel.doctor(pipe)
    text = unwrapped(str(found))
    assert found.ok and found.family == "unknown (FluxTransformer2DModel)"
    assert "single_transformer_blocks.*.attn: 3 x FluxAttnProcessor" in text
    assert "where text stands is seen in a dry run" in text
    noted = {m.name: bool(m.note) for m in found.methods if not (m.reason or m.to_fit)}
    for name, note in noted.items():
        method = methods()[name]
        outside = method.kind == "cache" and policy_of(method()).outside
        assert note is not outside, name
    assert not noted["adaptive_taylor"] and not noted["step_mask"]
    assert noted["taylorseer"] and noted["lite_attention"]
    assert traces(pipe) == clean


def test_a_transformer_compiled_as_a_whole():
    pipe, _ = tiny_wan()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    found = {m.name: m.reason for m in ditaccel.doctor(pipe).methods}
    assert not found["adaptive_taylor"] and "compile_repeated_blocks" in found["taylorseer"]


class UNet(torch.nn.Module):
    """Narrows and widens."""


def test_pipelines_without_a_transformer_are_named():
    old = SimpleNamespace(components={"unet": UNet()})
    found = ditaccel.doctor(old)
    assert not found.ok and "has a UNet (UNet) and no transformer" in unwrapped(str(found))
    with pytest.raises(ditaccel.UsageError, match="neither a diffusers pipeline"):
        ditaccel.doctor("pipe")


def test_an_attention_method_that_would_do_nothing_at_the_default_size(tmp_path, capsys):
    assert cli.main(["doctor", str(SAMPLES / "shapes-flux")]) == 0
    text = unwrapped(capsys.readouterr().out)
    assert (
        "Method svg2 (attention): works, but does nothing at this model's size (height=64, "
        "width=64): 64 tokens are fewer than its min_tokens=1024; it would from height=256, "
        "width=256 on" in text
    )
    assert cli.main(["doctor", str(SAMPLES / "shapes-dit"), "--config", "sla"]) == 1
    text = unwrapped(capsys.readouterr().out)
    assert "model's size: 64 tokens are fewer than its min_tokens=1024\n" in text
    assert "Verdict: nothing would happen: sla does nothing at this model's size" in text
    both = ["doctor", str(SAMPLES / "shapes-dit"), "--config", "taylorseer & sla"]
    assert cli.main(both) == 0  # the cache works, which is said of each
    assert "Method sla (attention): works, but does nothing" in capsys.readouterr().out
    assert cli.main(["doctor", str(SAMPLES / "shapes-wan")]) == 0  # 2048 tokens
    text = capsys.readouterr().out
    assert "does nothing" not in unwrapped(text)
    assert max(len(line) for line in text.splitlines()) <= 80
    few = ["doctor", str(SAMPLES / "shapes-wan"), "--config", "svg2", "--tokens", "1000"]
    assert cli.main(few) == 1
    text = unwrapped(capsys.readouterr().out)
    assert "1000 tokens are fewer than its min_tokens=1024" in text


@pytest.mark.parametrize(
    ("name", "index", "line"),
    [
        ("unet", {"unet": ["diffusers", "UNet2DConditionModel"]}, "has a UNet (UNet2DCond"),
        (
            "newer",
            {"_class_name": "NoSuchPipeline"},
            "names the class NoSuchPipeline, whi",
        ),
        (
            "part",
            {"transformer": ["diffusers", "NoSuchTransformer"]},
            "class NoSuchTransformer",
        ),
    ],
)
def test_what_cannot_be_accelerated_is_said_before_anything_is_read(
    name, index, line, tmp_path, capsys
):
    """Nothing but the index is there: no file of a component has to be readable."""
    folder = tmp_path / name
    folder.mkdir()
    index = {"_class_name": "StableDiffusionXLPipeline", **index}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert cli.main(["doctor", str(folder)]) == 1
    out, err = capsys.readouterr()
    out = unwrapped(out)
    assert "Verdict: nothing would happen: " in out and line in out and not err
    assert cli.main(["doctor", str(folder), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["ok"] and line in data["problem"]


def test_a_folder_of_a_unet_or_of_a_class_that_is_not_there(tmp_path, capsys):
    for kind, line in (("UNet2DConditionModel", "is a UNet"), ("NoSuchModel", "which diffusers")):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
        assert cli.main(["doctor", str(tmp_path)]) == 1
        assert line in unwrapped(capsys.readouterr().out)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_exit_code_and_recommendation_agree(name, tmp_path, capsys):
    """And no warning is shown that is not ours."""
    pipe, _ = FAMILIES[name]()
    folder = save_configs(pipe, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # which no user sees
        found = ditaccel.doctor(pipe)
        code = cli.main(["doctor", str(folder), "--dtype", "float32"])
    text, said = capsys.readouterr()
    assert not said
    assert code == (0 if found.ok else 1) and ("nothing would happen" in text) is not found.ok
    assert " in float32, two branches" in unwrapped(text) and repr(found) == str(found)
    assert found.ok is bool(found.recommendation)
    call = found.recommendation.partition(":")[0]
    eval(call, {"ditaccel": ditaccel, "pipe": pipe})
    ditaccel.restore(pipe)


def test_the_recommendation_fits_scheduler_and_steps():
    pipe, _ = tiny_wan()
    assert "accelerate(pipe, 'balanced'): the preset that" in ditaccel.doctor(pipe).recommendation
    odd, _ = tiny_dit(scheduler=of_its_own())
    found = ditaccel.doctor(odd)
    assert "cannot be stepped as" in found.recommendation
    assert "'balanced'" not in found.recommendation
    assert "3 steps are too few" in ditaccel.doctor(pipe, steps=3).recommendation
    with pytest.raises(ditaccel.ConfigError, match=r"doctor: steps is 2.5; it must be a whole"):
        ditaccel.doctor(pipe, steps=2.5)


def test_a_hub_id_whose_files_are_in_the_local_cache(tmp_path, monkeypatch, capsys):
    import huggingface_hub

    folder = save_configs(tiny_wan()[0], tmp_path / "snapshot")
    asked = []

    def look(repo, name):
        asked.append((repo, name))
        return str(folder / name) if (folder / name).is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    assert cli.main(["doctor", "somebody/wan"]) == 0
    assert "family wan" in capsys.readouterr().out
    assert asked == [("somebody/wan", "model_index.json")]
    assert cli.main(["doctor", str(folder)]) == 0 and len(asked) == 1


@pytest.mark.parametrize("name", ["shapes-dit", "shapes-flux", "shapes-wan"])
def test_the_tokens_of_a_size_are_those_that_attention_gets(name):
    pipe = load_pipeline(str(SAMPLES / name))
    pipe.set_progress_bar_config(disable=True)
    call = {**read_sheet(SAMPLES / name).call, "num_inference_steps": 1}
    if name == "shapes-wan":
        call["num_frames"] = 7
    asked = {"class_labels": [1]} if name == "shapes-dit" else {"prompt": "a red circle"}
    lengths = set()

    class Lengths(Watcher):
        def look(self, q, k, v, scale, context, state):
            begin, end = context.text or (0, 0)
            lengths.add(context.length - (end - begin))

    with observed(pipe, Lengths()):
        for _ in range(2):
            size = call_size(pipe, pipe.transformer, adapter_of(pipe.transformer), call)
            lengths.clear()
            pipe(**asked, **call, output_type="np")
            assert lengths == {size.tokens}
            call |= size.reaching(size.tokens + 1) or {}
    assert call.get("height", 96) == 96  # pipelines want sizes in sixteens


def test_both_experts_of_wan_22_are_told(tmp_path):
    from tiny import tiny_wan22

    pipe, _ = tiny_wan22(layers=2)
    told = ditaccel.doctor(pipe, "balanced", steps=16).scheduler["experts"]
    assert told.startswith("transformer makes the first 13 of 16 steps, transformer_2 the others")
    assert "down to timestep 500" in ditaccel.doctor(pipe, "balanced").scheduler["experts"]
    mask = ditaccel.doctor(pipe, "step_mask:steps=[0,3,5],total=16", steps=16)
    assert "none of the steps 13 to 15" in mask.problem and not mask.ok
    pipe.register_to_config(boundary_ratio=None)
    assert "experts" not in ditaccel.doctor(pipe, "balanced").scheduler


def test_a_method_without_its_constants_works_once_they_are_measured():
    pipe, _ = tiny_wan()
    found = ditaccel.doctor(pipe)
    (verdict,) = (each for each in found.methods if each.name == "magcache")
    assert not verdict.reason and not verdict.works and found.ok
    assert "Method magcache (cache): works once its magnitude ratios are measured" in str(found)
    asked = ditaccel.doctor(pipe, "magcache")
    assert not asked.ok and asked.problem.startswith("magcache works once its magnitude ratios")


def test_what_the_presets_make_of_the_number_of_steps():
    pipe, _ = tiny_wan()
    for steps, line in ((40, "balanced: 26 of 40 steps"), (12, "balanced: all 12 of these few")):
        assert ditaccel.doctor(pipe, steps=steps).auto_steps[0].startswith(line)
    assert ditaccel.doctor(FAMILIES["flux"]()[0], steps=40).auto_steps == []
