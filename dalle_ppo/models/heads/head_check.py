"""Checks a head's layers before they are built: a file from a stranger may describe anything."""

from __future__ import annotations

import torch

from dalle_ppo.models.heads.head_layers import LayerSpec, build_layers

MAX_TABLE = 4_000_000
"""Entries of all category tables of a layer; LAION's largest has some thousands."""
TABLES = ("lower", "upper", "index")


def check_chain(specs: list[LayerSpec], width: int) -> None:
    """Runs the layers once on a row of zeros, after a look at their tables.

    Args:
        specs: the layers as read from a file.
        width: how many numbers the first layer reads, as the file promises.

    Raises:
        ValueError: a layer is unknown, a table too large or not a table, or the shapes do not fit together.
    """
    for position, spec in enumerate(specs):
        if spec.type == "category_encoding":
            _check_tables(position, spec, width)
        if not all(tensor.numel() for tensor in spec.tensors.values()):
            raise ValueError(f"layer {position} is {spec.describe()[:200]}: a tensor is empty")
    layers = build_layers(specs)
    try:
        with torch.no_grad():
            found = layers(torch.zeros(8, width))
    except Exception as error:  # torch fails in many ways on tensors that do not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"its layers do not fit together or the embedding ({reason})") from None
    if not torch.is_tensor(found) or found.ndim != 2 or found.shape[0] != 8 or found.shape[1] < 1:
        raise ValueError(f"its layers turn 8 embeddings into shape {list(found.shape)}, not [8, 1]")


def _check_tables(position: int, spec: LayerSpec, dimension: int) -> None:
    columns, tables = spec.tensors.get("columns"), [spec.tensors.get(name) for name in TABLES]
    if columns is None or any(table is None or table.ndim != 2 for table in tables):
        raise ValueError(f"layer {position} is {spec.describe()[:200]}: it lacks columns or tables")
    if any(table.shape != tables[0].shape or len(table) != len(columns) for table in tables):
        raise ValueError(f"layer {position} is {spec.describe()[:200]}: its tables differ in shape")
    if tables[0].numel() > MAX_TABLE:
        raise ValueError(f"layer {position} has tables of {tables[0].numel()} entries, at most {MAX_TABLE}")
    if columns.dtype != torch.int64 or columns.min() < 0 or columns.max() >= dimension:
        raise ValueError(f"layer {position}: its columns are not among the {dimension} of the embedding")
