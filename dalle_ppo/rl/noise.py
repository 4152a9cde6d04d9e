"""The sampler's noise: a pure function of what is drawn, not a state that drawing consumes."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def noise_keys(
    seed: int, stream: str, iteration: int, caption_ids: Sequence[str], samples: Sequence[int]
) -> Tensor:
    """Keys of the sampling noise, one per image.

    The noise of an image depends only on these five arguments, the position and the code; not on the device
    or on which images share its batch.

    Args:
        seed: seed of the run.
        stream: "rollout", "evaluation", "generate" or "labels"; streams never share noise.
        iteration: training iteration; 0 elsewhere.
        caption_ids: id of each image's caption, N of them.
        samples: index of each image among those of its caption.

    Returns:
        int32 [N, 2].
    """
    words = [
        hashlib.blake2b(f"{seed}|{stream}|{iteration}|{caption}|{sample}".encode(), digest_size=8).digest()
        for caption, sample in zip(caption_ids, samples, strict=True)
    ]
    return torch.frombuffer(bytearray(b"".join(words)), dtype=torch.int32).view(-1, 2)


def _mix(x: Tensor) -> Tensor:
    """A bijection on 32-bit words that spreads every bit over all others; in place.

    Source: "lowbias32", https://github.com/skeeto/hash-prospector
    """
    # int32 shifts are arithmetic: the mask removes the copies of the sign bit.
    x ^= (x >> 16) & 0xFFFF
    x *= 0x21F0AAAD
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x735A2D97
    x ^= (x >> 15) & 0x1FFFF
    return x


def gumbel_noise(keys: Tensor, position: int | Tensor, num_codes: int) -> Tensor:
    """Standard Gumbel noise for one position, a pure function of its arguments.

    Args:
        keys: int32 [N, 2], from `noise_keys`.
        position: position of the token, 0 .. T - 1; may be a tensor [1].
        num_codes: V.

    Returns:
        float32 [N, V].
    """
    codes = torch.arange(num_codes, dtype=torch.int32, device=keys.device)
    place = torch.as_tensor(position, device=keys.device).to(torch.int32).view(1) * 0x632B + 0x1234567
    x = _mix(codes[None] * 0x3C6EF35 + _mix(keys[:, :1] + _mix(place)))
    x = _mix(x + keys[:, 1:])
    uniform = (((x >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))
