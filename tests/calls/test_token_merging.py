"""Token merging: the matching by hand, positions and masks of what is left, exactness and undo."""

import copy
import pickle

import pytest
import torch
from conformance import METHODS, WORKS, Subject, check_method, skipped
from ditaccel.pipelines import adapters
from tiny import FAMILIES, generate

import ditaccel
from ditaccel.attention.engine.state import CallInProgress
from ditaccel.calls.engine.merging import Group, Merge, drawn, matched
from ditaccel.calls.engine.method import CallLog, Site
from ditaccel.calls.token_merging import TokenMergingConfig, _Now
from ditaccel.core.denoising.tracker import DenoisingStep

TOKENS = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.05]], dtype=torch.float64)
GROUPS = [Group(torch.tensor([1, 3]), torch.tensor([0, 2]))]


def test_the_most_similar_source_merges_into_its_target():
    # cosines with token 0: 0.99388 of token 1, 0.99875 of token 3
    merge = matched(TOKENS[None], GROUPS, ratio=0.25)
    assert merge.kept.tolist() == [0, 1, 2] and merge.stands.tolist() == [0, 1, 2, 0]
    both = matched(TOKENS[None], GROUPS, ratio=0.5)
    assert both.kept.tolist() == [0, 2] and both.stands.tolist() == [0, 0, 1, 0]
    none = matched(TOKENS[None], GROUPS, ratio=0.2)  # less than one token
    assert none.stands.tolist() == [0, 1, 2, 3]


def test_one_matching_for_the_whole_batch():
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    merge = matched(torch.stack([TOKENS, other]), GROUPS, ratio=0.25)
    # mean cosine with token 0: 0.997 of token 1, 0 of token 3
    assert merge.stands.tolist() == [0, 0, 1, 2]


def test_merging_replaces_or_takes_the_mean_and_unmerging_copies():
    merge = matched(TOKENS[None], GROUPS, ratio=0.5)
    assert torch.equal(merge.merged(TOKENS, 0), TOKENS[[0, 2]])
    mean = merge.merged(TOKENS, 0, mean=True)
    expected = torch.stack([TOKENS[[0, 1, 3]].sum(0) / 3, TOKENS[2]])
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-15)
    assert torch.equal(merge.unmerged(mean, 0), mean[[0, 0, 1, 0]])
    longer = merge.shifted(2, 1)
    assert longer.kept.tolist() == [0, 1, 2, 4, 6]
    assert longer.stands.tolist() == [0, 1, 2, 2, 3, 2, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mean_of_many_tokens_neither_overflows_nor_stalls_in_half_precision(dtype):
    merge = Merge(torch.tensor([0]), torch.zeros(1000, dtype=torch.int64))
    x = torch.cat([torch.full((300, 1), 100.0), torch.full((700, 1), 300.0)]).to(dtype)
    (mean,) = merge.merged(x, 0, mean=True)
    assert mean.dtype == dtype and float(mean) == 240.0


@pytest.mark.parametrize(
    ("grid", "cell"), [((1, 5, 7), (1, 2, 2)), ((7, 3, 3), (4, 1, 1)), ((5, 4, 3), (2, 2, 2))]
)
def test_one_target_of_each_cell_is_drawn(grid, cell):
    frames, rows, columns = grid
    places = torch.arange(frames * rows * columns).view(grid)
    found = []
    for group in drawn(grid, cell, seed=3):
        tokens = torch.cat([group.sources, group.targets])
        assert len(tokens.unique()) == len(tokens)
        found += tokens.tolist()
        per_frame = [frame for frame in places if frame.flatten()[0] in tokens]
        assert len(per_frame) <= cell[0]
        cells = [
            torch.stack(per_frame)[:, top : top + cell[1], left : left + cell[2]].flatten()
            for top in range(0, rows, cell[1])
            for left in range(0, columns, cell[2])
        ]
        assert all(torch.isin(each, group.targets).sum() == 1 for each in cells)
        # one frame for all cells of a group
        assert len({int(target) // (rows * columns) for target in group.targets}) == 1
    assert sorted(found) == places.flatten().tolist()
    again = drawn(grid, cell, seed=3)
    assert all(
        torch.equal(a.targets, b.targets) for a, b in zip(again, drawn(grid, cell, 3), strict=True)
    )


class _Seam:
    """Dense attention in float64, written out."""

    @staticmethod
    def dense(q, k, v, mask, scale):
        scores = q @ k.mT * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v


def _attention(reduce, mask):
    """Attention of 3 tokens of text and 2 x 2 of a picture, of which one merges."""
    config = TokenMergingConfig(ratio=0.25, around="attention", reduce=reduce, min_tokens=0)
    carried = config.call_method()
    adapter = adapters()["flux"]
    carried.site, carried.log = Site("transformer", None, adapter, print), CallLog("", "")
    carried._seam = type("Seam", (), {"layers": [_Seam]})
    step = DenoisingStep(0, 0, "cond", 1.0, total=4)
    carried._now = _Now(CallInProgress(step, adapter, 4, (1, 2, 2), 0), 0.25, {})
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 7, 4, dtype=torch.float64).unbind()
    out = carried._attend(0, lambda: None, q, k, v, mask, 0.5)
    image = v[:, :, 3:].transpose(1, 2).flatten(2)
    merge = matched(image, drawn((1, 2, 2), (1, 2, 2), carried._seed(step, 0)), 0.25)
    return q, k, v, out, merge, carried._now


@pytest.mark.parametrize("reduce", ["replace", "mean"])
def test_attention_on_merged_tokens_by_hand(reduce):
    mask = torch.tensor([True, True, False, True, True, True, True]).expand(2, 1, 1, 7)
    q, k, v, out, merge, now = _attention(reduce, mask)
    kept = [0, 1, 2, *(merge.kept + 3).tolist()]
    stands = [kept[int(place) + 3] for place in merge.stands]
    gone = next(token for token in range(3, 7) if token not in kept)
    target = stands[gone - 3]
    values = v.clone()
    if reduce == "mean":
        values[:, :, target] = (v[:, :, target] + v[:, :, gone]) / 2
    for query, place in enumerate([0, 1, 2, *stands]):
        seen = [key for key in kept if key != 2]  # the mask leaves out the third of the text
        weights = (q[:, :, [place]] @ k[:, :, seen].mT * 0.5).softmax(-1)
        expected = (weights @ values[:, :, seen])[:, :, 0]
        torch.testing.assert_close(out[:, :, query], expected, rtol=0, atol=1e-12)
    assert (now.total, now.left) == (7, 6)


@pytest.mark.parametrize(
    ("name", "path", "argument", "axis", "text"),
    [
        ("flux", "transformer_blocks.0.attn", "image_rotary_emb", 0, 6),
        ("wan", "blocks.0.attn1", "", 1, 0),
    ],
)
def test_tokens_that_are_left_keep_their_positions(name, path, argument, axis, text):
    subject = Subject(FAMILIES[name], 5)
    transformer, seen = subject.pipe.transformer, {}
    block = transformer.get_submodule(path.rpartition(".")[0])

    def of_attention(module, args, kwargs):
        seen.setdefault("rotary", kwargs[argument] if argument else args[3])

    def of_block(module, args, kwargs):
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        rotary = kwargs.get("image_rotary_emb", args[3] if len(args) > 3 else None)
        seen.setdefault("block", (hidden, rotary))

    def of_transformer(module, args, kwargs):
        seen["latents"] = tuple(kwargs["hidden_states"].shape)

    handles = [
        transformer.register_forward_pre_hook(of_transformer, with_kwargs=True),
        block.register_forward_pre_hook(of_block, with_kwargs=True),
        transformer.get_submodule(path).register_forward_pre_hook(of_attention, with_kwargs=True),
    ]
    with ditaccel.accelerated(subject.pipe, "token_merging:ratio=0.5,min_tokens=0"):
        subject.run(num_inference_steps=1)
    for handle in handles:
        handle.remove()
    hidden, rotary = seen["block"]
    count, adapter = hidden.shape[1], adapters()[name]
    grid = (1, 11, 11) if name == "flux" else adapter.grid(transformer.config, seen["latents"], {})
    cell = (1, 2, 2) if name == "flux" else (4, 1, 1)
    merge = matched(hidden, drawn(grid, cell, 0), 0.5)
    assert (
        len(merge.kept) == count - int(0.5 * count) if name == "flux" else len(merge.kept) < count
    )
    joint = merge.shifted(text, 0)
    for given, left in zip(rotary, seen["rotary"], strict=True):
        assert torch.equal(left, given.index_select(axis, joint.kept))


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image"])
@pytest.mark.parametrize("method", [key for key in METHODS if key.startswith("token_merging")])
def test_exact_at_ratio_0_and_undone(name, method):
    assert check_method(Subject(FAMILIES[name], 4), method) == WORKS


def test_with_a_cache_and_without_an_attention_map():
    subject = Subject(FAMILIES["flux"], 5)
    ditaccel.accelerate(subject.pipe, "reuse:interval=2,target=output & token_merging:min_tokens=0")
    merged = subject.run()
    report = ditaccel.report(subject.pipe)
    assert report.forecasts and report.call_logs[0].changed == len(report.calls) - report.forecasts
    assert "token_merging changed" in str(report) and not torch.equal(merged, subject.dense)
    with pytest.raises(ditaccel.ConfigError, match="token_merging and svg2 cannot be combined"):
        ditaccel.accelerate(subject.pipe, "svg2 & token_merging")
    with pytest.raises(ditaccel.ConfigError, match="give token_merging:around=attention"):
        ditaccel.accelerate(subject.pipe, "taylorseer:interval=2 & token_merging")
    ditaccel.restore(subject.pipe)
    subject.assert_as_found("token merging with a cache")


def test_a_schedule_and_layers_bound_what_merges():
    subject = Subject(FAMILIES["wan"], 4)
    ditaccel.accelerate(
        subject.pipe,
        "token_merging:min_tokens=0,schedule=[[0,0],[0.5,0],[0.75,0.5]],layers=[[1,2]]",
    )
    subject.run()
    log = ditaccel.report(subject.pipe).call_logs[0]
    assert log.changed == log.calls // 4  # the last of four steps
    assert 0.5 < log.share / log.calls < 1


def test_too_short_sequences_are_reported():
    subject = Subject(FAMILIES["flux"], 2)
    with pytest.warns(match="no tokens were merged in a whole generation"):
        ditaccel.accelerate(subject.pipe, TokenMergingConfig(min_tokens=4096))
        assert torch.equal(subject.run(), subject.dense)
    assert not skipped(subject.pipe)


def test_as_much_text_as_image_is_left_alone_and_reported():
    pipe, call = FAMILIES["qwen_image"]()
    embeds = {n: e.repeat_interleave(16, 1)[:, :121] for n, e in call.items() if "prompt" in n}
    call = {**call, **embeds, "num_inference_steps": 2}
    with ditaccel.accelerated(pipe, TokenMergingConfig(min_tokens=0)):
        with pytest.warns(match="as many text as image tokens"):
            generate(pipe, call)
        assert not skipped(pipe)


def strange_flux():
    """A tiny Flux pipeline whose transformer is of no known family."""
    from diffusers import FluxTransformer2DModel

    class StrangeTransformer2DModel(FluxTransformer2DModel):
        pass

    pipe, call = FAMILIES["flux"]()
    pipe.transformer.__class__ = StrangeTransformer2DModel
    return pipe, {**call, "num_inference_steps": 3}


@pytest.mark.filterwarnings("ignore:.*of no family that ditaccel knows")
def test_text_of_an_unknown_family_does_not_merge_either():
    shares = []
    for pipe, call in (FAMILIES["flux"](), strange_flux()):
        ditaccel.accelerate(pipe, TokenMergingConfig(min_tokens=0, around="attention"))
        generate(pipe, {**call, "num_inference_steps": 3})
        log = ditaccel.report(pipe).call_logs[0]
        shares.append(log.share / log.calls)
    assert shares[0] == shares[1] < 1
    pipe, call = strange_flux()
    ditaccel.accelerate(pipe, "condition_cache")
    for _ in range(2):
        with pytest.raises(ditaccel.UnsupportedError, match="condition_cache does not apply"):
            generate(pipe, call)


def test_layers_that_are_not_there_are_refused():
    pipe, _ = FAMILIES["wan"]()
    for around in ("auto", "attention"):
        with pytest.raises(ditaccel.ConfigError, match=r"the range 50 to 60, but transformer has"):
            ditaccel.accelerate(pipe, TokenMergingConfig(layers=((0, 1), (50, 60)), around=around))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"ratio": 0.8}, r"ratio is 0.8; it must be 0 \(exact\) to 0.75"),
        ({"ratio": -0.1}, "ratio is -0.1"),
        ({"ratio": 0.6, "cell": (1, 1, 2)}, "to 0.5, as one token of each cell"),
        ({"schedule": ((0.5, 0.2), (0.1, 0.3))}, "give them ascending"),
        ({"schedule": ((0.5, 0.9),)}, "schedule is 0.9"),
        ({"cell": (1, 1, 1)}, "two or more tokens"),
        ({"match_steps": 0}, "match_steps is 0"),
    ],
)
def test_bad_options_are_one_line(options, line):
    with pytest.raises(ditaccel.ConfigError, match=line) as error:
        TokenMergingConfig(**options)
    assert "\n" not in str(error.value)


def test_families_whose_blocks_need_the_whole_grid_merge_around_attention_only():
    subject = Subject(FAMILIES["chroma"], 2)
    with pytest.raises(ditaccel.UnsupportedError, match="give around='attention'"):
        ditaccel.accelerate(subject.pipe, TokenMergingConfig(around="blocks"))
    ditaccel.accelerate(subject.pipe, TokenMergingConfig(min_tokens=0))
    generate(subject.pipe, subject.call)
    assert skipped(subject.pipe)


def test_a_merge_of_nothing_is_no_merge():
    same = Merge(torch.arange(3), torch.arange(3))
    assert same.shifted(0, 0) is same


def test_copies_and_pickles_of_merged_blocks_are_dense():
    pipe, call = FAMILIES["wan"]()
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, "token_merging:min_tokens=0")
    assert not torch.equal(generate(pipe, call), dense)
    twin = copy.deepcopy(pipe)
    assert torch.equal(generate(twin, call), dense)
    twin.transformer = pickle.loads(pickle.dumps(pipe.transformer))
    assert torch.equal(generate(twin, call), dense)
