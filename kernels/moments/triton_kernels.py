"""Attention to moments as Triton kernels; import it only where Triton is known to be there.

Names as in `attention/triton_kernel.py`: `p_` a pointer, `s_` a stride, `o_` offsets, `b_` a block.
`i_slot` counts the key heads, over all batch items, that are held at a time, from `first` on.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "first", "length", "tiles", "s_k_b", "s_v_b", "s_mask_b"])
def moments_kernel(
    p_k,
    p_v,
    p_mask,
    p_mean_k,
    p_mean_v,
    p_variance,
    p_spread,
    p_covariance,
    s_k_b,
    s_k_h,
    s_k_l,
    s_k_d,
    s_v_b,
    s_v_h,
    s_v_l,
    s_v_d,
    s_mask_b,
    s_mask_l,
    heads,
    first,
    length,
    tiles,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    MASK: tl.constexpr,
    COVARIANCE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile's moments, or with COVARIANCE a block of value channels of its Cov(v, k).

    Reads each key and value once: blocks of rows are centred on their own mean and put together by
    `S = S_a + S_b + n_a n_b / (n_a + n_b) (mean_a - mean_b)(mean_a - mean_b)^T` (Chan et al. 1979),
    in which nothing cancels.
    """
    C_BLOCKS: tl.constexpr = (D + BLOCK_C - 1) // BLOCK_C
    i_tile = tl.program_id(0) // C_BLOCKS
    i_c = tl.program_id(0) % C_BLOCKS
    i_slot = tl.program_id(1).to(tl.int64)
    i_b = (first + i_slot) // heads
    i_h = (first + i_slot) % heads

    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    mask_d = o_d < D
    mask_c = o_c < D
    p_k += i_b * s_k_b + i_h * s_k_h
    p_v += i_b * s_v_b + i_h * s_v_h
    end = tl.minimum((i_tile + 1) * TILE, length)
    count = tl.full([], 0.0, tl.float32)
    mean_k = tl.zeros([BLOCK_D], tl.float32)
    mean_v = tl.zeros([BLOCK_C], tl.float32)
    square_k = tl.zeros([BLOCK_D], tl.float32)
    square_v = tl.zeros([BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for row in range(i_tile * TILE, end, BLOCK_R):
        o_l = tl.cast(row, tl.int64) + o_r
        valid = o_l < end
        if MASK:
            b_mask = tl.load(p_mask + i_b * s_mask_b + o_l * s_mask_l, mask=valid, other=0)
            valid = valid & (b_mask != 0)
        b_k = tl.load(
            p_k + o_l[:, None] * s_k_l + o_d[None, :] * s_k_d,
            mask=valid[:, None] & mask_d[None, :],
            other=0.0,
        )
        b_v = tl.load(  # [BLOCK_C, BLOCK_R], as the product wants it
            p_v + o_c[:, None] * s_v_d + o_l[None, :] * s_v_l,
            mask=mask_c[:, None] & valid[None, :],
            other=0.0,
        )
        here = tl.sum(valid.to(tl.float32), 0)
        least = tl.maximum(here, 1.0)
        own_k = tl.sum(b_k.to(tl.float32), 0) / least
        own_v = tl.sum(b_v.to(tl.float32), 1) / least
        away_k = tl.where(valid[:, None], b_k.to(tl.float32) - own_k[None, :], 0.0)
        away_v = tl.where(valid[None, :], b_v.to(tl.float32) - own_v[:, None], 0.0)
        step_k = own_k - mean_k
        step_v = own_v - mean_v
        share = here / tl.maximum(count + here, 1.0)
        between = count * share
        if COVARIANCE:
            product = tl.dot(
                away_v.to(b_v.dtype), away_k.to(b_k.dtype), product, input_precision=PRECISION
            )
            product += (between * step_v)[:, None] * step_k[None, :]
        else:
            square_k += tl.sum(away_k * away_k, 0) + between * step_k * step_k
            square_v += tl.sum(away_v * away_v, 1) + between * step_v * step_v
        mean_k += share * step_k
        mean_v += share * step_v
        count += here
    least = tl.maximum(count, 1.0)
    i_out = i_slot * tiles + i_tile
    if COVARIANCE:
        tl.store(
            p_covariance + (i_out * D + o_c[:, None]) * D + o_d[None, :],
            (product / least).to(p_covariance.dtype.element_ty),
            mask=mask_c[:, None] & mask_d[None, :],
        )
    else:
        tl.store(p_mean_k + i_out * D + o_d, mean_k, mask=mask_d)
        tl.store(p_mean_v + i_out * D + o_c, mean_v, mask=mask_c)
        tl.store(p_variance + i_out * D + o_d, square_k / least, mask=mask_d)
        tl.store(p_spread + i_out, tl.sqrt(tl.sum(square_v, 0) / least))


@triton.jit(
    do_not_specialize=[
        "heads", "q_tiles", "tiles", "blocks", "s_marginal_b", "s_marginal_h", "s_marginal_q",
        "s_size_b",
    ]
)  # fmt: skip
def blocks_kernel(
    p_marginal,
    p_size,
    p_list,
    p_count,
    s_marginal_b,
    s_marginal_h,
    s_marginal_q,
    s_size_b,
    heads,
    q_tiles,
    tiles,
    blocks,
    BLOCK_T: tl.constexpr,
):
    """List the blocks of key tiles in which a query tile has a marginal one.

    A list keeps the branch out of the loops over blocks, which then stay pipelined.
    """
    i_tile = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b = i_bh // heads
    p_marginal += i_b * s_marginal_b + (i_bh % heads) * s_marginal_h
    p_marginal += i_tile.to(tl.int64) * s_marginal_q
    p_size += i_b * s_size_b
    p_list += (i_bh * q_tiles + i_tile) * blocks
    count = tl.full([], 0, tl.int32)
    for i_block in range(0, blocks):
        o_t = i_block * BLOCK_T + tl.arange(0, BLOCK_T)
        b_m = tl.load(p_marginal + o_t, mask=o_t < tiles, other=0)
        b_n = tl.load(p_size + o_t, mask=o_t < tiles, other=0.0)
        some = tl.max(((b_m != 0) & (b_n > 0)).to(tl.int32), 0)
        tl.store(p_list + count, i_block, mask=some > 0)
        count += some
    tl.store(p_count + i_bh * q_tiles + i_tile, count)


@triton.jit
def _logits(
    b_q,
    p_keys,
    p_marginal,
    p_size,
    p_u,
    o_t,
    tiles,
    mask_d,
    scale_log2,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits `[BLOCK_M, BLOCK_T]` in powers of two, and `1 + u/2` of their tiles."""
    valid = o_t < tiles
    b_k = tl.load(
        p_keys + o_t.to(tl.int64)[None, :] * D, mask=mask_d[:, None] & valid[None, :], other=0.0
    )
    b_m = tl.load(p_marginal + o_t, mask=valid, other=0)
    b_n = tl.load(p_size + o_t, mask=valid, other=0.0)
    growth = 1.0 + 0.5 * tl.load(p_u + o_t, mask=valid, other=0.0)
    bias = tl.log2(tl.maximum(b_n, 1.0) * growth)
    bias = tl.where((b_m != 0) & (b_n > 0), bias, float("-inf"))
    b_s = tl.dot(b_q, b_k, input_precision=PRECISION)
    return b_s * scale_log2 + bias[None, :], growth


@triton.jit(
    do_not_specialize=[
        "heads", "q_len", "q_tiles", "tiles", "blocks", "s_q_b", "s_out_b", "s_marginal_b",
        "s_marginal_h", "s_marginal_q", "s_size_b", "s_share",
    ]
)  # fmt: skip
def attend_kernel(
    p_q,
    p_mean_k,
    p_mean_v,
    p_marginal,
    p_size,
    p_u,
    p_list,
    p_count,
    p_out,
    p_lse,
    p_share,
    s_q_b,
    s_q_h,
    s_q_l,
    s_q_d,
    s_out_b,
    s_out_h,
    s_out_l,
    s_out_d,
    s_marginal_b,
    s_marginal_h,
    s_marginal_q,
    s_size_b,
    s_share,
    heads,
    q_len,
    q_tiles,
    tiles,
    blocks,
    scale_log2,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    Q_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of query rows times the mean keys and values of its query tile's marginal tiles.

    A second loop over the same blocks adds the weights up over the rows: the row block's part of
    `a_j / (1 + u_j/2)`, `(B, H, q_tiles, row blocks, s_share)`. Listed blocks only are written.
    """
    PARTS: tl.constexpr = (Q_TILE + BLOCK_M - 1) // BLOCK_M
    i_tile = tl.program_id(0) // PARTS
    i_part = tl.program_id(0) % PARTS
    i_bh = tl.program_id(1).to(tl.int64)
    i_b = i_bh // heads
    i_h = i_bh % heads
    row = i_tile * Q_TILE + i_part * BLOCK_M
    row_end = tl.minimum((i_tile + 1) * Q_TILE, q_len)
    if row >= row_end:
        return

    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    o_rows = row.to(tl.int64) + tl.arange(0, BLOCK_M)
    row_valid = o_rows < row_end
    b_q = tl.load(
        p_q + i_b * s_q_b + i_h * s_q_h + o_rows[:, None] * s_q_l + o_d[None, :] * s_q_d,
        mask=row_valid[:, None] & mask_d[None, :],
        other=0.0,
    )
    own = (i_b * (heads // GROUP) + i_h // GROUP) * tiles * D
    p_keys = p_mean_k + own + o_d[:, None]
    p_values = p_mean_v + own + o_d[None, :]
    i_row = i_bh * q_tiles + i_tile
    p_marginal += i_b * s_marginal_b + i_h * s_marginal_h + i_tile.to(tl.int64) * s_marginal_q
    p_size += i_b * s_size_b
    p_u += i_row * tiles
    p_list += i_row * blocks
    count = tl.load(p_count + i_row)

    running = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_visit in range(0, count):
        o_t = tl.load(p_list + i_visit) * BLOCK_T + tl.arange(0, BLOCK_T)
        b_s, _ = _logits(
            b_q, p_keys, p_marginal, p_size, p_u, o_t, tiles, mask_d, scale_log2, D, PRECISION
        )
        # Finite: a listed block has a marginal tile, and it is marginal for all rows.
        new = tl.maximum(running, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - new[:, None])
        rescale = tl.exp2(running - new)
        running = new
        b_v = tl.load(
            p_values + o_t.to(tl.int64)[:, None] * D,
            mask=(o_t < tiles)[:, None] & mask_d[None, :],
            other=0.0,
        )
        total = total * rescale + tl.sum(b_p, 1)
        acc = acc * rescale[:, None]
        acc = tl.dot(b_p.to(b_v.dtype), b_v, acc, input_precision=PRECISION)
    empty = total == 0.0
    least = tl.where(empty, 1.0, total)
    tl.store(
        p_out + i_b * s_out_b + i_h * s_out_h + o_rows[:, None] * s_out_l + o_d[None, :] * s_out_d,
        (acc / least[:, None]).to(p_out.dtype.element_ty),
        mask=row_valid[:, None] & mask_d[None, :],
    )
    b_lse = running + tl.log2(least)
    ln_2: tl.constexpr = 0.6931471805599453
    tl.store(p_lse + i_bh * q_len + o_rows, b_lse * ln_2, mask=row_valid)

    b_lse = tl.where(row_valid, b_lse, float("inf"))  # rows that are not there weigh nothing
    rows = (row_end - i_tile * Q_TILE).to(tl.float32)
    p_share += (i_row * PARTS + i_part) * s_share
    for i_visit in range(0, count):
        o_t = tl.load(p_list + i_visit) * BLOCK_T + tl.arange(0, BLOCK_T)
        b_s, growth = _logits(
            b_q, p_keys, p_marginal, p_size, p_u, o_t, tiles, mask_d, scale_log2, D, PRECISION
        )
        b_a = tl.sum(tl.exp2(b_s - b_lse[:, None]), 0) / (rows * growth)
        tl.store(p_share + o_t, b_a.to(p_share.dtype.element_ty), mask=o_t < tiles)


@triton.jit(
    do_not_specialize=[
        "heads", "first", "first_tile", "held", "q_len", "q_tiles", "s_q_b", "s_out_b",
    ]
)  # fmt: skip
def expand_kernel(
    p_q,
    p_mixed,
    p_out,
    s_q_b,
    s_q_h,
    s_q_l,
    s_q_d,
    s_out_b,
    s_out_h,
    s_out_l,
    s_out_d,
    heads,
    first,
    first_tile,
    held,
    q_len,
    q_tiles,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    Q_TILE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add `scale q C^T` to the output: a block of rows times a block of value channels of C.

    C is `(slots, held, D, D)`. The query tiles of a slot are those of all heads that share its
    keys, one head behind the other; `held` of them from `first_tile` on have their C here. `heads`
    counts key heads. WIDE multiplies in float32, as where q and C differ in dtype.
    """
    ROW_BLOCKS: tl.constexpr = (Q_TILE + BLOCK_R - 1) // BLOCK_R
    C_BLOCKS: tl.constexpr = (D + BLOCK_C - 1) // BLOCK_C
    i_c = tl.program_id(0) % C_BLOCKS
    i_block = tl.program_id(0) // C_BLOCKS
    i_held = i_block // ROW_BLOCKS
    i_slot = tl.program_id(1).to(tl.int64)
    i_b = (first + i_slot) // heads
    i_h = (first + i_slot) % heads * GROUP + (first_tile + i_held) // q_tiles
    i_tile = (first_tile + i_held) % q_tiles
    row = i_tile * Q_TILE + (i_block % ROW_BLOCKS) * BLOCK_R
    row_end = tl.minimum((i_tile + 1) * Q_TILE, q_len)
    if row >= row_end:
        return

    o_l = row.to(tl.int64) + tl.arange(0, BLOCK_R)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    valid = o_l < row_end
    mask_c = o_c < D
    p_q += i_b * s_q_b + i_h * s_q_h
    p_mixed += (i_slot * held + i_held) * D * D
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, D, BLOCK_F):
        o_f = start + tl.arange(0, BLOCK_F).to(tl.int64)
        mask_f = o_f < D
        b_q = tl.load(
            p_q + o_l[:, None] * s_q_l + o_f[None, :] * s_q_d,
            mask=valid[:, None] & mask_f[None, :],
            other=0.0,
        )
        b_c = tl.load(
            p_mixed + o_c[None, :] * D + o_f[:, None],
            mask=mask_f[:, None] & mask_c[None, :],
            other=0.0,
        )
        if WIDE:
            b_q = b_q.to(tl.float32)
            b_c = b_c.to(tl.float32)
        acc = tl.dot(b_q, b_c, acc, input_precision=PRECISION)
    p_out += i_b * s_out_b + i_h * s_out_h
    p_out = p_out + o_l[:, None] * s_out_l + o_c[None, :] * s_out_d
    here = valid[:, None] & mask_c[None, :]
    acc = acc * scale + tl.load(p_out, mask=here, other=0.0).to(tl.float32)
    tl.store(p_out, acc.to(p_out.dtype.element_ty), mask=here)
