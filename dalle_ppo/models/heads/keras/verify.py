"""Compares the converted model with the original one run in TensorFlow. Needs TensorFlow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import CategoryEncoding, ordered_bits
from dalle_ppo.models.heads.keras.convert import format_of, read_model, reading, unpacked
from dalle_ppo.models.heads.keras.endings import AS_IT_IS, Ending
from dalle_ppo.models.heads.keras.graph_check import check_operations
from dalle_ppo.models.heads.keras.saved_model import read_graph
from dalle_ppo.models.heads.nsfw import EmbeddingHead, load_head

TOLERANCE = 1e-6
# For originals that round what they compute; the converted model does not.
ROUNDED_TOLERANCE = {"float16": 0.01, "bfloat16": 0.05, "int8": 0.1}
NUM_EMBEDDINGS = 2048

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Largest absolute difference between original and converted model on one kind of embeddings."""

    embeddings: str
    num_embeddings: int
    largest: float


def tolerance(rounding: str) -> float:
    """The largest difference that passes, for an original that rounds to this; "" is float32."""
    return ROUNDED_TOLERANCE.get(rounding, TOLERANCE)


def verify(
    source: str | Path, converted: str | Path, *, ending: Ending = AS_IT_IS, seed: int = 0
) -> list[Comparison]:
    """Compare the original with the converted model on random embeddings of length 1.

    Args:
        source: the original, as given to `convert`.
        converted: the file that `convert` wrote.
        ending: as given to `convert`.
        seed: seed of the embeddings.

    Returns:
        One comparison for float32 embeddings, one for those that float16 can represent, and, if there are
        category tables, one for embeddings whose categorical columns are all entries of the tables.

    Raises:
        ValueError: TensorFlow is missing, or the original holds something that is not safe to load.
    """
    head = load_head(converted)
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(NUM_EMBEDDINGS, head.info.dimension))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    kinds = {"float32": embeddings, "float16-representable": embeddings.astype(np.float16).astype(np.float32)}
    if isinstance(head.layers[0], CategoryEncoding) and len(head.layers[0].columns):
        kinds["entries of the tables"] = _table_entries(head.layers[0], embeddings, generator)
    with unpacked(Path(source)) as model:
        predict = load_original(model, ending)
        results = []
        for kind, batch in kinds.items():
            difference = np.abs(predict(batch) - _predict(head, batch))
            results.append(Comparison(kind, len(batch), float(difference.max())))
    return results


def load_original(model: Path, ending: Ending = AS_IT_IS) -> Predict:
    """Load the original into TensorFlow, after checking what it holds.

    Args:
        model: a SavedModel folder, a `.keras` or an `.h5` file.
        ending: how its outputs become one number.

    Returns:
        A function from embeddings [B, D] float32 to [B] float32.

    Raises:
        ValueError: TensorFlow is missing or cannot load it, or it holds something that is not safe to load.
    """
    with reading(Path(model.name)):
        read_model(model)
        if model.is_dir():
            check_operations(read_graph(model))
    tensorflow = _tensorflow()
    try:
        if not model.is_dir():
            predict = _keras_model(tensorflow, model)
        else:
            predict = _serving_function(tensorflow, model)
    except Exception as error:  # TensorFlow and Keras raise all kinds of exceptions
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model.name}: this TensorFlow cannot load it ({reason})") from error
    return lambda batch: ending.of_outputs(predict(batch).astype(np.float32))


def _keras_model(tensorflow: object, model: Path) -> Predict:
    keras = tensorflow.keras
    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the name, we by the content: it must read what was checked.
        named = shutil.copyfile(model, Path(folder, f"model{format_of(model)}"))
        loaded = keras.models.load_model(str(named), compile=False, safe_mode=True)
    return lambda batch: np.asarray(loaded(batch, training=False))


def _serving_function(tensorflow: object, model: Path) -> Predict:
    loaded = tensorflow.saved_model.load(str(model))
    signatures = loaded.signatures
    function = signatures["serving_default" if "serving_default" in signatures else next(iter(signatures))]
    ((name, spec),) = function.structured_input_signature[1].items()

    def predict(batch: np.ndarray) -> np.ndarray:
        outputs = function(**{name: tensorflow.cast(batch, spec.dtype)})
        return next(iter(outputs.values())).numpy()

    predict.owner = loaded  # the function's variables live as long as the loaded model
    return predict


def _tensorflow() -> object:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError:
        raise ValueError("--verify needs TensorFlow: pip install -e '.[convert]'") from None
    return tensorflow


def _predict(head: EmbeddingHead, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return head(torch.from_numpy(batch)).numpy()


def _table_entries(layer: CategoryEncoding, batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The batch with each categorical column drawn from the numbers its table knows."""
    batch = batch.copy()
    for k, column in enumerate(layer.columns.tolist()):
        known = layer.lower[k][layer.index[k] != 0]
        bits = ordered_bits(known.view(torch.float32)).numpy()  # the mapping is its own inverse
        values = bits.view(np.float32)
        values = values[np.isfinite(values)]
        if len(values):
            batch[:, column] = generator.choice(values, size=len(batch))
    return batch
