"""Attention methods where two ranks share out heads (Ulysses): what one process computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import generate
from two_ranks import AttentionJob, exchanged_calls, on_both, told

import ditaccel

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
        assert sparse or "rests" in one["rows"][-1]["reason"], job
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
    "sol": f"sol:tau=0.5,dense_steps=1,{TILES}",
    "radial": f"radial:dense_steps=1,{TILES}",
    "adaspa": ADASPA,
    "rests": f"svg2:q_clusters=4,k_clusters=12,top_p=0.999,dense_steps=0,break_even=0.3,{OPEN}",
    "head_wise": "head_wise:maps=['lite_attention:threshold=-0.05,q_tile=16,k_tile=16',"
    "'sol:q_tile=16,k_tile=16'],min_tokens=0,dense_steps=0",
    "cached": f"taylorseer:interval=2,warmup=1 & {LITE}",
    "gated": f"confidence_gated_taylor:threshold=0.3,warmup=2 & sla:critical=0.2,{TILES}",
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flux", "wan", "qwen_image"])
@pytest.mark.parametrize("uneven", [False, True])
def test_every_kind_of_map_on_two_ranks(model, uneven, tmp_path):
    """Parts of one size, and parts of two: 3 heads, odd counts of tokens of text and image."""
    names = [name for name in WIDE if model == "wan" or name != "radial"]
    jobs = [
        AttentionJob(
            model, WIDE[name], heads=3 if uneven else 4, anything=uneven,
            order=("before", "after")[i % 2],
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    check(jobs, tmp_path)
