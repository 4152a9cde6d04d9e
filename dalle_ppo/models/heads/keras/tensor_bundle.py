"""Reads TensorFlow's checkpoint files (`variables.index`, `variables.data-*`) without TensorFlow.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.h and tensorflow/core/lib/io/table_format.txt (the
index is a LevelDB table, https://github.com/google/leveldb/blob/main/doc/table_format.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub import dtypes
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from dalle_ppo.base.one_line import one_line

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48


@dataclass(frozen=True)
class _Entry:
    """Where one tensor is stored. Source: tensorflow/core/protobuf/tensor_bundle.proto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool


class TensorBundle:
    """The tensors of one checkpoint by name, read when asked for and checked by their CRC."""

    def __init__(self, prefix: Path) -> None:
        """Open `<prefix>.index`.

        Raises:
            ValueError: it is missing, damaged, or in a form TensorFlow's own writer does not produce.
        """
        self.prefix = prefix
        index = prefix.with_name(prefix.name + ".index")
        if not index.is_file():
            raise ValueError(f"{index}: no such file; a SavedModel keeps its weights there")
        try:
            entries = dict(_table_entries(index.read_bytes()))
            header = _fields(entries.pop(b""))
            self.num_shards = header.get(1, 1)
            self.entries = {key.decode(): _entry(value) for key, value in entries.items()}
        except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{index}: damaged, or not a TensorFlow checkpoint ({one_line(error)})"
            ) from None
        if header.get(2, 0):
            raise ValueError(f"{index}: written big-endian, which is not supported")

    def read(self, name: str) -> np.ndarray:
        """One tensor; texts are returned as an object array of bytes.

        Raises:
            ValueError: there is no such tensor, or its bytes are damaged.
        """
        entry = self.entries.get(name)
        if entry is None or entry.sliced:
            raise ValueError(f"{self.prefix}: holds no whole tensor {name!r}")
        shard = f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.num_shards:05d}"
        path = self.prefix.with_name(shard)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the weights are incomplete")
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        damaged = ValueError(f"{path}: tensor {name!r} is damaged (checksum)")
        if len(data) != entry.size:
            raise damaged
        kind = dtypes.as_dtype(entry.dtype)
        try:
            texts, summed = _texts(data, entry.shape) if kind == dtypes.string else (None, data)
        except (IndexError, struct.error):  # lengths that run past the data
            raise damaged from None
        if masked_crc32c(summed) != entry.crc32c:
            raise damaged
        if texts is not None:
            return texts
        return np.frombuffer(data, dtype=kind.as_numpy_dtype).reshape(entry.shape)


def _table_entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All (key, value) of a LevelDB table."""
    footer = data[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _TABLE_MAGIC:
        raise ValueError("the weights' index is damaged, or not a TensorFlow checkpoint (magic number)")
    position = 0
    handle = []
    for _ in range(4):  # offset and size of the metaindex, then of the index
        value, position = _varint(footer, position)
        handle.append(value)
    for _, block in _block_entries(data, handle[2], handle[3]):
        offset, position = _varint(block, 0)
        size, _ = _varint(block, position)
        yield from _block_entries(data, offset, size)


def _block_entries(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) of one block: keys share prefixes with the one before."""
    block, compression = data[offset : offset + size], data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if compression:
        raise ValueError("the weights' index is compressed, which TensorFlow's own writer does not do")
    if masked_crc32c(data[offset : offset + size + 1]) != crc:
        raise ValueError("the weights' index is damaged (checksum)")
    (num_restarts,) = struct.unpack("<I", block[-4:])
    end = size - 4 * (num_restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        added, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + added]
        position += added
        yield key, block[position : position + length]
        position += length


def _entry(data: bytes) -> _Entry:
    fields = _fields(data)
    shape = TensorShapeProto.FromString(fields.get(2, b""))
    return _Entry(
        dtype=fields[1],
        shape=tuple(dim.size for dim in shape.dim),
        shard=fields.get(3, 0),
        offset=fields.get(4, 0),
        size=fields.get(5, 0),
        crc32c=fields.get(6, 0),
        sliced=7 in fields,
    )


def _fields(data: bytes) -> dict[int, int | bytes]:
    """The fields of a protocol buffer message by number (the last one, where one repeats)."""
    return dict(_message(data))


def message_parts(data: bytes, number: int) -> list[bytes]:
    """All values of a field that holds messages."""
    return [value for field, value in _message(data) if field == number]


def _message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values. Source: https://protobuf.dev/programming-guides/encoding."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
        elif kind == 2:
            length, position = _varint(data, position)
            value = data[position : position + length]
            position += length
        elif kind == 5:
            (value,) = struct.unpack_from("<I", data, position)
            position += 4
        else:
            raise KeyError(f"wire type {kind}")
        yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """One variable-length integer and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _texts(data: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, bytes]:
    """The texts, and the bytes that their CRC covers.

    Texts are stored as all lengths, a checksum of those, then all bytes. The CRC covers the same, but with
    each length as four bytes (eight for texts of 4 GiB, which are not supported).
    Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, `WriteStringTensor`.
    """
    count = int(np.prod(shape, dtype=np.int64))
    position, lengths = 0, []
    for _ in range(count):
        length, position = _varint(data, position)
        lengths.append(length)
    summed = struct.pack(f"<{count}I", *lengths) + data[position:]
    position += 4
    texts = np.empty(count, dtype=object)
    for i, length in enumerate(lengths):
        texts[i] = data[position : position + length]
        position += length
    return texts.reshape(shape), summed
