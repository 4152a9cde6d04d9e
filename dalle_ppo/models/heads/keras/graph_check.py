"""Checks every operation of a SavedModel before TensorFlow is allowed to load it.

A SavedModel is a program: TensorFlow runs parts of it on loading, and operations can read and write files or
call Python. A model with an operation that is not on the list below is not loaded.
Source: https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef

# Arithmetic and shapes, also for training and `adapt`; tables whose content is in the graph or the
# checkpoint (not `InitializeTableFromTextFileV2`); saving and restoring, see below.
_ALLOWED = """
Abs Add AddN AddV2 All Any ArgMax AsString AssignAddVariableOp AssignSubVariableOp AssignVariableOp
BatchMatMulV2 BatchMatMulV3 BiasAdd BroadcastTo Cast ClipByValue ConcatV2 Const DisableCopyOnRead Elu
Equal Erf Erfc Exp ExpandDims Fill FusedBatchNormV3 GatherV2 Greater GreaterEqual HashTableV2 Identity
IdentityN IsFinite IsNan IteratorGetNext LeakyRelu Less LessEqual Log Log1p LogicalAnd LogicalNot
LogicalOr LookupTableExportV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableSizeV2
MatMul Max Maximum Mean MergeV2Checkpoints Minimum Mul MutableHashTableV2 Neg NoOp NotEqual OnesLike Pack
PartitionedCall Placeholder Pow PreventGradient Prod RandomUniform Range ReadVariableOp RealDiv
Reciprocal Relu Relu6 Reshape RestoreV2 Round Rsqrt SaveV2 Select SelectV2 Selu Shape ShardedFilename
Sigmoid Slice Softmax Softplus Softsign Split SplitV Sqrt Square SquaredDifference Squeeze
StatefulPartitionedCall StatelessRandomGetKeyCounter StatelessRandomUniformV2 StaticRegexFullMatch
StopGradient StridedSlice StringJoin Sub Sum Tanh Tile Transpose UniqueWithCounts Unpack VarHandleOp
VarIsInitializedOp Where ZerosLike
"""
ALLOWED = frozenset(_ALLOWED.split())
# Every SavedModel holds these for its own saving and restoring; nothing else may call them.
SAVING = frozenset({"MergeV2Checkpoints", "SaveV2", "ShardedFilename"})
RESTORING = frozenset({"RestoreV2"})

Functions = Mapping[str, Sequence[Any]]


def check_operations(graph: MetaGraphDef) -> None:
    """Reject a graph with operations that are not on the list, or that touch files outside the saver.

    Only the saver's saving may write: its restoring runs when a model is loaded.

    Raises:
        ValueError: an operation is not allowed; names it, the node and where it is.
    """
    functions = {f.signature.name: list(f.node_def) for f in graph.graph_def.library.function}
    nodes = {"graph": list(graph.graph_def.node), **functions}
    for place, members in nodes.items():
        for node in members:
            if node.op not in ALLOWED:
                raise ValueError(f"operation {node.op} ({node.name} in {place}) is not allowed: not loaded")
    restore = _node_name(graph.saver_def.restore_op_name)
    save = _node_name(graph.saver_def.save_tensor_name)
    parts: dict[str, list[Any]] = {save: [], restore: []}
    others = [node for name in graph.object_graph_def.concrete_functions for node in functions.get(name, ())]
    for node in graph.graph_def.node:
        parts.get(node.name, others).append(node)
    _check_files(others, functions, frozenset(), "outside the saver")
    _check_files(parts[restore], functions, RESTORING, "in the saver's restoring")
    if save != restore:
        _check_files(parts[save], functions, SAVING, "in the saver's saving")


def _check_files(nodes: Iterable[Any], functions: Functions, allowed: frozenset[str], place: str) -> None:
    """Reject file operations other than those allowed, in these nodes and in everything they call."""
    waiting, called = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node.op in (SAVING | RESTORING) - allowed:
            raise ValueError(f"operation {node.op} ({node.name}) is {place}: not loaded")
        for name in _called(node) - called:
            called.add(name)
            waiting += functions.get(name, ())


def _called(node: Any) -> set[str]:
    """Names of the functions that a node refers to."""
    names = set()
    for value in node.attr.values():
        names |= {value.func.name} if value.HasField("func") else {f.name for f in value.list.func}
    return names


def _node_name(tensor: str) -> str:
    return tensor.partition(":")[0]
