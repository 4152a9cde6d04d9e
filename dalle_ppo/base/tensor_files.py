"""Writes files of tensors, and reads them back.

A disk that fails is an OSError, as with every other file; a damaged file is a ValueError.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dalle_ppo.base.one_line import one_line

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(
    tensors: Mapping[str, "Tensor"], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors by name as a safetensors file.

    Args:
        tensors: contiguous, and none shares memory with another.
        path: of the file.
        metadata: text that is kept beside them.

    Raises:
        OSError: the disk is full, the folder is gone, or the file cannot be written otherwise.

    Differs: `save_file` of safetensors 0.8.0 raises SafetensorError then, which is no OSError and is not one
        of the errors that commands tell in one line.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensor_file(path: str | Path) -> dict[str, "Tensor"]:
    """Reads a safetensors file to the CPU.

    Args:
        path: of the file.

    Returns:
        Tensors by name.

    Raises:
        ValueError: it is no safetensors file, or damaged; names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as tensors ({one_line(error)}); use another") from error


def save_state_dict(tensors: Mapping[str, "Tensor"], path: str | Path) -> None:
    """Writes tensors by name as `torch.save` does.

    Args:
        tensors: by name.
        path: of the file.

    Raises:
        OSError: the disk is full, the folder is gone, or the file cannot be written otherwise.

    Differs: `torch.save` of torch 2.14.1 hides that behind a RuntimeError about positions in the file.
    """
    import torch

    with Path(path).open("wb") as file:
        try:
            torch.save(dict(tensors), file)
        except RuntimeError as error:
            if not isinstance(error.__context__, OSError):
                raise
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
