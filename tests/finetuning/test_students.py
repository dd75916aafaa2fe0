"""Students of the frame: maps that the model learns to live with, and one that a test brings."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save, save_file
from tiny import generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel import AttentionTileConfig, CLEARConfig, ConfigError, UsageError
from ditaccel.core.outputs import tensors_of
from ditaccel.finetuning import student as registry
from ditaccel.finetuning.changes import LowRank, change_of
from ditaccel.finetuning.run import finetune
from ditaccel.finetuning.student import Group, Student
from ditaccel.finetuning.training import Training
from ditaccel.io.adapter import Adapter, in_order

OPEN = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
CONFIGS = {
    "clear": CLEARConfig(radius=1.0, box=(1, 4, 4), **OPEN),
    "attention_tile": AttentionTileConfig(references=0, q_tile=16, k_tile=16, **OPEN),
}
CALL = {"height": 128, "width": 128, "num_inference_steps": 3, "output_type": "latent"}


def _start(build=tiny_wan):
    pipe, call = build(layers=2)
    embeds = {k: call.pop(k) for k in list(call) if "embeds" in k}
    return pipe, [embeds], {**call, **CALL}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Per method: a pipeline, its call, the finished run, and its output before it."""
    made = {}
    for name, config in CONFIGS.items():
        pipe, data, call = _start()
        before = generate(pipe, {**data[0], **call})
        out = tmp_path_factory.mktemp(name)
        options = {"steps": 12, "weights_lr": 3e-3, "quiet": True, "average": 0.5}
        run = finetune(pipe, data, config, out=out, **options, **call)
        made[name] = pipe, {**data[0], **call}, run, before
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_learn_to_live_with_a_map(trained, name):
    pipe, call, made, before = trained[name]
    assert made.error_after < 0.9 * made.error_before
    adapter = Adapter.load(made.adapter, name)
    names = set(adapter.changes["transformer"])
    assert names and all(".attn1." in each for each in names)  # attention weights alone
    assert made.size < 100_000

    def error(config):
        with ditaccel.accelerated(pipe, attention=config):
            return float((generate(pipe, call) - before).norm())

    plain = CONFIGS[name]
    fitted = replace(plain, weights=str(made.adapter))
    assert error(fitted) < error(plain)
    assert torch.equal(generate(pipe, call), before)  # nothing is left behind


DENSE = {"dense_steps": 3}, {"dense_parts": ((0.0, 1.0),)}


@pytest.mark.parametrize(("name", "dense"), list(zip(CONFIGS, DENSE, strict=True)))
def test_dense_steps_run_on_the_models_own_weights(trained, name, dense):
    pipe, call, made, before = trained[name]
    config = replace(CONFIGS[name], weights=str(made.adapter), **dense)
    with ditaccel.accelerated(pipe, attention=config):
        assert torch.equal(generate(pipe, call), before)


def test_changes_of_low_rank_make_a_smaller_file(trained, tmp_path):
    pipe, data, call = _start()
    options = {"steps": 12, "weights_lr": 1e-2, "quiet": True, "average": 0.5, "rank": 2}
    made = finetune(pipe, data, CONFIGS["clear"], out=tmp_path, **options, **call)
    assert made.error_after < 0.95 * made.error_before
    assert made.size < 0.7 * trained["clear"][2].size
    changes = Adapter.load(made.adapter, "clear").changes["transformer"]
    own = dict(pipe.transformer.named_parameters())
    assert all(changes[name].shape == own[name].shape for name in changes)
    matrix = changes["blocks.0.attn1.to_q.weight"]
    assert int(torch.linalg.matrix_rank(matrix, rtol=1e-4)) == 2
    fitted = replace(CONFIGS["clear"], weights=str(made.adapter))
    before = generate(pipe, {**data[0], **call})
    with ditaccel.accelerated(pipe, attention=fitted):
        assert torch.isfinite(generate(pipe, {**data[0], **call})).all()
    assert torch.equal(generate(pipe, {**data[0], **call}), before)
    with pytest.raises(ConfigError, match="rank is 0; give 1 or more"):
        finetune(pipe, data, CONFIGS["clear"], out=tmp_path / "a", rank=0, **call)


def test_the_gradient_of_a_low_rank_change_is_that_of_its_product():
    generator = torch.Generator().manual_seed(0)
    change = change_of(torch.zeros(6, 5), 2)
    assert isinstance(change, LowRank) and not change.value.any()
    for tensor in change.tensors:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    gradient = torch.randn(6, 5, generator=generator)
    up, down = (t.clone().requires_grad_() for t in change.tensors)
    (up @ down * gradient).sum().backward()
    change.take(gradient)
    torch.testing.assert_close(change.tensors[0].grad, up.grad)
    torch.testing.assert_close(change.tensors[1].grad, down.grad)
    assert not isinstance(change_of(torch.zeros(6), 2), LowRank)  # no matrix
    assert not isinstance(change_of(torch.zeros(2, 2), 1), LowRank)  # it would be no smaller


def test_an_adapter_for_something_else_is_refused_in_one_line(trained, tmp_path):
    pipe, _, made, _ = trained["clear"]
    weights = str(made.adapter)
    for config, wanted in (
        (CLEARConfig(radius=2.0, box=(1, 4, 4), weights=weights), "radius is 2.0, but .* radius=1"),
        (CLEARConfig(radius=1.0, weights=weights), r"box is \[1, 8, 8\], but"),
        (AttentionTileConfig(weights=weights), "trained for clear, not for attention_tile"),
    ):
        with pytest.raises(ConfigError, match=wanted) as told:
            ditaccel.accelerate(pipe, attention=config)
        assert "\n" not in str(told.value)
    other, _, _ = _start(tiny_flux)
    own = CLEARConfig(radius=1.0, box=(1, 4, 4), weights=weights)
    with pytest.raises(ConfigError, match="trained for another transformer: its parameters"):
        ditaccel.accelerate(other, attention=own)
    with pytest.raises(UsageError, match="no weights at"):
        ditaccel.accelerate(pipe, attention=CLEARConfig(weights=str(tmp_path / "none")))
    assert not any("_compiled_call_impl" in vars(m) for m in other.transformer.modules())


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ("{", {}),
        ("[]", {}),
        ('{"options": {}}', {}),
        ('{"options": {}, "models": {"t": {}}, "notes": {}}', {"t/up.a": torch.zeros(2, 2)}),
    ],
)
def test_a_damaged_adapter_is_refused_in_one_line(tmp_path, about, tensors):
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path, {"format": Adapter.formats[0], "ditaccel": about})
    with pytest.raises(UsageError, match=r"adapter.safetensors is damaged: parts of it are miss"):
        Adapter.load(path, "clear")


def test_what_has_nothing_to_train_is_refused(tmp_path, monkeypatch):
    pipe, data, call = _start()
    steps = []
    learn = Training._learn
    monkeypatch.setattr(Training, "_learn", lambda self, lessons: (
        steps.extend(lesson.step.index for lesson in lessons) or learn(self, lessons)
    ))  # fmt: skip
    parts = replace(CONFIGS["clear"], dense_parts=((0.0, 0.6),))  # the last of three steps is left
    finetune(pipe, data, parts, out=tmp_path / "parts", steps=2, quiet=True, **call)
    assert set(steps) == {2}
    whole = replace(parts, dense_parts=((0.0, 1.0),))
    with pytest.raises(ConfigError, match=r"no step .* lower dense_steps or dense_parts"):
        finetune(pipe, data, whole, out=tmp_path / "whole", quiet=True, **call)
    with pytest.raises(ConfigError, match=r"svg2 has nothing to train; .*: attention_tile, clear"):
        finetune(pipe, data, ditaccel.SVG2Config(), out=tmp_path / "a", **call)
    with pytest.raises(ConfigError, match="train is 'projection'"):
        finetune(pipe, data, CONFIGS["clear"], out=tmp_path / "a", train="projection", **call)
    assert not (tmp_path / "a").exists()


class _Gains(Student):
    """Learns one gain per step along a generation, which it runs itself."""

    trains = ("gains",)
    lessons = "generations"
    file = "gains.pt"

    def __init__(self, subject, config, train):
        super().__init__(subject, config, train)
        self.gains = torch.full((3,), 0.5, requires_grad=True)
        self.seen = 0

    def groups(self):
        return [Group([self.gains])]

    def output(self, call, teacher):
        raise AssertionError("a student of generations has no lessons of single calls")

    def learn(self, lesson, teacher, backward):
        self.seen += 1

        def around(call, inner):
            output = inner()
            with torch.enable_grad():
                told = tensors_of(output)[0] * self.gains[call.step.index]
                backward((told - tensors_of(output)[0]).square().mean())
            return output

        teacher.follow(lesson.item, lesson.seed, around)

    def error(self, lessons, teacher):
        return float((self.gains.detach() - 1).norm())

    def described(self):
        return {"options": {}}

    def save(self, path, notes):
        torch.save(self.gains.detach(), path)
        return path.stat().st_size

    def state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]

    def close(self):
        pass


def test_a_student_may_run_generations_itself_and_goes_on_exactly(tmp_path, monkeypatch):
    kind = type("Config", (SimpleNamespace,), {"method": "gains"})
    monkeypatch.setitem(registry._STUDENTS, kind, _Gains)
    pipe, data, call = _start()
    call |= {"height": 32, "width": 32}

    def train(folder, **more):
        options = {"steps": 4, "lr": 0.1, "save_every": 2, "quiet": True, **more}
        return finetune(pipe, data, kind(), out=tmp_path / folder, **options, **call)

    with pytest.raises(ConfigError, match=r"rank=2 is for changes .* gains trains none"):
        train("whole", rank=2)
    whole = train("whole")
    assert whole.error_after < whole.error_before
    update = Training._update

    def killed(self):
        if self._step == 3:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_update", killed)
        train("parts")
    train("parts")
    gains = [torch.load(tmp_path / n / "gains.pt") for n in ("whole", "parts")]
    assert torch.equal(*gains)
    assert torch.load(tmp_path / "parts" / "state.pt")["student"] == {"seen": 4}


def test_the_same_adapter_is_the_same_bytes():
    """safetensors writes metadata in a random order."""
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16)}
    about = {"format": "x", "ditaccel": json.dumps({"note": "\u00e9", "n": 1}), "z": "1", "y": "2"}
    files = {in_order(save(tensors, about)) for _ in range(20)}
    assert len(files) == 1
    (content,) = files
    assert int.from_bytes(content[:8], "little") % 8 == 0
    found = load(content)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
