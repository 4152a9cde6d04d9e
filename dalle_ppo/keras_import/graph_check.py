"""Looks at every operation of a SavedModel before TensorFlow is allowed to load it.

A SavedModel is a program: TensorFlow runs parts of it on loading, and operations can read and write files or
call Python. What is not on the list below is not loaded.
Source: https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef

# Arithmetic and shapes, also of training and of `adapt`; tables whose content is in the graph or the
# checkpoint (not `InitializeTableFromTextFileV2`); saving and restoring, see FILES.
_ALLOWED = """
Add AddN AddV2 All Any ArgMax AsString AssignAddVariableOp AssignSubVariableOp AssignVariableOp BiasAdd
BroadcastTo Cast ClipByValue ConcatV2 Const DisableCopyOnRead Elu Equal Erf Erfc Exp ExpandDims Fill
FusedBatchNormV3 GatherV2 Greater GreaterEqual HashTableV2 Identity IdentityN IsFinite IsNan IteratorGetNext
LeakyRelu Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr LookupTableExportV2 LookupTableFindV2
LookupTableImportV2 LookupTableInsertV2 LookupTableSizeV2 MatMul Maximum Mean MergeV2Checkpoints Minimum Mul
MutableHashTableV2 Neg NoOp NotEqual OnesLike Pack PartitionedCall Placeholder Pow PreventGradient Prod
RandomUniform Range ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape RestoreV2 Rsqrt SaveV2 Select
SelectV2 Selu Shape ShardedFilename Sigmoid Slice Softmax Softplus Softsign Split SplitV Sqrt Square
SquaredDifference Squeeze StatefulPartitionedCall StatelessRandomGetKeyCounter StatelessRandomUniformV2
StaticRegexFullMatch StopGradient StridedSlice StringJoin Sub Sum Tanh Tile Transpose UniqueWithCounts
Unpack VarHandleOp VarIsInitializedOp Where ZerosLike
"""
ALLOWED = frozenset(_ALLOWED.split())
# Every SavedModel holds these for its own saving and restoring; nothing else may call them.
FILES = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"})


def check_operations(graph: MetaGraphDef) -> None:
    """Refuse a graph with operations that are not on the list, or that touch files outside the saver.

    Raises:
        ValueError: names the operation, the node and where it is.
    """
    functions = {f.signature.name: list(f.node_def) for f in graph.graph_def.library.function}
    nodes = {"graph": list(graph.graph_def.node), **functions}
    for place, members in nodes.items():
        for node in members:
            if node.op not in ALLOWED:
                raise ValueError(f"operation {node.op} ({node.name} in {place}) is not allowed: not loaded")
    saver = {_node_name(graph.saver_def.save_tensor_name), _node_name(graph.saver_def.restore_op_name)}
    outside = [node for node in graph.graph_def.node if node.name not in saver]
    reached = set(graph.object_graph_def.concrete_functions) | _called(outside)
    waiting = list(reached)
    while waiting:
        new = _called(functions.get(waiting.pop(), ())) - reached
        reached |= new
        waiting += new
    members = [*outside, *(node for name in reached for node in functions.get(name, ()))]
    for node in members:
        if node.op in FILES:
            raise ValueError(f"operation {node.op} ({node.name}) is outside the saver's own: not loaded")


def _called(nodes: Iterable[Any]) -> set[str]:
    """Names of the functions that some nodes refer to."""
    names = set()
    for node in nodes:
        for value in node.attr.values():
            names |= {value.func.name} if value.HasField("func") else {f.name for f in value.list.func}
    return names


def _node_name(tensor: str) -> str:
    return tensor.partition(":")[0]
