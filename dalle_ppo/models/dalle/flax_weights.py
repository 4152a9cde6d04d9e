"""Reads the original Flax checkpoints of DALL·E mini, Mega and the VQGAN as tensors of our modules.

Only these hold the VQGAN's encoder, which turns photos into tokens. A checkpoint is a msgpack file: nothing
in it can run code.

Source: https://github.com/google/flax/blob/main/flax/serialization.py (the file format),
    https://github.com/kuprel/min-dalle/blob/018414a5c365d09ca198a0b3729cd462867ef9cc/min_dalle/load_params.py
    and https://github.com/patil-suraj/vqgan-jax (the names).
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from dalle_ppo.base.one_line import one_line

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NDARRAY = 1  # Flax's msgpack extension code for an array
# Flax numbers a layer's modules in the order in which they are used.
LAYER_NAMES = {
    "LayerNorm_0": "pre_self_attn_layer_norm",
    "LayerNorm_1": "self_attn_layer_norm",
    "LayerNorm_2": "pre_encoder_attn_layer_norm",
    "LayerNorm_3": "encoder_attn_layer_norm",
    "FlaxBartAttention_0": "self_attn",
    "FlaxBartAttention_1": "encoder_attn",
    "GLU_0": "glu",
}
GLU_NAMES = {
    "LayerNorm_0": "ln0",
    "LayerNorm_1": "ln1",
    "Dense_0": "fc0",
    "Dense_1": "fc1",
    "Dense_2": "fc2",
}


def read_flax(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a Flax checkpoint, by dotted name.

    Raises:
        ValueError: the file is absent, damaged, or holds anything but float arrays; names it.
    """
    import msgpack

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False)
        tensors = dict(_leaves(tree, ()))
    except Exception as error:  # a broken file can make its reader fail anywhere
        raise ValueError(
            f"{path}: not a Flax checkpoint, or cut short or damaged ({path.stat().st_size / 1e6:.1f} MB; "
            f"{one_line(error)}); expected flax_model.msgpack from the hub repository"
        ) from error
    return tensors


def _array(code: int, data: bytes) -> Tensor:
    import msgpack

    if code != NDARRAY:
        raise ValueError(f"holds a value of kind {code} where arrays are expected")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    name = dtype.decode()
    if name not in DTYPES:
        raise ValueError(f"holds an array of {name}; weights are {', '.join(DTYPES)}")
    return torch.frombuffer(bytearray(buffer), dtype=DTYPES[name]).reshape(tuple(shape))


def _leaves(tree: dict, prefix: tuple[str, ...]):
    """Yields (dotted name, tensor) of a tree, which holds arrays of more than a gigabyte as chunks."""
    if not isinstance(tree, dict):
        raise ValueError(f"holds {type(tree).__name__} at {'.'.join(prefix) or 'the top level'}")
    for name, value in tree.items():
        path = (*prefix, name)
        if isinstance(value, dict) and value.get("__msgpack_chunked_array__"):
            # Flax writes a sequence as a dictionary with keys "0", "1" and so on.
            chunks, shape = (
                [value[key][str(i)] for i in range(len(value[key]))] for key in ("chunks", "shape")
            )
            value = torch.cat([chunk.flatten() for chunk in chunks]).reshape(shape)
        if isinstance(value, Tensor):
            yield ".".join(path), value
        else:
            yield from _leaves(value, path)


def bart_tensors(flax: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a DALL·E checkpoint's text encoder and image-token decoder.

    Flax stacks the layers: one array holds the same weight of all of them.

    Args:
        flax: tensors from `read_flax`.

    Returns:
        (encoder, decoder), named like our modules' parameters; norms without a scale have none.
    """
    sides: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, value in flax.items():
        parts = name.removeprefix("model.").split(".")
        side, *inner = ["decoder", *parts] if parts[0] == "lm_head" else parts
        if side not in sides:
            raise ValueError(f"{name} does not belong to a DALL·E checkpoint")
        if inner[0] != "layers":
            sides[side][_parameter(inner)] = _dense(inner, value)
            continue
        inner = [LAYER_NAMES.get(inner[2], inner[2]), *inner[3:]]
        if inner[0] == "glu":
            inner[1] = GLU_NAMES.get(inner[1], inner[1])
        for layer, weight in enumerate(value):
            sides[side][f"layers.{layer}.{_parameter(inner)}"] = _dense(inner, weight)
    return sides["encoder"], sides["decoder"]


def vqgan_tensors(flax: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the VQGAN's two halves.

    Args:
        flax: tensors from `read_flax`.

    Returns:
        (VqganEncoder's, VqganDecoder's).
    """
    encoder, decoder = {}, {}
    for name, value in flax.items():
        parts = name.removeprefix("quantize.").split(".")
        if parts[1:] and re.fullmatch(r"(down|up)_\d+", parts[1]):
            parts[1:3] = [part.replace("_", ".") for part in parts[1:3]]
        if parts[-1] == "kernel":
            value = value.permute(3, 2, 0, 1)  # height, width, in, out
        elif parts[-1] in ("scale", "bias"):
            value = value.flatten()  # norms keep the axes of the images
        side = encoder if parts[0] in ("encoder", "quant_conv") else decoder
        side[_parameter(parts)] = value.contiguous()
    return encoder, decoder


def _parameter(parts: list[str]) -> str:
    """Turns Flax's name of a parameter into torch's."""
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(parts[-1], parts[-1])
    return ".".join([*parts[:-1], leaf])


def _dense(parts: list[str], value: Tensor) -> Tensor:
    """A dense layer's kernel is stored as [in, out], torch's weight as [out, in]."""
    return (value.T if parts[-1] == "kernel" else value).contiguous()
