"""How the reader interprets the TensorFlow operations that a detector may hold. Anything else is rejected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dalle_ppo.models.heads.keras.graph_joins import join, select
from dalle_ppo.models.heads.keras.graph_values import Column, Handle, Stream, encode
from dalle_ppo.models.heads.keras.keras_files import LARGEST_BYTES

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
    "Square": "square",
    "Rsqrt": "rsqrt",
    "Abs": "abs",
    "Round": "round",
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
# Numbers of TensorFlow's data types (tensorflow/core/framework/types.proto).
_FLOAT, _INT32, _INT8, _BFLOAT16, _HALF = 1, 3, 6, 14, 19
_ROUNDED = {_HALF: "float16", _BFLOAT16: "bfloat16", _INT8: "int8"}
_LARGEST_ITEM = 8  # bytes, of float64 and int64
_PRODUCTS = {"MatMul": ("T",), "BatchMatMulV2": ("T",), "BatchMatMulV3": ("Ta", "Tb")}


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
        check_size(node, np.broadcast_shapes(*(numbers.shape for numbers in inputs)))
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
        raise refusal(node, "not supported in a detector; a .keras or .h5 file of the model may convert")
    return result if isinstance(result, list) else [result]


def check_size(node: Any, shape: Iterable[int], itemsize: int = _LARGEST_ITEM) -> None:
    """Refuses numbers that no head has, before they are made: a few bytes of a graph can stand for gigabytes.

    Raises:
        ValueError: there are too many.
    """
    sizes = list(shape)
    if min(sizes, default=0) < 0 or math.prod(sizes) * itemsize > LARGEST_BYTES:
        raise refusal(node, f"makes an array of shape {str(sizes)[:80]}, above {LARGEST_BYTES:,} bytes")


def refusal(node: Any, reason: str = "not supported in a detector") -> ValueError:
    """The error for a node, naming operation and node."""
    return ValueError(f"operation {node.op} ({node.name}): {reason}")


def rounding_of(nodes: Iterable[Any]) -> str:
    """What matrix products are rounded to: "float16", "bfloat16", "int8" or, for float32, ""."""
    types = {node.attr[key].type for node in nodes for key in _PRODUCTS.get(node.op, ())}
    return next((_ROUNDED[type_] for type_ in (_INT8, _BFLOAT16, _HALF) if type_ in types), "")


def _matmul(node: Any, stream: Stream, kernel: np.ndarray) -> Stream:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    if transposed or kernel.ndim != 2:
        raise refusal(node)
    return stream.then("dense", kernel.T if node.attr["transpose_b"].b or node.attr["adj_y"].b else kernel)


def _reduce(kind: str) -> Callable[[Any, Stream, np.ndarray], Stream]:
    def reduce(node: Any, stream: Stream, axis: np.ndarray) -> Stream:
        if axis.size != 1 or int(axis.ravel()[0]) not in (-1, 1) or not node.attr["keep_dims"].b:
            raise refusal(node)
        return stream.then(kind)

    return reduce


def _cast_stream(node: Any, stream: Stream) -> Stream:
    """To float32 or less: the detector computes in float32. Whole numbers are those of an int8 layer."""
    to = node.attr["DstT"].type
    whole = sum(step.kind == "cast" for step in stream.steps) % 2 == 1
    if to == _INT8 or (whole and to == _FLOAT):
        return stream.then("cast")
    if to not in ((_INT8, _INT32) if whole else (_FLOAT, _HALF, _BFLOAT16)):
        raise refusal(node, "computes in a number format other than float32")
    return stream


def _cast_numbers(node: Any, numbers: np.ndarray) -> np.ndarray:
    from tensorboard.compat.tensorflow_stub import dtypes

    check_size(node, numbers.shape)
    to = node.attr["DstT"].type
    if numbers.dtype == np.float32 and to in (_HALF, _BFLOAT16):
        return numbers  # weights of a model with mixed precision keep what they have
    return numbers.astype(dtypes.as_dtype(to).as_numpy_dtype)


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
    if handle.content.dtype == np.float16:
        raise refusal(node, f"variable {handle.name} is float16: only float32 weights are supported")
    return handle.content


_HANDLERS: dict[tuple[str, ...], Callable[..., Any]] = {
    ("MatMul", "Stream", "ndarray"): _matmul,
    ("BatchMatMulV2", "Stream", "ndarray"): _matmul,
    ("BatchMatMulV3", "Stream", "ndarray"): _matmul,
    ("Sum", "Stream", "ndarray"): _reduce("sum"),
    ("Mean", "Stream", "ndarray"): _reduce("mean"),
    ("Max", "Stream", "ndarray"): _reduce("max"),
    ("Minimum", "Stream", "ndarray"): lambda node, x, c: x.then("minimum", c),
    ("Maximum", "Stream", "ndarray"): lambda node, x, c: x.then("maximum", c),
    ("RealDiv", "ndarray", "Stream"): lambda node, c, x: x.then("over", c),
    ("Reshape", "ndarray", "ndarray"): lambda node, numbers, shape: numbers.reshape(shape),
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
