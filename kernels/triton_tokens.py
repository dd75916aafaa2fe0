"""Triton kernels over tokens that several operators share; import only where Triton is there.

Names as in `attention/triton_kernel.py`: `p_` a pointer, `s_` a stride, `o_` offsets, `b_` a block.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "length", "segments", "s_x_b", "s_offset_b", "s_offset_h"])
def segment_mean_kernel(
    p_x,
    p_order,
    p_offsets,
    p_empty,
    p_out,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    s_offset_b,
    s_offset_h,
    heads,
    length,
    segments,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ORDERED: tl.constexpr,
    KEEP_EMPTY: tl.constexpr,
):
    """Mean of the tokens of one segment, added up in order, so that every run gives the same.

    ORDERED reads token `order[i]` for place i. A segment without tokens gets 0, or what stands at
    `p_empty` with KEEP_EMPTY.
    """
    i_segment = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    p_x += i_b * s_x_b + i_h * s_x_h
    p_offsets += i_b * s_offset_b + i_h * s_offset_h + i_segment
    start = tl.load(p_offsets)
    end = tl.load(p_offsets + 1)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for place in range(start, end, BLOCK_L):
        o_place = place + o_l
        valid = o_place < end
        token = o_place.to(tl.int64)
        if ORDERED:
            token = tl.load(p_order + i_bh * length + o_place, mask=valid, other=0).to(tl.int64)
        b_x = tl.load(
            p_x + token[:, None] * s_x_l + o_d[None, :] * s_x_d,
            mask=valid[:, None] & mask_d[None, :],
            other=0.0,
        )
        acc += tl.sum(b_x.to(tl.float32), 0)
    o_out = (i_bh * segments + i_segment) * D + o_d
    mean = acc / tl.maximum(end - start, 1).to(tl.float32)
    if KEEP_EMPTY:
        b_empty = tl.load(p_empty + o_out, mask=mask_d, other=0.0)
        mean = tl.where(end > start, mean, b_empty)
    tl.store(p_out + o_out, mean, mask=mask_d)


@triton.jit(do_not_specialize=["heads", "length", "s_x_b", "s_out_b", "s_order_b", "s_order_h"])
def permute_kernel(
    p_x,
    p_order,
    p_out,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    s_order_b,
    s_order_h,
    s_order_l,
    s_out_b,
    s_out_h,
    s_out_l,
    s_out_d,
    heads,
    length,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Copy a block of whole tokens: `out[i] = x[order[i]]`, or `out[order[i]] = x[i]`."""
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask = (o_l < length)[:, None] & (o_d < D)[None, :]
    p_order += i_b * s_order_b + i_h * s_order_h
    token = tl.load(p_order + o_l * s_order_l, mask=o_l < length, other=0).to(tl.int64)
    source = token
    target = o_l
    if INVERSE:
        source = o_l
        target = token
    p_x += i_b * s_x_b + i_h * s_x_h
    p_out += i_b * s_out_b + i_h * s_out_h
    b_x = tl.load(p_x + source[:, None] * s_x_l + o_d[None, :] * s_x_d, mask=mask)
    tl.store(p_out + target[:, None] * s_out_l + o_d[None, :] * s_out_d, b_x, mask=mask)


@triton.jit(do_not_specialize=["heads", "length", "s_x_b"])
def quantise_kernel(
    p_x,
    p_mean,
    p_out,
    p_scale,
    p_constant,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    heads,
    length,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    GROUP: tl.constexpr,
    SUBTRACT: tl.constexpr,
    CONSTANT: tl.constexpr,
):
    """Tokens as 8-bit integers with one scale each, see `attention/int8.py`.

    `p_mean` holds float32 `(B, H / GROUP, D)`: SUBTRACT takes it off the tokens, CONSTANT stores
    its product with each of them.
    """
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    valid, mask_d = o_l < length, o_d < D
    mask = valid[:, None] & mask_d[None, :]
    p_x += i_b * s_x_b + i_h * s_x_h
    b_x = tl.load(p_x + o_l[:, None] * s_x_l + o_d[None, :] * s_x_d, mask=mask, other=0.0)
    b_x = b_x.to(tl.float32)
    if SUBTRACT or CONSTANT:
        p_mean += (i_b * (heads // GROUP) + i_h // GROUP) * D
        b_mean = tl.load(p_mean + o_d, mask=mask_d, other=0.0)
    if CONSTANT:
        b_constant = tl.sum(b_x * b_mean[None, :], 1)
        tl.store(p_constant + i_bh * length + o_l, b_constant, mask=valid)
    if SUBTRACT:
        b_x -= b_mean[None, :]
    b_scale = tl.maximum(tl.div_rn(tl.max(tl.abs(b_x), 1), 127.0), 1e-30)
    tl.store(p_scale + i_bh * length + o_l, b_scale, mask=valid)
    b_x = tl.div_rn(b_x, tl.broadcast_to(b_scale[:, None], b_x.shape))
    # Adding 1.5 * 2^23 leaves no bits behind the point: to the nearest, ties to even.
    b_x = (b_x + 12582912.0) - 12582912.0
    tl.store(p_out + (i_bh * length + o_l[:, None]) * D + o_d[None, :], b_x.to(tl.int8), mask=mask)
