"""Triton kernels of clustering, pooling, permuting and merging; import only where Triton is there.

Names as in `attention/triton_kernel.py`: `p_` a pointer, `s_` a stride, `o_` offsets, `b_` a block.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "length", "clusters", "s_x_b"])
def assign_kernel(
    p_x,
    p_centroids,
    p_squares,
    p_labels,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    heads,
    length,
    clusters,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Nearest centroid of a block of tokens: argmin over c of |c|^2 - 2 x c.

    Distances of a block of centroids at a time are held, and none is stored (flash-kmeans,
    arXiv 2603.09229). Of equally near centroids the lowest number wins.
    """
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    p_x += i_b * s_x_b + i_h * s_x_h
    b_x = tl.load(
        p_x + o_l[:, None] * s_x_l + o_d[None, :] * s_x_d,
        mask=(o_l < length)[:, None] & mask_d[None, :],
        other=0.0,
    ).to(tl.float32)
    p_centroids += i_bh * clusters * D
    p_squares += i_bh * clusters
    nearest = tl.full([BLOCK_L], float("inf"), tl.float32)
    label = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, clusters, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask_c = o_c < clusters
        b_c = tl.load(
            p_centroids + o_c[None, :] * D + o_d[:, None],
            mask=mask_c[None, :] & mask_d[:, None],
            other=0.0,
        )
        b_squares = tl.load(p_squares + o_c, mask=mask_c, other=float("inf"))
        b_products = tl.dot(b_x, b_c, input_precision="ieee")
        b_distance = b_squares[None, :] - 2.0 * b_products
        b_least = tl.min(b_distance, 1)
        # The lowest of those at the least distance.
        candidates = tl.where(b_distance == b_least[:, None], o_c[None, :], clusters)
        b_label = tl.min(candidates, 1).to(tl.int32)
        closer = b_least < nearest
        label = tl.where(closer, b_label, label)
        nearest = tl.where(closer, b_least, nearest)
    tl.store(p_labels + i_bh * length + o_l, label, mask=o_l < length)


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
