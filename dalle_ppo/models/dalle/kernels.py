"""The work of a sampler step between its matrix products on a GPU, as a handful of Triton kernels.

A step has only a few rows. Its time goes into reading weights and caches once and launching kernels, so
everything between two products is one kernel here. All of them compute in float32, whatever they read.
With TRITON_INTERPRET=1, set before this module is imported, they run on CPUs, slowly, as the tests do.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

NORM_EPS: tl.constexpr = tl.constexpr(1e-5)  # the default of `nn.LayerNorm`
MIX_1: tl.constexpr = tl.constexpr(0x21F0AAAD)
MIX_2: tl.constexpr = tl.constexpr(0x735A2D97)


@triton.jit
def _attend(
    queries,
    query_stride,
    num_query_rows,
    keys,
    values,
    num_places,
    owners,
    lengths,
    new_keys,
    new_values,
    new_stride,
    out,
    scale,
    num_heads,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_CACHE: tl.constexpr,
    STAGES: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    numbers = tl.arange(0, PADDED)
    is_number = numbers < WIDTH
    owner = tl.load(owners + row).to(tl.int64)
    length = tl.load(lengths + owner)
    here = head * WIDTH + numbers
    query = tl.load(queries + (row % num_query_rows) * query_stride + here, is_number, 0.0).to(tl.float32)
    query *= scale
    sequence = (owner * num_heads + head) * num_places * WIDTH
    # Every place of a block keeps its own softmax until the end, so blocks need not wait for one another.
    places = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    read = tl.zeros([BLOCK, PADDED], tl.float32)
    tile = sequence + places[:, None] * WIDTH + numbers[None, :]
    for start in tl.range(0, length, BLOCK, num_stages=STAGES):
        is_there = start + places < length
        mask = is_there[:, None] & is_number[None, :]
        key = tl.load(keys + tile + start * WIDTH, mask, 0.0)
        value = tl.load(values + tile + start * WIDTH, mask, 0.0)
        scores = tl.where(is_there, tl.sum(key.to(tl.float32) * query[None, :], 1), -1e30)
        larger = tl.maximum(largest, scores)
        weights, shrink = tl.where(is_there, tl.exp(scores - larger), 0.0), tl.exp(largest - larger)
        read = read * shrink[:, None] + weights[:, None] * value.to(tl.float32)
        total = total * shrink + weights
        largest = larger
    top = tl.max(largest, 0)
    if IS_CACHE:
        # The token's own key and value go into the cache, but are not read back from it.
        new_key = tl.load(new_keys + row * new_stride + here, is_number, 0.0)
        new_value = tl.load(new_values + row * new_stride + here, is_number, 0.0)
        tl.store(keys + sequence + length * WIDTH + numbers, new_key, is_number)
        tl.store(values + sequence + length * WIDTH + numbers, new_value, is_number)
        own = tl.sum(query * new_key.to(tl.float32), 0)
        top = tl.maximum(top, own)
        own = tl.exp(own - top)
        sum_of_all = own
        result = own * new_value.to(tl.float32)
    else:
        sum_of_all = 0.0
        result = tl.zeros([PADDED], tl.float32)
    shares = tl.exp(largest - top)
    sum_of_all += tl.sum(total * shares, 0)
    result += tl.sum(read * shares[:, None], 0)
    tl.store(out + row * num_heads * WIDTH + here, result / sum_of_all, is_number)


@triton.jit
def _normed(x, width, numbers, weight, bias):
    is_number = numbers < width
    mean = tl.sum(tl.where(is_number, x, 0.0), 0) / width
    centred = tl.where(is_number, x - mean, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + NORM_EPS)
    w = tl.load(weight + numbers, is_number, 0.0).to(tl.float32)
    b = tl.load(bias + numbers, is_number, 0.0).to(tl.float32)
    return scaled * w + b


@triton.jit
def _add_and_norm(
    x,
    num_x_rows,
    h,
    weight,
    bias,
    next_weight,
    next_bias,
    x_out,
    normed_out,
    width,
    HAS_X: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    numbers = tl.arange(0, PADDED)
    is_number = numbers < width
    total = tl.load(h + row * width + numbers, is_number, 0.0).to(tl.float32)
    if HAS_NORM:
        total = _normed(total, width, numbers, weight, bias)
    if HAS_X:
        total += tl.load(x + (row % num_x_rows) * width + numbers, is_number, 0.0)
    tl.store(x_out + row * width + numbers, total, is_number)
    normed = _normed(total, width, numbers, next_weight, next_bias)
    tl.store(normed_out + row * width + numbers, normed, is_number)


@triton.jit
def _gate(parts, w, b, out, width, PADDED: tl.constexpr):
    row = tl.program_id(0)
    numbers = tl.arange(0, PADDED)
    is_number = numbers < width
    gate = tl.load(parts + 2 * row * width + numbers, is_number, 0.0).to(tl.float32)
    up = tl.load(parts + (2 * row + 1) * width + numbers, is_number, 0.0).to(tl.float32)
    gated = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    tl.store(out + row * width + numbers, _normed(gated, width, numbers, w, b), is_number)


# The noise of `sampling.gumbel_noise`, bit for bit up to its logarithms: the constants are the same.
@triton.jit
def _mixed(x):
    x ^= x >> 16
    x *= MIX_1
    x ^= x >> 15
    x *= MIX_2
    return x ^ (x >> 15)


@triton.jit
def _draw(
    logits,
    keys,
    position,
    temperature,
    current,
    tokens,
    log_probs,
    num_tokens,
    num_codes,
    TOP_K: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    codes = tl.arange(0, PADDED)
    is_code = codes < num_codes
    z = tl.load(logits + row * num_codes + codes, is_code, -float("inf")) / temperature
    if TOP_K > 0:
        # Bisection for the k-th largest: floats keep their order as integers once negative ones are flipped.
        bits = z.to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        low, high = tl.min(ordered, 0).to(tl.int64), tl.max(ordered, 0).to(tl.int64)
        for _ in range(32):
            middle = (low + high + 1) >> 1
            enough = tl.sum((ordered.to(tl.int64) >= middle).to(tl.int32), 0) >= TOP_K
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
        z = tl.where(ordered.to(tl.int64) >= low, z, -float("inf"))
    largest = tl.max(z, 0)
    log_pi = z - largest - tl.log(tl.sum(tl.exp(z - largest), 0))
    here = tl.load(position)
    first = tl.load(keys + 2 * row).to(tl.uint32, bitcast=True)
    second = tl.load(keys + 2 * row + 1).to(tl.uint32, bitcast=True)
    inner = _mixed(first + _mixed(here.to(tl.uint32) * 0x632B + 0x1234567))
    words = _mixed(_mixed(codes.to(tl.uint32) * 0x3C6EF35 + inner) + second)
    uniform = ((words >> 9).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
    noisy = tl.where(is_code, log_pi - tl.log(-tl.log(uniform)), -float("inf"))
    drawn = tl.argmax(noisy, 0)
    tl.store(current + row, drawn.to(tl.int64))
    tl.store(tokens + row * num_tokens + here, drawn.to(tl.int64))
    tl.store(log_probs + row * num_tokens + here, tl.sum(tl.where(codes == drawn, log_pi, 0.0), 0))


def attend_cache(projected: Tensor, keys: Tensor, values: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Attention of one new token per row; its key and value go into the cache.

    Args:
        projected: queries, keys and values of the new tokens side by side, [R, 3 D].
        keys: cache [R, H, T, D / H], written in place.
        values: cache [R, H, T, D / H], written in place.
        rows: 0 .. R - 1, int32 [R].
        lengths: how many tokens are in the cache already, int32 [R].

    Returns:
        [R, D].
    """
    queries, *new = projected.chunk(3, dim=1)
    return _attended(queries, keys, values, rows, lengths, new)


def attend_text(queries: Tensor, keys: Tensor, values: Tensor, owners: Tensor, lengths: Tensor) -> Tensor:
    """Attention of rows over captions.

    Args:
        queries: [Q, D]; row r of R has query r mod Q.
        keys: keys of M captions, [M, H, S, D / H].
        values: values of M captions, [M, H, S, D / H].
        owners: which caption a row reads, int32 [R].
        lengths: length of each caption, int32 [M].

    Returns:
        [R, D].
    """
    return _attended(queries, keys, values, owners, lengths, None)


def _attended(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    owners: Tensor,
    lengths: Tensor,
    new: list[Tensor] | None,
) -> Tensor:
    """Attention of rows over keys and values [M, H, T, D / H], and over `new` ones [R, D], which it adds."""
    (_, num_heads, num_places, width), is_cache = keys.shape, new is not None
    assert keys.is_contiguous() and values.is_contiguous() and queries.stride(1) == 1
    out = queries.new_empty(len(owners), num_heads * width)
    new_keys, new_values = new or (queries, queries)
    _attend[(len(owners), num_heads)](
        queries,
        queries.stride(0),
        len(queries),
        keys,
        values,
        num_places,
        owners,
        lengths,
        new_keys,
        new_values,
        new_keys.stride(0),
        out,
        width**-0.5,
        num_heads,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        BLOCK=16,
        IS_CACHE=is_cache,
        STAGES=3 if is_cache else 1,
        num_warps=2 if is_cache else 1,
    )
    return out


def add_and_norm(
    x: Tensor | None, h: Tensor, norm: nn.LayerNorm | None, next_norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """`x + norm(h)`, and `next_norm` of that.

    Args:
        x: residual stream, float32 [Q, D], whose row r mod Q is added to row r of R. None for zeros.
        h: [R, D].
        norm: None leaves `h` as it is.
        next_norm: the norm that the next part of the network begins with.

    Returns:
        The new residual stream, float32 [R, D]; and its norm, [R, D], of h's dtype.
    """
    rows, width = h.shape
    x_out, normed = torch.empty_like(h, dtype=torch.float32), torch.empty_like(h)
    first = norm or next_norm
    _add_and_norm[(rows,)](
        h if x is None else x,
        1 if x is None else len(x),
        h,
        first.weight,
        first.bias,
        next_norm.weight,
        next_norm.bias,
        x_out,
        normed,
        width,
        HAS_X=x is not None,
        HAS_NORM=norm is not None,
        PADDED=triton.next_power_of_2(width),
        num_warps=8,
    )
    return x_out, normed


def gated_norm(parts: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(gelu(a) * b)`, [R, G], of a and b side by side, [R, 2 G]."""
    rows, width = len(parts), parts.shape[1] // 2
    out = parts.new_empty(rows, width)
    padded = triton.next_power_of_2(width)
    _gate[(rows,)](parts, norm.weight, norm.bias, out, width, PADDED=padded, num_warps=8)
    return out


def draw_codes(
    logits: Tensor,
    keys: Tensor,
    position: Tensor,
    temperature: float,
    top_k: int | None,
    current: Tensor,
    tokens: Tensor,
    log_probs: Tensor,
) -> None:
    """Draws the code of each image at a position: `sampling.guided_log_pi` and `gumbel_noise` in one.

    Args:
        logits: guided, float32 [N, V].
        keys: noise keys, int32 [N, 2].
        position: int64 [1].
        temperature: the policy's.
        top_k: the policy's.
        current: filled with the codes, int64 [N].
        tokens: receives the codes at `position`, int64 [N, T].
        log_probs: receives their log-probs at `position`, float32 [N, T].
    """
    num_images, num_codes = logits.shape
    _draw[(num_images,)](
        logits,
        keys,
        position,
        temperature,
        current,
        tokens,
        log_probs,
        tokens.shape[1],
        num_codes,
        TOP_K=0 if top_k is None or top_k >= num_codes else top_k,
        PADDED=triton.next_power_of_2(num_codes),
        num_warps=16,
    )
