"""Attention methods where two ranks share out heads (Ulysses): what one process computes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from planners import context_of, on_two_ranks
from tiny import generate
from two_ranks import AttentionJob, exchanged_calls, on_both, told

import ditaccel
from ditaccel import config as configs
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense
from ditaccel.attention.head_wise import HeadWiseConfig
from ditaccel.core.exchange import places, shares
from ditaccel.core.ranks import ALL_HEADS, Ranks

OPEN = "min_tokens=0,dense_layers=0"
TILES = f"q_tile=16,k_tile=16,{OPEN}"
# State over steps, marks and layers that rest; heads that are compared with each other.
LITE = f"lite_attention:threshold=-0.02,break_even=0.99,{TILES}"
ADASPA = f"adaspa:density=0.3,dense_steps=1,searches=[0.5],{TILES}"


def replayed(job, ranks):
    """The calls of one process, each on the very tensors that the ranks had, heads side by side.

    So what differs between them is attention alone, and not the rounding of products of fewer rows.
    """
    pipe, call = job.build()
    ditaccel.accelerate(pipe, job.spec)
    left = list(zip(*(rank["calls"] for rank in ranks), strict=True))

    def instead(whole, runtime, now, layer, dense, q, k, v, mask, scale, *rest):
        both = left.pop(0)
        assert {one["at"] for one in both} == {(now.step.index, now.step.branch, layer)}
        given = {name: torch.cat([one[name] for one in both], 1) for name in ("q", "k", "v", "out")}
        for own, name in ((q, "q"), (k, "k"), (v, "v")):  # in the order of one process
            torch.testing.assert_close(given[name], own, rtol=1e-3, atol=1e-3)
        q, k, v = (given[name].transpose(1, 2).contiguous().transpose(1, 2) for name in "qkv")
        for one in both:
            assert (one["mask"] is None) == (mask is None)
            assert mask is None or torch.equal(one["mask"].expand_as(mask), mask)

        def own_dense():
            return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)

        out = whole(runtime, now, layer, own_dense, q, k, v, mask, scale, *rest)
        assert torch.equal(out, given["out"]), f"{job}: {both[0]['at']}"
        return out

    with exchanged_calls(instead):
        result = generate(pipe, call)
    assert not left
    return {"result": result, **told(pipe)}


def check(jobs, folder):
    """Both ranks and one process: the same attention to the bit, and the same decisions."""
    for job in jobs:
        job.build()  # what it imports, the ranks need not import again
    for job, one, other in zip(jobs, *on_both(jobs, folder), strict=True):
        assert torch.equal(one["result"], other["result"]), job
        alone = replayed(job, (one, other))
        assert one["rows"] == other["rows"] == alone["rows"], job
        assert one["actions"] == other["actions"] == alone["actions"], job
        sparse = any(row["density"] < 1 for row in one["rows"])
        assert sparse or "break_even=0.3" in job.spec, job
        torch.testing.assert_close(one["result"], alone["result"], rtol=1e-3, atol=1e-3)
        assert "those of the heads of rank 1" in other["headline"], job


def test_two_ranks_attend_as_one_process_does(tmp_path):
    """Text apart from the image (Flux); a clip (Wan) whose layers may rest."""
    check([AttentionJob("flux", ADASPA), AttentionJob("wan", LITE, order="after")], tmp_path)


WIDE = {
    "svg2": f"svg2:q_clusters=4,k_clusters=12,top_p=0.5,min_share=0,dense_steps=1,{OPEN}",
    "sla": f"sla:critical=0.2,dense_steps=1,{TILES}",
    "int8": f"sla:critical=0.2,rest=nothing,precision=int8,dense_steps=0,{TILES}",
    "lite_attention": LITE,
    "sol": f"sol:tau=0.5,dense_steps=1,break_even=1,{TILES}",
    "radial": f"radial:decay=0.1,neighbor=0.1,dense_steps=1,break_even=1,{TILES}",
    "adaspa": ADASPA,
    "rests": f"svg2:q_clusters=4,k_clusters=12,top_p=0.999,dense_steps=0,break_even=0.3,{OPEN}",
    "head_wise": "head_wise:maps=['lite_attention:threshold=-0.05,q_tile=16,k_tile=16',"
    "'sol:q_tile=16,k_tile=16'],min_tokens=0,dense_steps=0",
    "cached": f"taylorseer:interval=2,warmup=1 & {LITE}",
    "gated": f"confidence_gated_taylor:threshold=0.3,warmup=2 & sla:critical=0.2,{TILES}",
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux", "wan", "qwen_image"])
def test_every_kind_of_map_on_two_ranks(model, tmp_path):
    names = [name for name in WIDE if model == "wan" or name != "radial"]
    jobs = [
        AttentionJob(model, WIDE[n], order=("before", "after")[i % 2]) for i, n in enumerate(names)
    ]
    if model == "flux":
        jobs.append(AttentionJob(model, WIDE["sla"], compiled=True))
    check(jobs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux", "wan", "qwen_image"])
def test_two_ranks_with_parts_of_two_sizes(model, tmp_path):
    """3 heads, odd counts of tokens of text and image."""
    names = ("svg2", "int8", "lite_attention", "adaspa", "head_wise", "gated")
    check([AttentionJob(model, WIDE[n], heads=3, anything=True) for n in names], tmp_path)


# -- planners, on ranks that are threads --

LENGTH, HEADS, KV_HEADS = 75, 4, 2
METHODS = [name for name, kind in configs.methods().items() if kind.kind == "attention"]


def tensors(index, share=ALL_HEADS):
    """Of the heads of a share, of which two query heads have one key head."""
    made = []
    for h in (4, 2, 2):
        every, own = (torch.Generator().manual_seed(seed) for seed in (h, 10 * index + h))
        base, change = (torch.randn(1, h, LENGTH, 8, generator=g) for g in (every, own))
        made.append(base + 0.2 * index * change)
    if share.ranks is None:
        return made
    own, keys = share.numbers(2), share.numbers(2).start // 2
    return [made[0][:, own.start : own.stop], *(x[:, keys : keys + 1] for x in made[1:])]


def walked(config, share=ALL_HEADS, total=10, layers=(1,)):
    """Outputs and densities of three steps; of a loop of 3, they end it."""
    planner, states, found = config.planner(), {layer: {} for layer in layers}, []
    for index in range(3):
        q, k, v = tensors(index, share)
        for layer, state in states.items():
            at = {"layer": layer, "grid": (3, 5, 5), "share": share, "component": "t"}
            context = context_of(LENGTH, index, total, **at)
            plan = planner.plan(q, k, v, 0.3, context, state)
            if not isinstance(plan, Dense):
                result = attend(plan, q, k, v, 0.3, None, None, planner.precision)
                planner.update(plan, result, state)
                found.append((result.output, plan.tile_map.densities().expand(1, q.shape[1])))
        planner.end("t")
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_each_rank_does_to_its_heads_what_one_process_does(name):
    for example in configs.methods()[name].examples():
        config = replace(example.skipping, break_even=0.9)
        both = on_two_ranks(lambda share, config=config: walked(config, share), (2, 2))
        for whole, *parts in zip(walked(config), *both, strict=True):
            for one, own in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(one, torch.cat(own, 1)), name


@torch.no_grad()
def test_maps_of_heads_in_a_file_are_for_all_heads_of_the_layer(tmp_path):
    maps = ("sla:critical=0.2,q_tile=16,k_tile=16", "sol:q_tile=16,k_tile=16")
    config = HeadWiseConfig(maps=maps, heads=((1, 1, 0, 0),) * 4, min_tokens=0, dense_steps=0)
    both = on_two_ranks(lambda share: walked(config, share), (2, 2))
    for whole, *parts in zip(walked(config), *both, strict=True):
        assert torch.equal(whole[0], torch.cat([part[0] for part in parts], 1))
    compared = replace(config, maps=("adaspa", maps[1]))
    with pytest.raises(ditaccel.ConfigError, match="'adaspa', which compares the heads"):
        on_two_ranks(lambda share: walked(compared, share), (2, 2))


@torch.no_grad()
@pytest.mark.parametrize(("name", "limit"), [("sparse_vdit", 0.5), ("ditfastattn", 0.1)])
def test_a_search_on_two_ranks_saves_the_plan_of_one_process(name, limit, tmp_path):
    tiles = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "dense_steps": 0}
    kind = configs.methods()[name]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    searches = [kind(save_plan=file, limit=limit, **tiles) for file in files]
    walked(searches[0], total=3, layers=range(4))
    on_two_ranks(lambda share: walked(searches[1], share, 3, range(4)), (2, 2))
    one, two = (json.loads(file.read_text())["words"] for file in files)
    assert one == two and len({*"".join(map("".join, one["t"]))}) > 1
    config = kind(plan=files[1], **tiles)
    both = on_two_ranks(lambda share: walked(config, share), (2, 2))
    for whole, *parts in zip(walked(config), *both, strict=True):
        assert torch.equal(whole[0], torch.cat([part[0] for part in parts], 1))


# -- who has what --


def test_where_the_tokens_of_each_rank_are():
    assert places([3, 2]) == [((0, 3),), ((3, 5),)]
    # 3 of text and 6 of the image: 2 + 3 and 1 + 3
    assert places([5, 4], text=3) == [((0, 2), (3, 6)), ((2, 3), (6, 9))]
    assert places([5, 4], text=3, in_front=False) == [((0, 3), (6, 8)), ((3, 6), (8, 9))]
    assert places([6, 3], text=3) is None, "shared out in another way"


class Count(Ranks):
    """So many ranks, of which this is the first."""

    here = 0
    count = property(lambda self: self.group)


def test_heads_that_ranks_cannot_share():
    assert shares(6, Count(2), uneven=False, layer="a").counts == (3, 3)
    assert shares(5, Count(3), uneven=True, layer="a").counts == (2, 2, 1)
    line = "a has 5 heads, which 2 ranks cannot share alike; choose a ulysses_degree that divides 5"
    with pytest.raises(ditaccel.UnsupportedError, match=f"{line}, or ulysses_anything=True"):
        shares(5, Count(2), uneven=False, layer="a")
    with pytest.raises(ditaccel.UnsupportedError, match=r"divides 5$"):
        shares(5, Count(4), uneven=True, layer="a")
