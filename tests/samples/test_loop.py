"""Training in pieces is training in one piece, bit for bit."""

import math
import signal

import pytest
import torch
from torch import nn


class Model(nn.Module):
    """An embedding, blocks (for Muon), a buffer, and dropout, which draws from the global state."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(8, 12)
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.norm = nn.BatchNorm1d(12)
        self.out = nn.Linear(12, 1)

    def forward(self, index):
        x = self.emb(index)
        for block in self.blocks:
            x = x + torch.nn.functional.dropout(block(x).tanh(), 0.2)
        return self.out(self.norm(x))[:, 0]


def loss_of(model, step, generator):
    device = next(model.parameters()).device
    index = torch.randint(8, (16,), generator=generator).to(device)
    noise = torch.randn(16, generator=generator).to(device)
    wanted = (index.float() * (1 + step % 3) / 8).sin() + 0.1 * noise
    return (model(index).float() - wanted).square().mean()


@pytest.fixture
def loop(script, monkeypatch, tmp_path):
    module = script("loop")
    monkeypatch.setattr(module, "RUNS", tmp_path)
    return module


def session(loop, monkeypatch, name, steps, muon=True):
    """One process's worth: build, resume, train for exactly `steps` steps."""
    torch.manual_seed(0)
    run = loop.Run(name, Model(), rate=1e-2, muon=muon, decay=0.9, seed=1)
    begun = run.step
    monkeypatch.setattr(loop.time, "time", lambda: float(run.step - begun))
    run.train(loss_of, steps / 60, warmup=10)
    monkeypatch.undo()
    assert run.step == begun + steps
    return run


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("muon", [True, False])
def test_resume_is_exact(loop, tmp_path, muon):
    runs = {}
    for name, pieces in (("whole", [24]), ("pieces", [7, 5, 12]), ("short", [23])):
        for steps in pieces:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "RUNS", tmp_path)
                runs[name] = session(loop, patch, name, steps, muon)
    states = {
        name: torch.load(run.path, map_location="cpu", weights_only=True)
        for name, run in runs.items()
    }
    for part in ("model", "ema", "optimisers", "generator", "torch", "step"):
        assert equal(states["whole"][part], states["pieces"][part]), part
        assert not equal(states["whole"][part], states["short"][part]), part
    assert not equal(states["whole"]["model"], states["whole"]["ema"])


def test_averaged_weights_are_the_stored_average(loop, monkeypatch, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "RUNS", tmp_path)
        run = session(loop, patch, "one", 6)
    model = loop.averaged("one", Model())
    assert not model.training and equal(dict(model.state_dict()), dict(run.ema))
    with pytest.raises(FileNotFoundError, match=r"none is not trained: python samples/train"):
        loop.averaged("none", Model())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state(loop, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "RUNS", tmp_path)
        run = session(loop, patch, "one", 4)
    before = run.path.read_bytes()
    with pytest.raises(ValueError, match=r"loss is nan at step 4: lower the rate"):
        run.train(lambda *_: torch.tensor(math.nan, requires_grad=True), 1)
    assert run.path.read_bytes() == before


def test_plain_attention_is_attention_and_is_put_back(loop):
    functional = torch.nn.functional
    fused = functional.scaled_dot_product_attention
    q, k, v = torch.randn(3, 2, 2, 9, 16)
    expected = fused(q, k, v)
    with loop.plain_attention():
        found = functional.scaled_dot_product_attention(q, k, v)
        mask = torch.ones(9, 9, dtype=torch.bool).tril()
        masked = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert functional.scaled_dot_product_attention is fused
    assert (found.float() - expected).norm() < 0.02 * expected.norm()  # bfloat16
    torch.testing.assert_close(masked, fused(q, k, v, attn_mask=mask))


def test_sigterm_ends_after_a_step_and_saves_it(loop, tmp_path):
    def stopping(model, step, generator):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        assert step < 5
        return loss_of(model, step, generator)

    torch.manual_seed(0)
    run = loop.Run("pieces", Model(), rate=1e-2, muon=True, decay=0.9, seed=1)
    before = signal.getsignal(signal.SIGTERM)
    run.train(stopping, 10, warmup=10)
    assert run.step == 5
    assert signal.getsignal(signal.SIGTERM) is before
    runs = {}
    for name, steps in (("whole", 7), ("pieces", 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "RUNS", tmp_path)
            runs[name] = session(loop, patch, name, steps)
    assert equal(runs["whole"].model.state_dict(), runs["pieces"].model.state_dict())
