"""Gradients of tile attention as Triton kernels, for tiles of fixed size.

Names are those of `triton_kernel`; `d_` is a gradient. With `P = 2^(S c - L)`, c the scale and L
the log-sum-exp in powers of two, and `delta = rowsum(dO * O) - d lse`: `dS = P * (dO V^T - delta)`,
`dQ = scale dS K`, `dK = scale dS^T Q`, `dV = P^T dO` (Dao, FlashAttention-2). Scores are formed
again from Q and K; each kernel owns what it writes, so there is nothing atomic and the sums have
one order.
"""

import triton
import triton.language as tl

from .triton_kernel import masked_scores

_UNSPECIALIZED = [
    "heads",
    "q_len",
    "k_len",
    "s_index_b",
    "s_index_h",
    "s_index_t",
    "s_count_b",
    "s_count_h",
    "s_mask_b",
]


@triton.jit(do_not_specialize=["heads", "length"])
def row_product_kernel(
    p_a,
    p_b,
    p_out,
    s_a_b,
    s_a_h,
    s_a_l,
    s_a_d,
    s_b_b,
    s_b_h,
    s_b_l,
    s_b_d,
    heads,
    length,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """`rowsum(a * b)` of one block of rows, float32 `(B, H, L)`, contiguous."""
    i_bh = tl.program_id(1).to(tl.int64)
    i_b = i_bh // heads
    i_h = i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D)
    valid = o_l < length
    here = valid[:, None] & (o_d < D)[None, :]
    p_a += i_b * s_a_b + i_h * s_a_h
    b_a = tl.load(p_a + o_l[:, None] * s_a_l + o_d[None, :] * s_a_d, mask=here, other=0.0)
    p_b += i_b * s_b_b + i_h * s_b_h
    b_b = tl.load(p_b + o_l[:, None] * s_b_l + o_d[None, :] * s_b_d, mask=here, other=0.0)
    total = tl.sum(b_a.to(tl.float32) * b_b.to(tl.float32), 1)
    tl.store(p_out + i_bh * length + o_l, total, mask=valid)


@triton.jit
def _weights(
    b_s,
    b_sum,
    p_mask,
    s_mask_k,
    o_rows,
    o_columns,
    row_valid,
    column_valid,
    scale_log2,
    MASK: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """`[rows, keys]` of weights from raw scores; rows without keys have an infinite sum."""
    b_s = masked_scores(
        b_s, p_mask, 0, s_mask_k, o_rows, o_columns, row_valid, column_valid, MASK, EVEN_K
    )
    return tl.exp2(b_s * scale_log2 - b_sum[:, None])


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def query_gradient_kernel(
    p_q,
    p_k,
    p_v,
    p_d_out,
    p_sum,
    p_delta,
    p_d_q,
    p_index,
    p_count,
    p_mask,
    s_q_b,
    s_q_h,
    s_q_l,
    s_q_d,
    s_k_b,
    s_k_h,
    s_k_l,
    s_k_d,
    s_v_b,
    s_v_h,
    s_v_l,
    s_v_d,
    s_do_b,
    s_do_h,
    s_do_l,
    s_do_d,
    s_dq_b,
    s_dq_h,
    s_dq_l,
    s_dq_d,
    s_mask_b,
    s_mask_k,
    s_index_b,
    s_index_h,
    s_index_t,
    s_count_b,
    s_count_h,
    heads,
    q_len,
    k_len,
    scale,
    scale_log2,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    MASK: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dQ of one block of rows, over the key tiles that its query tile lists.

    `p_sum` (L) and `p_delta` are float32 `(B, H, Lq)`, contiguous.
    """
    i_program = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b = i_bh // heads
    i_h = i_bh % heads
    BLOCKS: tl.constexpr = (Q_TILE + BLOCK_M - 1) // BLOCK_M
    i_tile = i_program // BLOCKS
    row = i_tile * Q_TILE + (i_program % BLOCKS) * BLOCK_M
    row_end = tl.minimum((i_tile + 1) * Q_TILE, q_len)
    if row >= row_end:
        return

    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    o_rows = row.to(tl.int64) + tl.arange(0, BLOCK_M)
    row_valid = o_rows < row_end
    valid = row_valid[:, None] & mask_d[None, :]
    p_q += i_b * s_q_b + i_h * s_q_h
    b_q = tl.load(p_q + o_rows[:, None] * s_q_l + o_d[None, :] * s_q_d, mask=valid, other=0.0)
    p_d_out += i_b * s_do_b + i_h * s_do_h
    b_do = tl.load(
        p_d_out + o_rows[:, None] * s_do_l + o_d[None, :] * s_do_d, mask=valid, other=0.0
    )
    b_sum = tl.load(p_sum + i_bh * q_len + o_rows, mask=row_valid, other=float("inf"))
    b_delta = tl.load(p_delta + i_bh * q_len + o_rows, mask=row_valid, other=0.0)

    i_kv = i_h // GROUP
    p_k += i_b * s_k_b + i_kv * s_k_h
    p_k = p_k + o_n.to(tl.int64)[:, None] * s_k_l + o_d[None, :] * s_k_d  # [BLOCK_N, BLOCK_D]
    p_v += i_b * s_v_b + i_kv * s_v_h
    p_v = p_v + o_d[:, None] * s_v_d + o_n.to(tl.int64)[None, :] * s_v_l  # [BLOCK_D, BLOCK_N]
    if MASK != 0:
        p_mask += i_b * s_mask_b
    p_list = p_index + i_b * s_index_b + i_h * s_index_h + i_tile.to(tl.int64) * s_index_t
    count = tl.load(p_count + i_b * s_count_b + i_h * s_count_h + i_tile)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    PARTS: tl.constexpr = (K_TILE + BLOCK_N - 1) // BLOCK_N
    for i_visit in range(0, count * PARTS):
        i_key = tl.load(p_list + i_visit // PARTS)
        column = i_key * K_TILE + (i_visit % PARTS) * BLOCK_N
        jump = column.to(tl.int64)
        o_columns = jump + o_n
        column_valid = o_columns < tl.minimum((i_key + 1) * K_TILE, k_len)
        if EVEN_K and D == BLOCK_D:
            b_k = tl.load(p_k + jump * s_k_l)
            b_v = tl.load(p_v + jump * s_v_l)
        else:
            b_k = tl.load(
                p_k + jump * s_k_l, mask=column_valid[:, None] & mask_d[None, :], other=0.0
            )
            b_v = tl.load(
                p_v + jump * s_v_l, mask=mask_d[:, None] & column_valid[None, :], other=0.0
            )
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = _weights(
            b_s,
            b_sum,
            p_mask,
            s_mask_k,
            o_rows,
            o_columns,
            row_valid,
            column_valid,
            scale_log2,
            MASK,
            EVEN_K,
        )
        b_dp = tl.dot(b_do, b_v, input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        acc = tl.dot(b_ds.to(b_k.dtype), b_k, acc, input_precision=PRECISION)

    tl.store(
        p_d_q + i_b * s_dq_b + i_h * s_dq_h + o_rows[:, None] * s_dq_l + o_d[None, :] * s_dq_d,
        (acc * scale).to(p_d_q.dtype.element_ty),
        mask=valid,
    )


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def key_gradient_kernel(
    p_q,
    p_k,
    p_v,
    p_d_out,
    p_sum,
    p_delta,
    p_d_k,
    p_d_v,
    p_more,
    p_index,
    p_count,
    p_mask,
    s_q_b,
    s_q_h,
    s_q_l,
    s_q_d,
    s_k_b,
    s_k_h,
    s_k_l,
    s_k_d,
    s_v_b,
    s_v_h,
    s_v_l,
    s_v_d,
    s_do_b,
    s_do_h,
    s_do_l,
    s_do_d,
    s_dk_b,
    s_dk_h,
    s_dk_l,
    s_dk_d,
    s_dv_b,
    s_dv_h,
    s_dv_l,
    s_dv_d,
    s_mask_b,
    s_mask_k,
    s_index_b,
    s_index_h,
    s_index_t,
    s_count_b,
    s_count_h,
    heads,
    q_len,
    k_len,
    scale,
    scale_log2,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    MASK: tl.constexpr,
    MORE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dK and dV of one block of keys, over the query tiles that list its key tile.

    `p_index` and `p_count` are the lists of the transposed map, by query head. `p_more` is float32
    `(B, Hkv, Lk, D)`, contiguous: what another branch adds to dV. Everything is computed
    transposed, `[keys, rows]`, so that both sums take it as it is.
    """
    i_program = tl.program_id(0)
    kv_heads = heads // GROUP
    i_bg = tl.program_id(1).to(tl.int64)
    i_b = i_bg // kv_heads
    i_kv = i_bg % kv_heads
    BLOCKS: tl.constexpr = (K_TILE + BLOCK_N - 1) // BLOCK_N
    i_tile = i_program // BLOCKS
    column = i_tile * K_TILE + (i_program % BLOCKS) * BLOCK_N
    column_end = tl.minimum((i_tile + 1) * K_TILE, k_len)
    if column >= column_end:
        return

    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    o_columns = column.to(tl.int64) + tl.arange(0, BLOCK_N)
    column_valid = o_columns < column_end
    valid = column_valid[:, None] & mask_d[None, :]
    p_k += i_b * s_k_b + i_kv * s_k_h
    b_k = tl.load(p_k + o_columns[:, None] * s_k_l + o_d[None, :] * s_k_d, mask=valid, other=0.0)
    p_v += i_b * s_v_b + i_kv * s_v_h
    b_v = tl.load(p_v + o_columns[:, None] * s_v_l + o_d[None, :] * s_v_d, mask=valid, other=0.0)
    # Keys that are not there have rows of their own, which are not stored.
    allowed = column_valid
    if MASK != 0:
        kept = tl.load(p_mask + i_b * s_mask_b + o_columns * s_mask_k, mask=column_valid, other=0)
        allowed = kept != 0

    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if MORE:
        p_more += i_bg * k_len * D
        acc_v += tl.load(p_more + o_columns[:, None] * D + o_d[None, :], mask=valid, other=0.0)
    PARTS: tl.constexpr = (Q_TILE + BLOCK_M - 1) // BLOCK_M
    for i_member in range(0, GROUP):
        i_h = i_kv * GROUP + i_member
        o_head = (i_b * heads + i_h) * q_len
        p_queries = p_q + i_b * s_q_b + i_h * s_q_h
        p_d_outs = p_d_out + i_b * s_do_b + i_h * s_do_h
        p_list = p_index + i_b * s_index_b + i_h * s_index_h + i_tile.to(tl.int64) * s_index_t
        count = tl.load(p_count + i_b * s_count_b + i_h * s_count_h + i_tile)
        for i_visit in range(0, count * PARTS):
            i_query = tl.load(p_list + i_visit // PARTS)
            o_rows = (i_query * Q_TILE + (i_visit % PARTS) * BLOCK_M).to(tl.int64) + o_m
            row_valid = o_rows < tl.minimum((i_query + 1) * Q_TILE, q_len)
            here = row_valid[:, None] & mask_d[None, :]
            b_q = tl.load(
                p_queries + o_rows[:, None] * s_q_l + o_d[None, :] * s_q_d, mask=here, other=0.0
            )
            b_do = tl.load(
                p_d_outs + o_rows[:, None] * s_do_l + o_d[None, :] * s_do_d, mask=here, other=0.0
            )
            b_sum = tl.load(p_sum + o_head + o_rows, mask=row_valid, other=float("inf"))
            b_delta = tl.load(p_delta + o_head + o_rows, mask=row_valid, other=0.0)
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
            if MASK != 0:
                b_s = tl.where(allowed[:, None], b_s, float("-inf"))
            b_p = tl.exp2(b_s * scale_log2 - b_sum[None, :])
            acc_v = tl.dot(b_p.to(b_do.dtype), b_do, acc_v, input_precision=PRECISION)
            b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
            b_ds = b_p * (b_dp - b_delta[None, :])
            acc_k = tl.dot(b_ds.to(b_q.dtype), b_q, acc_k, input_precision=PRECISION)

    tl.store(
        p_d_k + i_b * s_dk_b + i_kv * s_dk_h + o_columns[:, None] * s_dk_l + o_d[None, :] * s_dk_d,
        (acc_k * scale).to(p_d_k.dtype.element_ty),
        mask=valid,
    )
    tl.store(
        p_d_v + i_b * s_dv_b + i_kv * s_dv_h + o_columns[:, None] * s_dv_l + o_d[None, :] * s_dv_d,
        acc_v.to(p_d_v.dtype.element_ty),
        mask=valid,
    )
