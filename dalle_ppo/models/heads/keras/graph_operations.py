"""How the reader interprets the TensorFlow operations that a detector may hold. Anything else is rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dalle_ppo.models.heads.keras.graph_values import Column, Handle, Stream, encode, join, select

# Operations where only the kind matters: TensorFlow's name -> ours.
_ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Elu": "elu",
    "Selu": "selu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Exp": "exponential",
    "Softmax": "softmax",
    "Erf": "erf",
    "Erfc": "erfc",
    "Neg": "neg",
}
_ON_NUMBERS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Maximum": np.maximum,
    "Sqrt": np.sqrt,
    "Rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "Neg": np.negative,
}
_PASS = {"Identity", "IdentityN", "StopGradient", "PreventGradient", "NoOp", "DisableCopyOnRead"}
_FLOAT, _DOUBLE = 1, 2


def apply(node: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of one node.

    Args:
        node: the NodeDef.
        inputs: its data inputs: arrays, streams, handles, columns.

    Raises:
        ValueError: the operation, or this use of it, is not known; names it.
    """
    if node.op in _PASS:
        return inputs
    kinds = tuple("ndarray" if isinstance(v, np.generic) else type(v).__name__ for v in inputs)
    if all(kind == "ndarray" for kind in kinds) and node.op in _ON_NUMBERS:
        return [_ON_NUMBERS[node.op](*inputs)]
    handler = _HANDLERS.get((node.op, *kinds))
    if handler is not None:
        result = handler(node, *inputs)
    elif kinds == ("Stream",) and node.op in _ACTIVATIONS:
        result = inputs[0].then(_ACTIVATIONS[node.op])
    elif kinds == ("Stream", "Stream"):
        result = join(node.op, node.name, *inputs)
    elif node.op == "ConcatV2" and all(kind == "Column" for kind in kinds[:-1]) and len(inputs) > 1:
        if int(inputs[-1]) not in (-1, 1):
            raise refusal(node)
        result = encode(inputs[:-1], node.name)
    else:
        raise refusal(node)
    return result if isinstance(result, list) else [result]


def refusal(node: Any, reason: str = "not supported in a detector") -> ValueError:
    """The error for a node, naming operation and node."""
    return ValueError(f"operation {node.op} ({node.name}): {reason}")


def _matmul(node: Any, stream: Stream, kernel: np.ndarray) -> Stream:
    if node.attr["transpose_a"].b or kernel.ndim != 2:
        raise refusal(node)
    return stream.then("dense", kernel.T if node.attr["transpose_b"].b else kernel)


def _cast_stream(node: Any, stream: Stream) -> Stream:
    """Only the input may be rounded to float32: the detector does that itself."""
    if node.attr["DstT"].type != _FLOAT or stream.steps:
        raise refusal(node, "computes in a number format other than float32")
    return stream


def _cast_numbers(node: Any, numbers: np.ndarray) -> np.ndarray:
    from tensorboard.compat.tensorflow_stub import dtypes

    return numbers.astype(dtypes.as_dtype(node.attr["DstT"].type).as_numpy_dtype)


def _leaky_relu(node: Any, stream: Stream) -> Stream:
    slope = node.attr["alpha"].f if "alpha" in node.attr else 0.2
    return stream.then("leaky_relu", negative_slope=slope)


def _split(node: Any, stream: Stream, sizes: np.ndarray, axis: np.ndarray) -> list[Column]:
    if int(axis) not in (-1, 1) or np.any(sizes != 1) or stream.steps:
        raise refusal(node, "only the input split into single columns is supported")
    return [Column(stream, i) for i in range(len(sizes))]


def _raw(form: str) -> Callable[[Any, Column], Column]:
    def change(node: Any, column: Column) -> Column:
        if column.form != "raw":
            raise refusal(node)
        return Column(column.source, column.position, form)

    return change


def _select(node: Any, condition: Column, yes: Column, no: Column) -> Column:
    """where(isnan(x), 0, x)."""
    same = {(column.source, column.position) for column in (condition, yes, no)}
    if len(same) != 1 or (condition.form, yes.form, no.form) != ("is_nan", "zeros", "raw"):
        raise refusal(node)
    return Column(no.source, no.position, "number")


def _as_string(node: Any, column: Column) -> Column:
    a = node.attr
    plain = not (a["scientific"].b or a["shortest"].b or a["fill"].s)
    precision = a["precision"].i if "precision" in a else -1
    width = a["width"].i if "width" in a else -1
    if column.form != "raw" or not plain or precision not in (-1, 6) or width != -1 or a["T"].type != _FLOAT:
        raise refusal(node, "only float32 as text with six decimals is supported")
    return Column(column.source, column.position, "text")


def _lookup(node: Any, table: Handle, column: Column, default: np.ndarray) -> Column:
    if column.form != "text" or np.any(default != 0):
        raise refusal(node, "only texts of numbers can be looked up, with 0 for unknown ones")
    return Column(column.source, column.position, "looked up", table)


def _cast_column(node: Any, column: Column) -> Column:
    if column.form != "looked up" or node.attr["DstT"].type != _FLOAT:
        raise refusal(node)
    return Column(column.source, column.position, "index", column.table)


def _fill(node: Any, handle: Handle, *content: np.ndarray) -> list[Any]:
    """Fill a table or variable; a later, empty import of a table leaves it as it is."""
    handle.content = content[0] if len(content) == 1 else content
    return []


def _read(node: Any, handle: Handle) -> np.ndarray:
    if not isinstance(handle.content, np.ndarray | np.generic):
        raise refusal(node, f"variable {handle.name} has no value in the file")
    return handle.content


_HANDLERS: dict[tuple[str, ...], Callable[..., Any]] = {
    ("MatMul", "Stream", "ndarray"): _matmul,
    ("BiasAdd", "Stream", "ndarray"): lambda node, x, c: x.then("add", c),
    ("Add", "Stream", "ndarray"): lambda node, x, c: x.then("add", c),
    ("AddV2", "Stream", "ndarray"): lambda node, x, c: x.then("add", c),
    ("Add", "ndarray", "Stream"): lambda node, c, x: x.then("add", c),
    ("AddV2", "ndarray", "Stream"): lambda node, c, x: x.then("add", c),
    ("Sub", "Stream", "ndarray"): lambda node, x, c: x.then("sub", c),
    ("Mul", "Stream", "ndarray"): lambda node, x, c: x.then("mul", c),
    ("Mul", "ndarray", "Stream"): lambda node, c, x: x.then("mul", c),
    ("RealDiv", "Stream", "ndarray"): lambda node, x, c: x.then("div", c),
    ("LeakyRelu", "Stream"): _leaky_relu,
    ("Cast", "Stream"): _cast_stream,
    ("Cast", "ndarray"): _cast_numbers,
    ("Cast", "Column"): _cast_column,
    ("SplitV", "Stream", "ndarray", "ndarray"): _split,
    ("Greater", "Stream", "ndarray"): lambda node, x, c: x.then("greater", c),
    ("SelectV2", "Stream", "Stream", "Stream"): lambda node, *streams: select(node.name, *streams),
    ("IsNan", "Column"): _raw("is_nan"),
    ("ZerosLike", "Column"): _raw("zeros"),
    ("SelectV2", "Column", "Column", "Column"): _select,
    ("AsString", "Column"): _as_string,
    ("LookupTableFindV2", "Handle", "Column", "ndarray"): _lookup,
    ("LookupTableImportV2", "Handle", "ndarray", "ndarray"): _fill,
    ("AssignVariableOp", "Handle", "ndarray"): _fill,
    ("ReadVariableOp", "Handle"): _read,
}
