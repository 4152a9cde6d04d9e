"""Reads the weights of a TorchScript archive without running its code.

`torch.jit.load` runs what the archive's classes define as `__setstate__`, and TorchScript can write files: so
a stranger's archive could do so while it loads. Here only tensors are read, and names looked up in its text.
Source: torch/csrc/jit/serialization/import.cpp (`__setstate__`) and pickler.cpp (what stands in data.pkl).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.base.archives import check_unpacked
from dalle_ppo.base.one_line import one_line

LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
PARAMETERS = re.compile(r"__(?:parameters|buffers)__ = \[([^\]]*)\]")
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""What torch calls the storage of each kind of numbers."""
CLASS = re.compile(r"^class (\w+)\(Module\):\n", re.MULTILINE)


class _Module:
    """Stands for an object of any class of the archive; holds its attributes and runs nothing."""

    kind = ""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an object restores itself with code of its own")
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain objects only.

    A pickle may change attributes of what it names, so it gets nothing that others use.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Module,), {"kind": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *given: _tensor(*given)
        if (module, name) == ("collections", "OrderedDict"):
            return type(name, (OrderedDict,), {})
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        if module == "torch" and name in STORAGES:
            return type(name, (), {"dtype": STORAGES[name]})
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, key: tuple) -> Tensor:
        """The numbers of a storage, read once however many tensors share it."""
        _, storage_type, name, _, count = key
        if name not in self.storages:
            self.storages[name] = self._read_storage(name, storage_type.dtype, count)
        found = self.storages[name]
        if (found.dtype, len(found)) != (storage_type.dtype, count):
            raise pickle.UnpicklingError(
                f"storage {name} holds {count} numbers of one kind here, others elsewhere"
            )
        return found

    def _read_storage(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        entry = self.archive.getinfo(f"{self.root}/data/{name}")
        if entry.file_size != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {name} has {entry.file_size} bytes for {count} numbers")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"storage {name} is compressed")
        data = bytearray(self.archive.read(entry))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(numbers: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """Refuses what would reach beyond the storage, which torch would enlarge."""
    counts = [offset, *size, *stride]
    if any(count < 0 for count in counts):
        raise pickle.UnpicklingError(f"a tensor has shape {size} and strides {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(numbers):
        raise pickle.UnpicklingError(f"a tensor of shape {size} is larger than its storage")
    return numbers.as_strided(size, stride, offset)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive by dotted name, as its `state_dict` names them.

    Raises:
        ValueError: it is damaged, or holds more than a module of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(archive, path)
            root = archive.namelist()[0].partition("/")[0]
            module = _Unpickler(archive, root).load()
            names = _weight_names(archive)
        if not isinstance(module, _Module):
            raise pickle.UnpicklingError("it holds no module")
        return dict(_weights(module, names))
    except Exception as error:  # a damaged file can make a reader fail anywhere
        raise ValueError(
            f"clip.pretrained {path} is not a TorchScript archive of weights ({one_line(error)}); download "
            "it again, or save its state_dict where you trust it and give that file"
        ) from None


def _weight_names(archive: zipfile.ZipFile) -> dict[str, set[str]]:
    """Names of the parameters and buffers of each class, from the text of its code."""
    found: dict[str, set[str]] = {}
    for entry in archive.namelist():
        if "/code/" not in entry or not entry.endswith(".py"):
            continue
        prefix = entry.partition("/code/")[2].removesuffix(".py").replace("/", ".")
        text = archive.read(entry).decode()
        starts = [*CLASS.finditer(text)]
        for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(text)], strict=True):
            lists = PARAMETERS.findall(text[start.end() : end])
            found[f"{prefix}.{start[1]}"] = {name for part in lists for name in re.findall(r'"(\w+)"', part)}
    return found


def _weights(module: _Module, names: dict[str, set[str]], place: str = "") -> Any:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _weights(value, names, f"{place}{name}.")
        elif isinstance(value, Tensor) and name in names.get(module.kind, ()):
            yield f"{place}{name}", value
