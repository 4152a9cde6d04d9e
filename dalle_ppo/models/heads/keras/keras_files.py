"""Reads Keras' own files: `.keras` (Keras 3) and `.h5` (Keras 2 and 3). Needs h5py, not Keras."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.models.heads.keras.config_layers import layers_from_config


def read_keras(path: Path) -> tuple[list[LayerSpec], int]:
    """Read a Keras 3 `.keras` file: layers and input width.

    Raises:
        ValueError: it is not such a file, or the model is not a chain of known layers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = json.loads(archive.read("metadata.json")).get("keras_version", "3")
            weights_file = io.BytesIO(archive.read("model.weights.h5"))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, or not a .keras file ({error})") from None
    with _open_h5(weights_file, path) as h5:
        return layers_from_config(config, _keras3_weights(h5, config), version)


def read_h5(path: Path) -> tuple[list[LayerSpec], int]:
    """Read a whole-model `.h5` file of Keras 2 or 3: layers and input width.

    Such a file holds no checksums (SavedModels and `.keras` files do): changed numbers go unnoticed.

    Raises:
        ValueError: it is not such a file, or the model is not a chain of known layers.
    """
    with _open_h5(path, path) as h5:
        if "model_config" not in h5.attrs or "model_weights" not in h5:
            raise ValueError(f"{path}: holds no whole model (weights alone do not define the layers)")
        config = json.loads(h5.attrs["model_config"])
        group = h5["model_weights"]
        version = str(group.attrs.get("keras_version", h5.attrs.get("keras_version", "2")))
        weights = {name: _h5_layer(group, name) for name in _texts(group.attrs["layer_names"])}
        return layers_from_config(config, weights, version)


def _open_h5(file: io.BytesIO | Path, path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "reading .keras and .h5 files needs h5py: pip install 'dalle_ppo[convert]'"
        ) from None
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file ({error})") from None


def _keras3_weights(h5: Any, config: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Weights by layer name. Keras files them by class name and a running number, not by layer name.

    Source: keras/src/saving/saving_lib.py, `_save_container_state`.
    """
    groups = {place: group["vars"] for place, group in h5.get("layers", {}).items() if "vars" in group}
    names = {place: group.attrs.get("name") for place, group in groups.items()}
    if None in names.values():  # written before Keras recorded the names
        names = {}
        used: dict[str, int] = {}
        for layer in config["config"]["layers"]:
            stem = _snake_case(layer["class_name"])
            count = used[stem] = used.get(stem, -1) + 1
            names[f"{stem}_{count}" if count else stem] = layer["config"].get("name", layer.get("name"))
    present = [(place, name) for place, name in names.items() if place in groups]
    return {name: [_array(groups[p], str(i)) for i in range(len(groups[p]))] for p, name in present}


def _snake_case(name: str) -> str:
    """Source: keras/src/utils/naming.py, `to_snake_case`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _h5_layer(group: Any, name: str) -> list[np.ndarray]:
    return [_array(group[name], weight) for weight in _texts(group[name].attrs["weight_names"])]


def _array(group: Any, name: str) -> np.ndarray:
    """One dataset, which must be in this file: HDF5 can also link to others."""
    import h5py

    place = group
    for part in name.split("/"):
        if isinstance(place.get(part, getlink=True), h5py.ExternalLink):
            raise ValueError(f"weight {name} is a link to another file: refused")
        place = place[part]
    if place.external or place.is_virtual:
        raise ValueError(f"weight {name} stores its numbers in another file: refused")
    return np.asarray(place)


def _texts(values: Any) -> list[str]:
    """HDF5 attributes give texts as str or bytes, depending on who wrote them."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
