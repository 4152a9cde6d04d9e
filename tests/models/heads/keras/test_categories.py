"""Category tables: how `--verify` tries them, and models with tables of all kinds, built by TensorFlow."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dalle_ppo.models.heads.head_layers import build_layers
from dalle_ppo.models.heads.keras.categories import category_encoding
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.keras.graph_check import check_operations
from dalle_ppo.models.heads.keras.saved_model import read_graph
from dalle_ppo.models.heads.keras.verify import _table_entries
from dalle_ppo.models.heads.nsfw import load_detector

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow: pip install '.[convert]'"
)


@pytest.mark.parametrize("texts, finite", [("inf -inf nan", False), ("inf 0.500000 cat", True)])
def test_verifying_tries_the_finite_entries_of_a_table(texts, finite):
    keys = np.array([text.encode() for text in texts.split()], dtype=object)
    (layer,) = build_layers([category_encoding([1], [(keys, np.arange(1, 4))], ["table"])])
    batch = np.linspace(2, 3, 20, dtype=np.float32).reshape(10, 2)
    found = _table_entries(layer, batch, np.random.default_rng(0))
    assert np.array_equal(found[:, 0], batch[:, 0])
    if finite:
        assert {f"{number:f}" for number in found[:, 1]} == {"0.500000"}
    else:
        assert np.array_equal(found[:, 1], batch[:, 1])


# --- with TensorFlow

KINDS = ["keras", "constants", "checkpoint"]
_numbers = st.floats(-1, 1, width=16) | st.floats(-(2.0**-18), 2.0**-18, width=32)
_texts = _numbers.map(lambda number: f"{number:f}") | st.sampled_from(
    ["cat", "0.5", "inf", "-inf", "nan", "0.000000", "-0.000000", "0.007812"]
)
_tables = st.dictionaries(
    st.integers(0, 7),
    st.tuples(st.sampled_from(KINDS), st.lists(_texts, min_size=1, max_size=30, unique=True)),
    min_size=1,
    max_size=3,
)


def _lookup(kind: str, texts: list[str]) -> Any:
    """Keras' own layer, a table that the graph fills with constants, or one that the checkpoint fills."""
    import keras
    import tensorflow as tf

    if kind == "keras":
        return keras.layers.StringLookup(vocabulary=texts)
    keys, indices = tf.constant(texts), tf.range(1, len(texts) + 1, dtype=tf.int64)
    if kind == "constants":
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, indices), 0).lookup
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    table.insert(keys, indices)
    return table.lookup


def _category_model(width: int, tables: dict[int, tuple[str, list[str]]]) -> Any:
    """A detector whose first layer computes what AutoKeras' MultiCategoryEncoding does."""
    import keras
    import tensorflow as tf

    class Encoding(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.lookups = {str(column): _lookup(*table) for column, table in tables.items()}
            # A bound method hides its table from what is saved.
            self.owners = [lookup.__self__ for lookup in self.lookups.values() if hasattr(lookup, "__self__")]

        def call(self, inputs):
            encoded = []
            for i, column in enumerate(tf.split(inputs, [1] * width, axis=-1)):
                if i in tables:
                    index = self.lookups[str(i)](tf.strings.as_string(column))
                    index.set_shape(column.shape)
                    encoded.append(tf.cast(index, tf.float32))
                else:
                    encoded.append(tf.where(tf.math.is_nan(column), tf.zeros_like(column), column))
            return tf.concat(encoded, axis=-1)

    x = inputs = keras.Input((width,))
    x = Encoding()(x)
    scales = [25.0 if i in tables else 1.0 for i in range(width)]
    x = keras.layers.Normalization(mean=[1.0] * width, variance=scales)(x)
    x = keras.layers.Dense(5, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))


def _embeddings(width: int, tables: dict[int, tuple[str, list[str]]], seed: int) -> np.ndarray:
    """Half of the rows with entries of the tables, and numbers around them; NaN in any column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.5, size=(64, width)).astype(np.float16).astype(np.float32)
    x[60, :] = np.nan
    for column, (_, texts) in tables.items():
        known = np.array([text for text in texts if text != "cat"] or ["0"], dtype=np.float32)
        x[:32, column] = rng.choice(known, size=32)
        x[16:32, column] += rng.choice(np.float32([0, 4e-7, 6e-7, -4e-7]), size=16)
        x[32:40, column] = np.float32([0, -0.0, np.inf, -np.inf, 2.0**-7, 5e-7, -5e-7, 1e-45])
    return x


@needs_tensorflow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(width=st.integers(8, 12), tables=_tables, seed=st.integers(0, 9))
def test_models_with_category_tables(width, tables, seed, tmp_path_factory):
    """Saved and evaluated by TensorFlow here and now, both ways to write a SavedModel."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    model, embeddings = _category_model(width, tables), _embeddings(width, tables, seed)
    expected = model(embeddings).numpy()[:, 0]
    assert np.isfinite(expected).all()
    folder = tmp_path_factory.mktemp("model")
    model.export(folder / "exported", verbose=False)
    tf.saved_model.save(model, str(folder / "saved"))
    for name in ("exported", "saved"):
        check_operations(read_graph(folder / name))
        convert(folder / name, folder / "out.safetensors")
        detector = load_detector(folder / "out.safetensors")
        assert detector.layers[0].columns.tolist() == sorted(tables)
        with torch.inference_mode():
            found = detector(torch.from_numpy(embeddings)).numpy()
        assert np.abs(found - expected).max() <= 1e-6, name
