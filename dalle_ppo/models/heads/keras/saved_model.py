"""Reads a TensorFlow SavedModel into layers, without TensorFlow.

The graph is followed symbolically, as TensorFlow would run it: first what restores variables and tables from
the checkpoint, then what fills tables with constants, then the serving function from its input to its output.
Functions are entered where they are called. Numbers are computed, and what depends on the input becomes the
chain of layers. The protocol buffers are those that come with TensorBoard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef
from tensorboard.compat.tensorflow_stub import dtypes
from tensorboard.util.tensor_util import make_ndarray

from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.heads.keras.chain import Chain, check_width
from dalle_ppo.models.heads.keras.graph_operations import apply, check_size, refusal, rounding_of
from dalle_ppo.models.heads.keras.graph_values import Handle, Stream, to_layers
from dalle_ppo.models.heads.keras.keras_files import LARGEST_BYTES
from dalle_ppo.models.heads.keras.tensor_bundle import TensorBundle, message_parts

_INITIALISER = "__saved_model_init_op"
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_TABLES = {"HashTableV2", "MutableHashTableV2"}
_MAX_DEPTH = 50


def read_saved_model(path: Path) -> Chain:
    """Read a SavedModel folder.

    Raises:
        ValueError: it is not a SavedModel, or the model is not a chain of known layers.
    """
    graph = read_graph(path)
    reader = _Reader(graph, TensorBundle(path / "variables" / "variables"))
    reader.restore()
    name, signature = _serving_signature(path, graph)
    (source,), (target,) = signature.inputs.values(), signature.outputs.values()
    output = reader.top.value(target.name)
    if not isinstance(output, Stream):
        raise ValueError(f"{path}: the output of {name} does not depend on its input")
    shape = [dim.size for dim in source.tensor_shape.dim]
    if len(shape) != 2:
        raise ValueError(f"{path}: {name} takes shape {shape}, needs [batch, width]")
    dimension = shape[1] if shape[1] > 0 else _first_width(output)
    check_width(dimension)
    nodes = [node for function in graph.graph_def.library.function for node in function.node_def]
    return Chain(to_layers(output.steps, dimension), dimension, rounding_of(nodes))


def read_graph(path: Path) -> MetaGraphDef:
    """The graph of a SavedModel folder: the one tagged `serve`.

    Source: tensorflow/core/protobuf/saved_model.proto (field 2 holds the graphs).
    """
    file = path / "saved_model.pb"
    if not file.is_file():
        raise ValueError(f"{path}: holds no saved_model.pb, so it is not a SavedModel")
    try:
        graphs = [MetaGraphDef.FromString(part) for part in message_parts(file.read_bytes(), 2)]
    except (DecodeError, IndexError, KeyError) as error:
        raise ValueError(f"{file}: damaged ({one_line(error)})") from None
    serving = [graph for graph in graphs if "serve" in graph.meta_info_def.tags]
    if len(serving) != 1:
        raise ValueError(f"{file}: holds {len(serving)} graphs tagged 'serve', needs one")
    return serving[0]


def _serving_signature(path: Path, graph: MetaGraphDef) -> tuple[str, Any]:
    """The signature that predicts."""
    signatures = {k: s for k, s in graph.signature_def.items() if k != _INITIALISER}
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if name is None:
        raise ValueError(f"{path}: has no serving signature")
    signature = signatures[name]
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        counts = f"{len(signature.inputs)} inputs and {len(signature.outputs)} outputs"
        raise ValueError(f"{path}: {name} has {counts}, needs one of each")
    return name, signature


def _first_width(output: Stream) -> int:
    """Width of the input, where the signature leaves it open."""
    for step in output.steps:
        if step.kind == "dense":
            return step.numbers.shape[0]
    raise ValueError("the model does not state the width of its input")


class _Reader:
    """One graph with its functions, its variables' values, and the outermost scope."""

    def __init__(self, graph: MetaGraphDef, bundle: TensorBundle) -> None:
        self.graph = graph
        self.bundle = bundle
        self.functions = {f.signature.name: f for f in graph.graph_def.library.function}
        self.held: dict[int, np.ndarray] = {}
        self.held_bytes = 0
        self.top = _Scope(self, {node.name: node for node in graph.graph_def.node}, {}, 0)

    def restore(self) -> None:
        """Put the checkpoint's numbers into variables and tables, then run the tables' initialisers."""
        saver = self.graph.saver_def
        self.top.run(saver.filename_tensor_name, np.array(b"", dtype=object))
        self.top.value(saver.restore_op_name)
        if _INITIALISER in self.graph.signature_def:
            for output in self.graph.signature_def[_INITIALISER].outputs.values():
                self.top.value(output.name)
        self._share_with_copied()

    def hold(self, node: Any, values: list[Any]) -> None:
        """Counts the numbers that a node made.

        Raises:
            ValueError: with them the graph holds more than any head.
        """
        for value in values:
            if isinstance(value, np.ndarray) and id(value) not in self.held:
                self.held[id(value)] = value  # kept, so that no other array gets its id
                self.held_bytes += value.nbytes
        if self.held_bytes > LARGEST_BYTES:
            raise refusal(node, f"makes more numbers than {LARGEST_BYTES:,} bytes with those before it")

    def _share_with_copied(self) -> None:
        """A Keras 3 model saved by `tf.saved_model.save` restores copies of variables but computes with the
        originals, which initialise the copies: give the originals the copies' content."""
        for node in self.graph.graph_def.node:
            if node.op != "AssignVariableOp":
                continue
            initial = self.top.nodes[_node_name(node.input[1])]
            if initial.op == "ReadVariableOp":
                copy, original = self.top.value(node.input[0]), self.top.value(initial.input[0])
                if original.content is None:
                    original.content = copy.content


class _Scope:
    """The nodes of one graph or function call, and the values found so far."""

    def __init__(
        self, reader: _Reader, nodes: Mapping[str, Any], values: dict[str, list[Any]], depth: int
    ) -> None:
        self.reader, self.nodes, self.values, self.depth = reader, nodes, values, depth

    def run(self, tensor: str, value: Any) -> None:
        """Set the value of a placeholder."""
        self.values[_node_name(tensor)] = [value]

    def value(self, tensor: str) -> Any:
        """The value of a tensor such as `node:0` or, inside functions, `node:output:0`."""
        wanted = [_node_name(tensor)]
        while wanted:
            name = wanted[-1]
            if name in self.values:
                wanted.pop()
                continue
            if name not in self.nodes:
                raise ValueError(f"the graph refers to {name!r}, which it does not hold")
            node = self.nodes[name]
            missing = [_node_name(i) for i in node.input if _node_name(i) not in self.values]
            if not missing:
                self.values[name] = self._evaluate(node)
                self.reader.hold(node, self.values[name])
            elif len(wanted) > len(self.nodes):
                raise ValueError(f"the graph has a cycle through {name!r}")
            else:
                wanted.extend(missing)
        outputs = self.values[_node_name(tensor)]
        index = tensor.rpartition(":")[2] if ":" in tensor else "0"
        return outputs[int(index)] if outputs else None

    def _evaluate(self, node: Any) -> list[Any]:
        """The outputs of a node whose inputs are known. Control inputs have run by then."""
        if node.op == "Placeholder":
            return [Stream()]
        if node.op == "Const":
            return [_constant(node)]
        if node.op == "VarHandleOp" or node.op in _TABLES:
            return [Handle(node.name)]
        inputs = [self.value(name) for name in node.input if not name.startswith("^")]
        if node.op in _CALLS:
            return self._call(node, inputs)
        if node.op == "RestoreV2":
            names, slices = (list(values.ravel()) for values in inputs[1:])
            if any(slices):
                raise refusal(node, "restores parts of tensors")
            # The list may name a tensor many times; it is read once.
            found = {name: self.reader.bundle.read(name.decode()) for name in dict.fromkeys(names)}
            return [found[name] for name in names]
        return apply(node, inputs)

    def _call(self, node: Any, inputs: list[Any]) -> list[Any]:
        function = self.reader.functions.get(node.attr["f"].func.name)
        if function is None or self.depth > _MAX_DEPTH:
            raise refusal(node, "calls a function that the graph does not hold, or nests calls too deeply")
        names = [argument.name for argument in function.signature.input_arg]
        values = {name: [value] for name, value in zip(names, inputs, strict=True)}
        scope = _Scope(self.reader, {n.name: n for n in function.node_def}, values, self.depth + 1)
        outputs = [scope.value(function.ret[out.name]) for out in function.signature.output_arg]
        for name in function.control_ret.values():
            scope.value(name)
        return outputs


def _constant(node: Any) -> np.ndarray:
    """The numbers of a constant; where all are equal, the graph holds one and the shape."""
    tensor = node.attr["value"].tensor
    itemsize = np.dtype(dtypes.as_dtype(tensor.dtype).as_numpy_dtype).itemsize
    check_size(node, (dim.size for dim in tensor.tensor_shape.dim), itemsize)
    return make_ndarray(tensor)


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
