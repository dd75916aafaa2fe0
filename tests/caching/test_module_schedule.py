"""Module schedules: which module is computed when, and what a resting one gives."""

import pytest
import torch
from inspection import Watched, traces
from tiny import FAMILIES, generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel import ModuleScheduleConfig
from ditaccel.attention.engine.plan_files import SavedPlan
from ditaccel.caching.engine.modules.table import ModuleTable
from ditaccel.core.weight_changes import fingerprint


class Ran:
    """Steps at which modules ran, by name."""

    def __init__(self, transformer):
        self.steps, self.ran = -1, {}
        transformer.register_forward_pre_hook(self._step)
        for name, module in transformer.named_modules():
            if name.rpartition(".")[2] in ("attn1", "attn2", "ff", "ffn", "proj_out", "attn"):
                self.ran[name] = []
                module.register_forward_hook(lambda *_, n=name: self.ran[n].append(self.steps))

    def _step(self, *_):
        self.steps += 1


@pytest.mark.parametrize(("family", "interval", "steps"), [("dit", 3, 8), ("flux", 4, 10)])
def test_an_interval_over_all_modules_is_fora_bit_for_bit(family, interval, steps):
    pipe, call = FAMILIES[family]()
    call = {**call, "num_inference_steps": steps}
    found, calls = [], []
    for config in (ditaccel.FORAConfig(interval=interval), ModuleScheduleConfig.fora(interval)):
        with ditaccel.accelerated(pipe, cache=config):
            found.append(generate(pipe, call))
            report = ditaccel.report(pipe)
            calls.append([(c.step, c.branch, c.action, round(c.share, 9)) for c in report.calls])
    assert torch.equal(*found) and calls[0] == calls[1]
    assert any(action == "forecast" for _, _, action, _ in calls[0])


def test_rules_say_who_is_computed_when():
    pipe, call = tiny_dit(layers=2)
    ran = Ran(pipe.transformer)
    rules = ("*.0.attn1 C--C-C", "*.attn1 CC--C-", "transformer.*.ff C-----")
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=rules)):
        generate(pipe, call, num_inference_steps=6)
        report = ditaccel.report(pipe)
    blocks = "transformer_blocks."
    assert ran.ran[blocks + "0.attn1"] == [0, 3, 5]
    assert ran.ran[blocks + "1.attn1"] == [0, 1, 4]
    assert ran.ran[blocks + "0.ff"] == ran.ran[blocks + "1.ff"] == [0]
    assert report.modules["transformer.transformer_blocks.0.attn1"] == 0.5
    assert "Modules computed: transformer.transformer_blocks.attn1 50 %" in str(report)
    assert "transformer.transformer_blocks.1.ff: 17 %" in report.details()
    # parameters of what ran, by those of all modules
    costs = {n: sum(p.numel() for p in pipe.transformer.get_submodule(n).parameters()) for n in (
        blocks + "0.attn1", blocks + "0.ff")}  # fmt: skip
    attention, mlp = costs.values()
    at_3 = next(c for c in report.calls if c.step == 3)
    assert at_3.share == pytest.approx(attention / (2 * (attention + mlp)))


def test_a_resting_module_gives_its_newest_output_or_the_line_through_two():
    for order in (0, 1):
        pipe, call = tiny_wan()
        block = pipe.transformer.blocks[1]
        plain = Watched()
        plain.inputs("before", block.norm2, "x")
        plain.inputs("after", block.norm3, "x")
        plain.outputs("cross", block.attn2)
        config = ModuleScheduleConfig(rules=("blocks.1.attn2 C-C--",), order=order)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call, guidance_scale=1.0, num_inference_steps=5)
        before, after, cross = (plain.seen[key] for key in ("before", "after", "cross"))
        first, second = cross
        slope = (second - first) / 2 if order else 0
        expected = [first, first, second, second + slope, second + 2 * slope]
        for step in range(5):
            torch.testing.assert_close(
                after[step] - before[step], expected[step], rtol=1e-3, atol=1e-5
            )


def test_attention_that_rests_is_what_ditfastattn_shares_between_steps(tmp_path):
    pipe, call = tiny_dit(layers=2)
    call = {**call, "num_inference_steps": 5}
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=("*.attn1 C--C-",))):
        found = generate(pipe, call)
    words = {"transformer": [list("FSSFS")] * 2}
    SavedPlan("ditfastattn", 16, words, {"window": 4}).save(tmp_path / "plan.json")
    tiles = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    shared = ditaccel.DiTFastAttnConfig(plan=tmp_path / "plan.json", window=4, **tiles)
    with ditaccel.accelerated(pipe, attention=shared):
        torch.testing.assert_close(found, generate(pipe, call), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, generate(pipe, call), rtol=1e-3, atol=1e-3)


def test_rear_blocks_rest_early_and_front_ones_late():
    pipe, call = tiny_dit()
    ran = Ran(pipe.transformer)
    config = ModuleScheduleConfig.delta_dit(interval=2, blocks=0.5, boundary=0.5)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=9)
    every, computed = list(range(9)), [0, 2, 4, 6, 8]
    # of 9 steps 1 and 3 are early, 5 and 7 late
    front = [step for step in every if step in computed or step < 4.5]
    rear = [step for step in every if step in computed or step >= 4.5]
    for index, expected in enumerate([front, front, rear, rear]):
        for name in ("attn1", "ff"):
            assert ran.ran[f"transformer_blocks.{index}.{name}"] == expected


def test_what_only_feeds_resting_modules_of_its_block_rests_with_them():
    pipe, call = tiny_flux()
    ran = Ran(pipe.transformer)
    rules = ("single_transformer_blocks.1.proj_out C--C",)
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=rules)):
        generate(pipe, call, num_inference_steps=4, true_cfg_scale=1.0)
    assert ran.ran["single_transformer_blocks.1.attn"] == [0, 3]
    assert ran.ran["single_transformer_blocks.0.attn"] == [0, 1, 2, 3]


def test_exact_where_all_is_computed_and_undone():
    pipe, call = tiny_flux()
    dense = generate(pipe, call)
    before = traces(pipe)
    rules = ("*.attn CCCCCCCC", "single_transformer_blocks.* CCCCCCCC")
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=rules)):
        assert torch.equal(generate(pipe, call), dense)
        assert ditaccel.report(pipe).cache_bytes == 0  # nothing rests, so nothing is kept
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig()):
        assert not torch.equal(generate(pipe, call), dense)
    assert traces(pipe) == before and torch.equal(generate(pipe, call), dense)


def test_a_branch_that_guidance_left_out_is_computed_when_something_is_due():
    pipe, call = tiny_wan()

    def pause(pipe, index, timestep, tensors):
        pipe._guidance_scale = 1.0 if 1 <= index < 4 else 4.0
        return tensors

    config = ModuleScheduleConfig(rules=("*.attn1 C--C----", "*.ffn C-------"))
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=8, callback_on_step_end=pause)
        calls = ditaccel.report(pipe).calls
    shares = {c.step: c.share for c in calls if c.branch == "uncond"}
    # attention was due at step 3, while the branch was away: at 5 it is computed, the MLP rests
    assert sorted(shares) == [0, 1, 5, 6, 7] and 0 < shares[5] < 1
    assert shares[6] == shares[7] < shares[5]


def test_only_what_rests_is_kept_and_counted():
    pipe, call = tiny_dit(layers=2)
    rules = ("transformer_blocks.0.* C-C-",)
    hidden = 2 * 2 * 16 * 16 * 4  # both guidance branches of two samples, in one call
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=rules)):
        generate(pipe, call, num_inference_steps=4)
        report = ditaccel.report(pipe)
    assert report.tensors_per_branch == 2 and report.cache_bytes == 2 * hidden
    small = ModuleScheduleConfig(rules=rules, memory_budget=2 * hidden - 1)
    with (
        ditaccel.accelerated(pipe, cache=small),
        pytest.raises(ditaccel.ConfigError, match=r"over the budget of .*raise memory_budget"),
    ):
        generate(pipe, call, num_inference_steps=4)


def test_files_come_back_and_may_allow_another_number_of_steps(tmp_path):
    table = ModuleTable({"*.attn1": "C-CC", "*.ff": "C--C"}, resample=True, scheduler="DDIM")
    table.save(tmp_path / "table.yaml")
    again = ModuleTable.load(tmp_path / "table.yaml")
    assert dict(again.rules) == dict(table.rules) and again.resample and again.steps == 4
    pipe, call = tiny_dit(layers=2)
    ran = Ran(pipe.transformer)
    config = ModuleScheduleConfig(schedule=tmp_path / "table.yaml")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=8)
    # steps 2 and 3 of 4 are at the noise levels of 4 and (the last one) 7 of 8
    assert ran.ran["transformer_blocks.1.attn1"] == [0, 4, 7]
    assert ran.ran["transformer_blocks.0.ff"] == [0, 7]


def test_the_second_of_two_transformers_has_rules_of_its_own():
    pipe, call = tiny_wan22()
    rules = (f"transformer.*.ffn {'C' + '-' * 11}", f"transformer_2.*.attn1 {'C' + '-' * 11}")
    with ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=rules)):
        generate(pipe, call, num_inference_steps=12)
        modules = ditaccel.report(pipe).modules
    first, second = "transformer.blocks.0.", "transformer_2.blocks.0."
    assert modules[first + "ffn"] < modules[first + "attn1"] == 1.0
    assert modules[second + "attn1"] < modules[second + "ffn"] == 1.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rules": ("*.attn1",)}, "is not a pattern and a word"),
        ({"rules": ("*.attn1 C-", "*.attn1 CC")}, "named twice"),
        ({"rules": ("*.attn1 C-", "*.ff C-C")}, "words of 2 and 3 steps"),
        ({"rules": ("*.attn1 -C",)}, "rest at the first step"),
        ({"rules": ("*.attn1 C.",)}, "C to compute and - to rest"),
        ({"blocks": 1.5}, "blocks is 1.5; it is a share"),
        ({"resample": True}, "give one of them"),
        ({"interval": 0}, "interval is 0"),
        ({"rules": ("*.ff C-",), "interval": 3, "blocks": 0.5}, "interval and blocks change noth"),
        ({"rules": ("*.ff C-",), "schedule": "x.yaml"}, "give only one of them"),
    ],
)
def test_schedules_that_mean_nothing_are_refused_in_one_line(options, line):
    with pytest.raises(ditaccel.ConfigError, match=line):
        ModuleScheduleConfig(**options)


def test_other_steps_models_and_files_are_refused_in_one_line(tmp_path):
    pipe, call = tiny_dit(layers=2)
    with (
        ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(rules=("*.ff C-C-",))),
        pytest.raises(ditaccel.ConfigError, match="made for 4 steps, and this run has 6"),
    ):
        generate(pipe, call, num_inference_steps=6)
    with pytest.raises(ditaccel.ConfigError, match=r"\*\.proj_out fits no module of transformer"):
        ditaccel.accelerate(pipe, cache=ModuleScheduleConfig(rules=("*.ff C-", "*.proj_out C-")))
    (tmp_path / "table.yaml").write_text("modules: [1]\n")
    for name, line in (("none.yaml", "cannot read"), ("table.yaml", "is not a module schedule")):
        with pytest.raises(ditaccel.UsageError, match=line):
            ditaccel.accelerate(pipe, cache=ModuleScheduleConfig(schedule=tmp_path / name))
    models = {"transformer": fingerprint(tiny_dit(layers=3)[0].transformer)}
    ModuleTable({"*.ff": "C-C-"}, models=models).save(tmp_path / "model.yaml")
    with pytest.raises(ditaccel.ConfigError, match="was made for another transformer: its param"):
        ditaccel.accelerate(pipe, cache=ModuleScheduleConfig(schedule=tmp_path / "model.yaml"))
    table = ModuleTable({"*.ff": "C-C-"}, scheduler="Euler", timesteps=(9.0, 7.0, 5.0, 3.0))
    table.save(tmp_path / "other.yaml")
    with (
        ditaccel.accelerated(pipe, cache=ModuleScheduleConfig(schedule=tmp_path / "other.yaml")),
        pytest.warns(UserWarning, match="made for the timesteps of Euler"),
    ):
        generate(pipe, call, num_inference_steps=4)
