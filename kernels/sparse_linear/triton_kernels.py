"""The linear branch as Triton kernels; import it only where Triton is known to be there.

Four products make it, forward and backward. With X `(L, F)` features, Y `(L, C)` values or
gradients, and S `(tiles, F, C)` beside z `(tiles, F)` sums of tiles, in float32:

    sums      S_t = X_t^T diag(r) Y_t,   z_t = X_t^T w
    mix       S'_t = the sum of S_s over the tiles s that the marginal mask pairs with t; z alike
    expand    Y_t = X_t S_t, divided by X_t z_t + eps where asked for
    expand_t  X_t = diag(r) Y_t S_t^T + w z_t^T

A row of a buffer of sums is S_t, row by row, and then z_t. Names are those of
`attention.triton_kernel`; `i_slot` counts the heads whose sums are held at a time, from `first` on.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(x, PRECISION: tl.constexpr):
    """Round to what a TF32 product reads, which would cut the last 13 bits off: no bias to 0."""
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        # a NaN may have all bits set, and must not become a number
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x


@triton.jit(do_not_specialize=["heads", "first", "length", "tiles"])
def sums_kernel(
    p_x,
    p_y,
    p_r,
    p_w,
    p_sums,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    s_y_b,
    s_y_h,
    s_y_l,
    s_y_d,
    heads,
    first,
    length,
    tiles,
    channel,
    channels,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of one tile: a block of features times a block of channels.

    SCALED reads r and w, float32 `(B, H, L)`; else both are 1.
    """
    i_program = tl.program_id(0)
    i_slot = tl.program_id(1).to(tl.int64)
    i_bh = first + i_slot
    i_b = i_bh // heads
    i_h = i_bh % heads
    F_BLOCKS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    c_blocks = (channels + BLOCK_C - 1) // BLOCK_C
    i_f = i_program % F_BLOCKS
    i_c = (i_program // F_BLOCKS) % c_blocks
    i_tile = i_program // (F_BLOCKS * c_blocks)

    o_f = i_f * BLOCK_F + tl.arange(0, BLOCK_F)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    o_r = tl.arange(0, BLOCK_R)
    mask_f = o_f < F
    mask_c = o_c < channels
    p_x += i_b * s_x_b + i_h * s_x_h
    p_y += i_b * s_y_b + i_h * s_y_h
    end = tl.minimum((i_tile + 1) * TILE, length)
    acc = tl.zeros([BLOCK_F, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_F], tl.float32)
    for row in range(i_tile * TILE, end, BLOCK_R):
        o_l = tl.cast(row, tl.int64) + o_r
        valid = o_l < end
        b_x = tl.load(
            p_x + o_f[:, None] * s_x_d + o_l[None, :] * s_x_l,
            mask=mask_f[:, None] & valid[None, :],
            other=0.0,
        )
        b_y = tl.load(
            p_y + o_l[:, None] * s_y_l + (channel + o_c)[None, :] * s_y_d,
            mask=valid[:, None] & mask_c[None, :],
            other=0.0,
        )
        if SCALED:
            b_x = b_x.to(tl.float32)
            b_r = tl.load(p_r + i_bh * length + o_l, mask=valid, other=0.0)
            b_y = _rounded(b_y.to(tl.float32) * b_r[:, None], PRECISION)
            b_w = tl.load(p_w + i_bh * length + o_l, mask=valid, other=0.0)
            total += tl.sum(b_x * b_w[None, :], 1)
        else:
            total += tl.sum(b_x.to(tl.float32), 1)
        acc = tl.dot(b_x, b_y, acc, input_precision=PRECISION)
    p_sums += (i_slot * tiles + i_tile) * (F * channels + F)
    tl.store(
        p_sums + o_f[:, None] * channels + o_c[None, :],
        _rounded(acc, PRECISION),
        mask=mask_f[:, None] & mask_c[None, :],
    )
    if i_c == 0:
        tl.store(p_sums + F * channels + o_f, _rounded(total, PRECISION), mask=mask_f)


@triton.jit(do_not_specialize=["heads", "first", "targets", "sources", "s_m_b", "s_m_h", "s_m_l"])
def mix_kernel(
    p_marginal,
    p_sums,
    p_out,
    s_m_b,
    s_m_h,
    s_m_l,
    heads,
    first,
    targets,
    sources,
    width,
    SHARE: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BACK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`out[t] = sum over s of marginal[t, s] sums[s]`: a matrix product by rows of `width`.

    `first` and `heads` count query heads. Forward, SHARE query heads read the sums of one key head;
    BACK reads the mask transposed, and MEMBERS query heads are added up. The mask's key tiles lie
    side by side.
    """
    t_blocks = (targets + BLOCK_T - 1) // BLOCK_T
    i_t = tl.program_id(0) % t_blocks
    i_n = tl.program_id(0) // t_blocks
    i_slot = tl.program_id(1).to(tl.int64)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_s = tl.arange(0, BLOCK_S)
    mask_t = o_t < targets
    mask_n = o_n < width
    s_blocks = (sources + BLOCK_S - 1) // BLOCK_S
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for i_visit in range(0, MEMBERS * s_blocks):
        i_query = i_slot * MEMBERS + i_visit // s_blocks
        i_b = (first + i_query) // heads
        i_h = (first + i_query) % heads
        o_source = (i_visit % s_blocks) * BLOCK_S + o_s
        mask_s = o_source < sources
        p_head = p_marginal + i_b * s_m_b + i_h * s_m_h
        if BACK:
            p_pairs = p_head + o_source.to(tl.int64)[None, :] * s_m_l + o_t[:, None]
        else:
            p_pairs = p_head + o_t.to(tl.int64)[:, None] * s_m_l + o_source[None, :]
        b_m = tl.load(
            p_pairs,
            mask=mask_t[:, None] & mask_s[None, :],
            other=0,
        )
        b_x = tl.load(
            p_sums + ((i_query // SHARE) * sources + o_source)[:, None] * width + o_n[None, :],
            mask=mask_s[:, None] & mask_n[None, :],
            other=0.0,
        )
        acc = tl.dot(b_m.to(tl.float32), b_x, acc, input_precision=PRECISION)
    tl.store(
        p_out + (i_slot * targets + o_t)[:, None] * width + o_n[None, :],
        _rounded(acc, PRECISION),
        mask=mask_t[:, None] & mask_n[None, :],
    )


@triton.jit(do_not_specialize=["heads", "first", "length", "tiles"])
def expand_kernel(
    p_x,
    p_sums,
    p_y,
    p_mass,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    s_y_b,
    s_y_h,
    s_y_l,
    s_y_d,
    heads,
    first,
    length,
    tiles,
    channel,
    channels,
    eps,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    DIVIDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of rows times a block of channels of its tile's sums.

    DIVIDED divides by the mass X_t z_t + eps, and stores the mass.
    """
    i_slot = tl.program_id(1).to(tl.int64)
    i_bh = first + i_slot
    i_b = i_bh // heads
    i_h = i_bh % heads
    BLOCKS: tl.constexpr = (TILE + BLOCK_R - 1) // BLOCK_R
    c_blocks = (channels + BLOCK_C - 1) // BLOCK_C
    i_c = tl.program_id(0) % c_blocks
    i_row = tl.program_id(0) // c_blocks
    i_tile = i_row // BLOCKS
    row = i_tile * TILE + (i_row % BLOCKS) * BLOCK_R
    end = tl.minimum((i_tile + 1) * TILE, length)
    if row >= end:
        return

    o_l = row.to(tl.int64) + tl.arange(0, BLOCK_R)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = o_l < end
    mask_c = o_c < channels
    p_x += i_b * s_x_b + i_h * s_x_h
    p_sums += (i_slot * tiles + i_tile) * (F * channels + F)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    mass = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, F, BLOCK_F):
        o_f = start + tl.arange(0, BLOCK_F)
        mask_f = o_f < F
        b_x = tl.load(
            p_x + o_l[:, None] * s_x_l + o_f[None, :] * s_x_d,
            mask=valid[:, None] & mask_f[None, :],
            other=0.0,
        ).to(tl.float32)
        b_s = tl.load(
            p_sums + o_f[:, None] * channels + o_c[None, :],
            mask=mask_f[:, None] & mask_c[None, :],
            other=0.0,
        )
        acc = tl.dot(b_x, b_s, acc, input_precision=PRECISION)
        if DIVIDED:
            b_z = tl.load(p_sums + F * channels + o_f, mask=mask_f, other=0.0)
            mass += tl.sum(b_x * b_z[None, :], 1)
    if DIVIDED:
        acc = acc / (mass + eps)[:, None]
        if i_c == 0:
            tl.store(p_mass + i_bh * length + o_l, mass, mask=valid)
    p_y += i_b * s_y_b + i_h * s_y_h
    tl.store(
        p_y + o_l[:, None] * s_y_l + (channel + o_c)[None, :] * s_y_d,
        acc.to(p_y.dtype.element_ty),
        mask=valid[:, None] & mask_c[None, :],
    )


@triton.jit(do_not_specialize=["heads", "first", "length", "tiles"])
def expand_t_kernel(
    p_y,
    p_sums,
    p_r,
    p_w,
    p_x,
    s_y_b,
    s_y_h,
    s_y_l,
    s_y_d,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    heads,
    first,
    length,
    tiles,
    channel,
    channels,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE: tl.constexpr,
    SCALED: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of rows times the transposed sums of its tile: a block of features.

    SCALED reads r and w; else both are 1. ADD continues a sum over slices of channels: z is taken
    along by the first slice only.
    """
    i_slot = tl.program_id(1).to(tl.int64)
    i_bh = first + i_slot
    i_b = i_bh // heads
    i_h = i_bh % heads
    BLOCKS: tl.constexpr = (TILE + BLOCK_R - 1) // BLOCK_R
    F_BLOCKS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    i_f = tl.program_id(0) % F_BLOCKS
    i_row = tl.program_id(0) // F_BLOCKS
    i_tile = i_row // BLOCKS
    row = i_tile * TILE + (i_row % BLOCKS) * BLOCK_R
    end = tl.minimum((i_tile + 1) * TILE, length)
    if row >= end:
        return

    o_l = row.to(tl.int64) + tl.arange(0, BLOCK_R)
    o_f = i_f * BLOCK_F + tl.arange(0, BLOCK_F)
    valid = o_l < end
    mask_f = o_f < F
    here = valid[:, None] & mask_f[None, :]
    p_y += i_b * s_y_b + i_h * s_y_h
    p_sums += (i_slot * tiles + i_tile) * (F * channels + F)
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    for start in range(0, channels, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask_c = o_c < channels
        b_y = tl.load(
            p_y + o_l[:, None] * s_y_l + (channel + o_c)[None, :] * s_y_d,
            mask=valid[:, None] & mask_c[None, :],
            other=0.0,
        ).to(tl.float32)
        b_s = tl.load(
            p_sums + o_f[None, :] * channels + o_c[:, None],
            mask=mask_f[None, :] & mask_c[:, None],
            other=0.0,
        )
        acc = tl.dot(b_y, b_s, acc, input_precision=PRECISION)
    if SCALED:
        acc = acc * tl.load(p_r + i_bh * length + o_l, mask=valid, other=0.0)[:, None]
    p_x += i_b * s_x_b + i_h * s_x_h
    p_x = p_x + o_l[:, None] * s_x_l + o_f[None, :] * s_x_d
    if ADD:
        acc += tl.load(p_x, mask=here, other=0.0)
    else:
        b_z = tl.load(p_sums + F * channels + o_f, mask=mask_f, other=0.0)
        if SCALED:
            b_w = tl.load(p_w + i_bh * length + o_l, mask=valid, other=0.0)
            acc += b_w[:, None] * b_z[None, :]
        else:
            acc += b_z[None, :]
    tl.store(p_x, acc.to(p_x.dtype.element_ty), mask=here)
