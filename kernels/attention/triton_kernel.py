"""Tile attention as a Triton kernel; import it only where Triton is known to be there.

Names: `p_` a pointer, `s_` a stride in elements, `o_` offsets inside of a block, `i_` an index,
`b_` a block of values. Flags in capitals are compiled in; lengths are not, so that a new sequence
length compiles nothing.
"""

import triton
import triton.language as tl


@triton.jit
def masked_scores(
    b_s,
    p_mask,
    s_mask_q,
    s_mask_k,
    o_rows,
    o_columns,
    row_valid,
    column_valid,
    MASK: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Scores with -inf where there is nothing to attend to.

    MASK is 0 for no mask, 1 for one of the keys only, 2 for one of queries and keys.
    """
    # Before any maximum is taken: a row must not see keys that are not there.
    if not EVEN_K:
        b_s = tl.where(column_valid[None, :], b_s, float("-inf"))
    if MASK == 1:
        allowed = tl.load(p_mask + o_columns * s_mask_k, mask=column_valid, other=0)
        b_s = tl.where(allowed[None, :] != 0, b_s, float("-inf"))
    if MASK == 2:
        allowed = tl.load(
            p_mask + o_rows[:, None] * s_mask_q + o_columns[None, :] * s_mask_k,
            mask=row_valid[:, None] & column_valid[None, :],
            other=0,
        )
        b_s = tl.where(allowed != 0, b_s, float("-inf"))
    return b_s


@triton.jit
def _scores(
    b_q,
    b_q_scale,
    p_keys,
    p_k_scale,
    p_mask,
    s_mask_q,
    s_mask_k,
    o_rows,
    o_columns,
    k_end,
    row_valid,
    mask_d,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK: tl.constexpr,
    EVEN_K: tl.constexpr,
    INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Raw scores `[BLOCK_M, BLOCK_N]` of one block of keys; see `masked_scores`.

    With INT8 queries and keys are integers, each token with a scale of its own.
    """
    column_valid = o_columns < k_end
    if EVEN_K and D == BLOCK_D:
        b_k = tl.load(p_keys)
    elif EVEN_K:
        b_k = tl.load(p_keys, mask=mask_d[:, None], other=0.0)
    else:
        b_k = tl.load(p_keys, mask=mask_d[:, None] & column_valid[None, :], other=0.0)
    if INT8:
        if EVEN_K:
            b_k_scale = tl.load(p_k_scale + o_columns)
        else:
            b_k_scale = tl.load(p_k_scale + o_columns, mask=column_valid, other=0.0)
        b_s = tl.dot(b_q, b_k).to(tl.float32) * b_k_scale[None, :] * b_q_scale[:, None]
    else:
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    return masked_scores(
        b_s,
        p_mask,
        s_mask_q,
        s_mask_k,
        o_rows,
        o_columns,
        row_valid,
        column_valid,
        MASK,
        EVEN_K,
    )


@triton.jit
def _accumulate(
    b_s,
    b_max,
    running,
    total,
    acc,
    p_values,
    column_valid,
    mask_d,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add one block of keys to the online softmax: new running max, sum and weighted values."""
    new = tl.maximum(running, b_max)
    # Only a mask can leave a row without keys; there -inf - -inf must not become NaN.
    shift = new
    if MASK != 0:
        shift = tl.where(new == float("-inf"), 0.0, new)
    b_p = tl.exp2(b_s * scale_log2 - (shift * scale_log2)[:, None])
    rescale = tl.exp2((running - shift) * scale_log2)
    if EVEN_K and D == BLOCK_D:
        b_v = tl.load(p_values)
    elif EVEN_K:
        b_v = tl.load(p_values, mask=mask_d[None, :], other=0.0)
    else:
        b_v = tl.load(p_values, mask=column_valid[:, None] & mask_d[None, :], other=0.0)
    total = total * rescale + tl.sum(b_p, 1)
    acc = acc * rescale[:, None]
    acc = tl.dot(b_p.to(b_v.dtype), b_v, acc, input_precision=PRECISION)
    return new, total, acc


@triton.jit(
    do_not_specialize=[
        "heads",
        "q_len",
        "k_len",
        "q_tiles",
        "k_tiles",
        "programs",
        "s_index_b",
        "s_index_h",
        "s_index_q",
        "s_count_b",
        "s_count_h",
        "s_work_b",
        "s_work_h",
        "s_q_bound_b",
        "s_q_bound_h",
        "s_k_bound_b",
        "s_k_bound_h",
        "s_mask_b",
        "s_mask_h",
        "s_mask_q",
        "s_bias_b",
        "s_bias_h",
    ]
)
def tile_attention_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_keep,
    p_threshold,
    p_index,
    p_count,
    p_work_tile,
    p_work_row,
    p_q_bound,
    p_k_bound,
    p_mask,
    p_mean_k,
    p_mean_v,
    p_bias,
    p_q_scale,
    p_k_scale,
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
    s_out_b,
    s_out_h,
    s_out_l,
    s_out_d,
    s_mask_b,
    s_mask_h,
    s_mask_q,
    s_mask_k,
    s_index_b,
    s_index_h,
    s_index_q,
    s_count_b,
    s_count_h,
    s_work_b,
    s_work_h,
    s_q_bound_b,
    s_q_bound_h,
    s_k_bound_b,
    s_k_bound_h,
    s_bias_b,
    s_bias_h,
    heads,
    q_len,
    k_len,
    q_tiles,
    k_tiles,
    programs,
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
    LSE: tl.constexpr,
    MARK: tl.constexpr,
    SKIP_NOW: tl.constexpr,
    CENTROIDS: tl.constexpr,
    INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of query rows times the key tiles that its query tile lists.

    Q_TILE and K_TILE are 0 for tiles of variable size: the rows then come from a work list, the
    columns from prefix sums. EVEN_K says that every key block is full.

    With m the running max of raw scores, a visit computes `m' = max(m, rowmax(S))`,
    `P = 2^((S - m') c)`, `l' = l 2^((m - m') c) + rowsum(P)`, `O' = O 2^((m - m') c) + P V`, where
    c is the scale in powers of two (Dao et al., FlashAttention-2). MARK stores 1 for a tile that a
    valid row wants to keep; several programs may store the same 1 for one tile. CENTROIDS visits
    the mean key of each key tile too, with a bias that is -inf where the tile itself was visited.
    INT8 takes integers with one scale per token for q and k (`int8.py`).
    """
    i_program = tl.program_id(0)
    i_bh = tl.program_id(1).to(tl.int64)
    i_b = i_bh // heads
    i_h = i_bh % heads

    if Q_TILE > 0:
        BLOCKS: tl.constexpr = (Q_TILE + BLOCK_M - 1) // BLOCK_M
        i_tile = i_program // BLOCKS
        row = i_tile * Q_TILE + (i_program % BLOCKS) * BLOCK_M
        row_end = tl.minimum((i_tile + 1) * Q_TILE, q_len)
    else:
        o_work = i_b * s_work_b + i_h * s_work_h + i_program
        i_tile = tl.load(p_work_tile + o_work)
        if i_tile >= q_tiles:
            return
        row = tl.load(p_work_row + o_work)
        row_end = tl.load(p_q_bound + i_b * s_q_bound_b + i_h * s_q_bound_h + i_tile + 1)
    if row >= row_end:
        return

    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    o_rows = row.to(tl.int64) + o_m
    row_valid = o_rows < row_end

    p_q += i_b * s_q_b + i_h * s_q_h
    b_q = tl.load(
        p_q + o_rows[:, None] * s_q_l + o_d[None, :] * s_q_d,
        mask=row_valid[:, None] & mask_d[None, :],
        other=0.0,
    )
    i_kv = i_h // GROUP
    b_q_scale = row_valid
    if INT8:
        b_q_scale = tl.load(p_q_scale + i_bh * q_len + o_rows, mask=row_valid, other=1.0)
        p_k_scale += (i_b * (heads // GROUP) + i_kv) * k_len
    p_keys = p_k + i_b * s_k_b + i_kv * s_k_h
    p_keys = p_keys + o_d[:, None] * s_k_d + o_n.to(tl.int64)[None, :] * s_k_l  # [BLOCK_D, BLOCK_N]
    p_values = p_v + i_b * s_v_b + i_kv * s_v_h
    p_values = p_values + o_n.to(tl.int64)[:, None] * s_v_l + o_d[None, :] * s_v_d
    if MASK != 0:
        p_mask += i_b * s_mask_b + i_h * s_mask_h
    if MARK:
        p_keep += (i_bh * q_tiles + i_tile) * k_tiles
        threshold = tl.load(p_threshold + i_h)
    p_list = p_index + i_b * s_index_b + i_h * s_index_h + i_tile.to(tl.int64) * s_index_q
    count = tl.load(p_count + i_b * s_count_b + i_h * s_count_h + i_tile)

    running = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    if K_TILE > 0:
        # One flat loop over the blocks of all listed tiles: nothing nested for the pipeliner.
        PARTS: tl.constexpr = (K_TILE + BLOCK_N - 1) // BLOCK_N
        before = running
        wanted = tl.zeros([BLOCK_M], tl.int32)
        for i_visit in range(0, count * PARTS):
            i_part = i_visit % PARTS
            i_key = tl.load(p_list + i_visit // PARTS)
            column = i_key * K_TILE + i_part * BLOCK_N
            k_end = tl.minimum((i_key + 1) * K_TILE, k_len)
            jump = column.to(tl.int64)
            o_columns = jump + o_n
            b_s = _scores(
                b_q,
                b_q_scale,
                p_keys + jump * s_k_l,
                p_k_scale,
                p_mask,
                s_mask_q,
                s_mask_k,
                o_rows,
                o_columns,
                k_end,
                row_valid,
                mask_d,
                D,
                BLOCK_D,
                MASK,
                EVEN_K,
                INT8,
                PRECISION,
            )
            b_max = tl.max(b_s, 1)
            visit = True
            if MARK:
                if PARTS > 1:
                    # All parts of a tile compare with the running max ahead of the whole tile.
                    before = tl.where(i_part == 0, running, before)
                    wanted = tl.where(i_part == 0, 0, wanted)
                else:
                    before = running
                    wanted = tl.zeros([BLOCK_M], tl.int32)
                keeps = ((b_max - before) * scale_log2 > threshold) & row_valid
                wanted = wanted | keeps.to(tl.int32)
                stays = tl.max(wanted, 0)
                tl.store(p_keep + i_key, 1, mask=stays > 0)
                if SKIP_NOW:
                    visit = (stays > 0) | (i_visit == 0)
            if visit:
                running, total, acc = _accumulate(
                    b_s,
                    b_max,
                    running,
                    total,
                    acc,
                    p_values + jump * s_v_l,
                    o_columns < k_end,
                    mask_d,
                    scale_log2,
                    D,
                    BLOCK_D,
                    MASK,
                    EVEN_K,
                    PRECISION,
                )
    else:
        p_k_bound += i_b * s_k_bound_b + i_h * s_k_bound_h
        for i_visit in range(0, count):
            i_key = tl.load(p_list + i_visit)
            column = tl.load(p_k_bound + i_key)
            k_end = tl.load(p_k_bound + i_key + 1)
            before = running
            wanted = tl.zeros([BLOCK_M], tl.int32)
            for start in range(column, k_end, BLOCK_N):
                jump = tl.cast(start, tl.int64)
                o_columns = jump + o_n
                b_s = _scores(
                    b_q,
                    b_q_scale,
                    p_keys + jump * s_k_l,
                    p_k_scale,
                    p_mask,
                    s_mask_q,
                    s_mask_k,
                    o_rows,
                    o_columns,
                    k_end,
                    row_valid,
                    mask_d,
                    D,
                    BLOCK_D,
                    MASK,
                    False,
                    INT8,
                    PRECISION,
                )
                b_max = tl.max(b_s, 1)
                if MARK:
                    keeps = ((b_max - before) * scale_log2 > threshold) & row_valid
                    wanted = wanted | keeps.to(tl.int32)
                running, total, acc = _accumulate(
                    b_s,
                    b_max,
                    running,
                    total,
                    acc,
                    p_values + jump * s_v_l,
                    o_columns < k_end,
                    mask_d,
                    scale_log2,
                    D,
                    BLOCK_D,
                    MASK,
                    False,
                    PRECISION,
                )
            if MARK:
                tl.store(p_keep + i_key, 1, mask=tl.max(wanted, 0) > 0)

    if CENTROIDS:
        # Contiguous `(B, Hkv, k_tiles, D)`; the bias `(B|1, H|1, q_tiles, k_tiles)` is in units of
        # raw scores.
        own = (i_b * (heads // GROUP) + i_kv) * k_tiles * D
        p_keys = p_mean_k + own + o_d[:, None] + o_n[None, :] * D
        p_values = p_mean_v + own + o_n[:, None] * D + o_d[None, :]
        b_own = b_q
        if INT8:
            b_own = b_q.to(p_mean_k.dtype.element_ty)
        p_bias += i_b * s_bias_b + i_h * s_bias_h + i_tile.to(tl.int64) * k_tiles
        for start in range(0, k_tiles, BLOCK_N):
            o_columns = start + o_n
            b_s = _scores(
                b_own,
                b_q_scale,
                p_keys + start * D,
                p_k_scale,
                p_mask,
                s_mask_q,
                s_mask_k,
                o_rows,
                o_columns,
                k_tiles,
                row_valid,
                mask_d,
                D,
                BLOCK_D,
                0,
                False,
                False,
                PRECISION,
            )
            if INT8:
                b_s *= b_q_scale[:, None]
            bias = tl.load(p_bias + o_columns, mask=o_columns < k_tiles, other=float("-inf"))
            b_s += bias[None, :]
            running, total, acc = _accumulate(
                b_s,
                tl.max(b_s, 1),
                running,
                total,
                acc,
                p_values + start * D,
                o_columns < k_tiles,
                mask_d,
                scale_log2,
                D,
                BLOCK_D,
                1,  # a row may have seen no key so far
                False,
                PRECISION,
            )

    # A row without keys has a sum of 0; every other one has at least the 1 of its largest score.
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    tl.store(
        p_out + i_b * s_out_b + i_h * s_out_h + o_rows[:, None] * s_out_l + o_d[None, :] * s_out_d,
        acc.to(p_out.dtype.element_ty),
        mask=row_valid[:, None] & mask_d[None, :],
    )
    if LSE:
        ln_2: tl.constexpr = 0.6931471805599453
        b_lse = (running * scale_log2 + tl.log2(tl.where(empty, 1.0, total))) * ln_2
        b_lse = tl.where(empty, float("-inf"), b_lse)
        tl.store(p_lse + i_bh * q_len + o_rows, b_lse, mask=row_valid)
