"""Training a router: mixed outputs, weights of steps, and what is learnt."""

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux

import ditaccel
from ditaccel import HarmoniCaConfig
from ditaccel.caching.harmonica import Router
from ditaccel.core.transformers import transformers_of
from ditaccel.finetuning.student import Subject
from ditaccel.finetuning.students.harmonica import HarmoniCaStudent, _Mix
from ditaccel.finetuning.teacher import Teacher
from ditaccel.finetuning.training import TrainingStopped

CALL = {"guidance_scale": 3.0, "num_inference_steps": 5}
DATA = [{"class_labels": [1]}, {"class_labels": [2]}]


def trained(pipe, out, steps=4, lr=0.3, **options):
    config = HarmoniCaConfig(**{"share": 0.5, "proxy_every": 2, **options})
    given = {"lr": lr, "average": 0.0, "save_every": 2, "quiet": True, **CALL}
    return ditaccel.finetune(pipe, DATA, config, out=out, steps=steps, **given)


def test_a_module_gives_part_of_what_it_gave_when_it_was_last_computed():
    store = {}
    outputs = []
    for new, weight in ((1.0, 0.7), (2.0, 0.05), (3.0, 0.5), (5.0, 1.0), (7.0, 0.0)):
        mix = _Mix(torch.tensor([weight]), store)
        outputs.append(float(mix.output(0, torch.tensor([new]))))
    # 0.05 is too little to count as computed, so that 1 is what the third call finds
    assert outputs == pytest.approx([1.0, 0.95 + 0.1, 0.5 + 1.5, 5.0, 5.0])


def student_on(pipe, call, item, **options):
    transformers, family = transformers_of(pipe)
    subject = Subject(pipe, transformers, family, call)
    student = HarmoniCaStudent(subject, HarmoniCaConfig(**options), "router")
    teacher = Teacher(pipe, transformers, family, call)
    student.check(teacher, item, 0)
    return student, teacher


def test_a_step_weighs_what_routing_it_does_to_the_end():
    pipe, _ = tiny_dit(layers=2)
    student, teacher = student_on(pipe, CALL, DATA[0])
    try:
        logits = student.router.logits["transformer"]
        with torch.no_grad():
            logits.fill_(100.0)  # computed to the last bit
            logits[2] = -100.0
        student._weigh_steps(teacher)
        # the mean of the weights is 1, and there are five
        assert student.state()["step_weights"] == [0.0, 0.0, pytest.approx(5.0), 0.0, 0.0]
    finally:
        student.close()


def test_a_loss_is_that_of_the_mixed_outputs_at_the_routers_own_latents():
    pipe, _ = tiny_dit(layers=2)
    seen = []
    student, teacher = student_on(pipe, CALL, DATA[0], proxy_every=0)
    try:
        dense = teacher.calls(DATA[0], 3, lambda step: True)
        student.learn(student_lesson(DATA[0], 3), teacher, lambda loss: seen.append(loss))
        assert len(seen) == 4 and all(float(loss.detach()) > 0 for loss in seen)
        with torch.no_grad():
            student.router.logits["transformer"].fill_(100.0)
        assert all(loss.requires_grad for loss in seen)
        seen.clear()
        student.learn(student_lesson(DATA[0], 3), teacher, lambda loss: seen.append(loss))
        # what computes all is its own teacher, and the generation is the dense one
        assert [float(loss.detach()) for loss in seen] == [0.0] * 4 and len(dense) == 5
    finally:
        student.close()
    assert all(p.requires_grad for p in pipe.transformer.parameters())


def student_lesson(item, seed):
    from ditaccel.finetuning.student import Generation

    return Generation(item, seed)


@pytest.mark.parametrize("way", ["steps", "pairs"])
def test_what_changes_nothing_rests(tmp_path, way):
    """A module that always gives zeros is the first that rests, and the pipeline is as before."""
    pipe, call = tiny_dit(layers=2)
    with torch.no_grad():
        for parameter in pipe.transformer.transformer_blocks[1].ff.net[2].parameters():
            parameter.zero_()
    dense = generate(pipe, call)
    made = trained(pipe, tmp_path / "run", steps=10, way=way, lr=1.0)
    assert (generate(pipe, call) == dense).all()
    router = Router.load(made.adapter, "harmonica")
    words = router.table().rules
    assert made.size < 4000
    idle = words["transformer.transformer_blocks.1.ff"]
    assert idle == ("C----" if way == "steps" else "C-C-C")
    with ditaccel.accelerated(pipe, cache=HarmoniCaConfig(schedule=made.adapter)):
        generate(pipe, call, num_inference_steps=5)
        assert ditaccel.report(pipe).computed_share <= 0.5 + 0.15 * (way == "pairs")


def test_a_killed_run_resumes_exactly(tmp_path, monkeypatch):
    pipe, _ = tiny_dit(layers=2)
    whole = trained(pipe, tmp_path / "whole")
    learn, calls = HarmoniCaStudent.learn, []

    def dies(self, *args):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learn(self, *args)

    monkeypatch.setattr(HarmoniCaStudent, "learn", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(pipe, tmp_path / "killed")
    monkeypatch.undo()
    again = trained(pipe, tmp_path / "killed")
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    pipe, _ = tiny_dit(layers=2)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].ff.net[2].weight[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match="training stopped"):
        trained(pipe, tmp_path / "run")


def test_branches_that_are_called_one_by_one_have_outputs_of_their_own(tmp_path):
    pipe, call = tiny_flux()
    item = {key: value for key, value in call.items() if torch.is_tensor(value)}
    call = {"true_cfg_scale": 3.0, "height": 32, "width": 32, "num_inference_steps": 4}
    student, teacher = student_on(pipe, call, item, proxy_every=0)
    try:
        # Euler steps: an error of an output is in the end what the noise level changes by, times it
        widths = pipe.scheduler.sigmas.double().diff().square()
        assert student.state()["step_weights"] == pytest.approx((widths / widths.mean()).tolist())
        with torch.no_grad():
            student.router.logits["transformer"].fill_(100.0)
        seen = []
        losses = lambda loss: seen.append(float(loss.detach()))  # noqa: E731
        student.learn(student_lesson(item, 1), teacher, losses)
        assert seen == [0.0] * 6  # three steps of two branches
    finally:
        student.close()
