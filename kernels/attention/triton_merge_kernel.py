"""Triton kernel that merges two parts of an attention; import only where Triton is there.

Names as in `attention/triton_kernel.py`: `p_` a pointer, `s_` a stride, `o_` offsets, `b_` a block.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "length", "s_a_b", "s_b_b", "s_out_b"])
def merge_kernel(
    p_a,
    p_b,
    p_a_lse,
    p_b_lse,
    p_out,
    p_lse,
    s_a_b,
    s_a_h,
    s_a_l,
    s_a_d,
    s_b_b,
    s_b_h,
    s_b_l,
    s_b_d,
    s_out_b,
    s_out_h,
    s_out_l,
    s_out_d,
    heads,
    length,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Put two parts of an attention under one softmax: a block of rows."""
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    valid = o_l < length
    mask_d = o_d < D
    a_lse = tl.load(p_a_lse + i_bh * length + o_l, mask=valid, other=float("-inf"))
    b_lse = tl.load(p_b_lse + i_bh * length + o_l, mask=valid, other=float("-inf"))
    top = tl.maximum(a_lse, b_lse)
    shift = tl.where(top == float("-inf"), 0.0, top)
    a_weight = tl.exp(a_lse - shift)
    b_weight = tl.exp(b_lse - shift)
    total = a_weight + b_weight
    least = tl.where(total > 0, total, 1.0)
    # An output that takes no part is not read: it may hold anything, NaN too.
    p_a += i_b * s_a_b + i_h * s_a_h
    b_a = tl.load(
        p_a + o_l[:, None] * s_a_l + o_d[None, :] * s_a_d,
        mask=(valid & (a_weight > 0))[:, None] & mask_d[None, :],
        other=0.0,
    ).to(tl.float32)
    p_b += i_b * s_b_b + i_h * s_b_h
    b_b = tl.load(
        p_b + o_l[:, None] * s_b_l + o_d[None, :] * s_b_d,
        mask=(valid & (b_weight > 0))[:, None] & mask_d[None, :],
        other=0.0,
    ).to(tl.float32)
    merged = b_a * (a_weight / least)[:, None] + b_b * (b_weight / least)[:, None]
    p_out += i_b * s_out_b + i_h * s_out_h
    tl.store(
        p_out + o_l[:, None] * s_out_l + o_d[None, :] * s_out_d,
        merged.to(p_out.dtype.element_ty),
        mask=valid[:, None] & mask_d[None, :],
    )
    tl.store(p_lse + i_bh * length + o_l, top + tl.log(total), mask=valid)
