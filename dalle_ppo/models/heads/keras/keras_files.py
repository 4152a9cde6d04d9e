"""Reads Keras' own files: `.keras` (Keras 3) and `.h5` (Keras 2 and 3). Needs h5py, not Keras."""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from dalle_ppo.base.archives import check_unpacked
from dalle_ppo.base.memory_limit import memory_at_most
from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.heads.keras.chain import Chain
from dalle_ppo.models.heads.keras.config_chain import MODELS, Layer, layer_name, layers_of
from dalle_ppo.models.heads.keras.config_chain import Path as LayerPath
from dalle_ppo.models.heads.keras.config_layers import layers_from_config

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
WEIGHTS = "model.weights.h5"
"""The entry of a `.keras` file that holds the weights."""

LayerWeights = dict[str, np.ndarray]

LARGEST_BYTES = 2**28
"""Of one array or attribute; those of heads are a few megabytes."""

READING_BYTES = 2 * LARGEST_BYTES
"""What HDF5 may allocate while it reads one: it believes the lengths that a file gives for its texts."""


def read_keras(path: Path) -> Chain:
    """Read a Keras 3 `.keras` file.

    Raises:
        ValueError: it is not such a file, or the model is not a chain of known layers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(archive, path)
            config = json.loads(archive.read("config.json"))
            version = json.loads(archive.read("metadata.json")).get("keras_version", "3")
            weights_file = io.BytesIO(archive.read(WEIGHTS))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, or not a .keras file ({one_line(error)})") from None
    with _open_h5(weights_file, path) as h5:
        weights = _keras3_weights(h5, config)
        return layers_from_config(config, lambda path: weights.get(path, {}), version)


def read_h5(path: Path) -> Chain:
    """Read a whole-model `.h5` file of Keras 2 or 3.

    Such a file holds no checksums (SavedModels and `.keras` files do): changed numbers go unnoticed.

    Raises:
        ValueError: it is not such a file, or the model is not a chain of known layers.
    """
    with _open_h5(path, path) as h5:
        group = _member(h5, "model_weights")
        if "model_config" not in h5.attrs or group is None:
            raise ValueError(f"{path}: holds no whole model (weights alone do not define the layers)")
        config = json.loads(_attribute(h5, "model_config"))
        version = str(_attribute(group, "keras_version") or _attribute(h5, "keras_version") or "2")
        return layers_from_config(config, lambda layer: _h5_layer(group, layer), version)


def holds_other_hdf5(path: Path) -> bool:
    """Whether HDF5 would open a zip, and find something else there than the weights of a `.keras` file.

    What HDF5 reads may begin further on, behind other content. The weights lie in the zip as they are, and
    can happen to begin at one of the places where it looks.

    Raises:
        ValueError: h5py is missing, or the zip is damaged.
    """
    if not _h5py().is_hdf5(path):
        return False
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = [entry for entry in archive.infolist() if entry.filename == WEIGHTS]
        starts = {_start_of(entry, file) for entry in entries if entry.compress_type == zipfile.ZIP_STORED}
        size = path.stat().st_size
        places = itertools.takewhile(lambda place: place < size, (2**n for n in itertools.count(9)))
        first = next(place for place in places if _bytes_at(file, place, 8) == HDF5_MAGIC)
    return first not in starts


def _start_of(entry: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Where an entry's content begins: behind its header, name and extra field, whose lengths it gives."""
    lengths = _bytes_at(file, entry.header_offset + 26, 4)
    return entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))


def _bytes_at(file: IO[bytes], place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError("reading .keras and .h5 files needs h5py: pip install -e '.[convert]'") from None
    return h5py


def _open_h5(file: io.BytesIO | Path, path: Path) -> Any:
    h5py = _h5py()
    try:
        with memory_at_most(READING_BYTES):
            return h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file ({one_line(error)})") from None


def _keras3_weights(h5: Any, model: Layer, around: LayerPath = ()) -> dict[LayerPath, LayerWeights]:
    """Weights by the layer's path. Keras files them by class name and a running number, not by layer name.

    Source: keras/src/saving/saving_lib.py, `_save_container_state`.
    """
    layers_group = _member(h5, "layers")
    groups = {place: _member(layers_group, place) for place in layers_group or ()}
    variables = {place: _member(group, "vars") for place, group in groups.items()}
    names = {place: _attribute(own, "name") for place, own in variables.items() if own is not None}
    if None in names.values():  # written before Keras recorded the names
        names = {}
        used: dict[str, int] = {}
        for layer in layers_of(model):
            stem = _snake_case(layer["class_name"])
            count = used[stem] = used.get(stem, -1) + 1
            names[f"{stem}_{count}" if count else stem] = layer_name(layer)
    layers = {layer_name(layer): layer for layer in layers_of(model)}
    weights: dict[LayerPath, LayerWeights] = {}
    for place, name in names.items():
        path = (*around, name)
        if name in layers and layers[name]["class_name"] in MODELS and place in groups:
            weights |= _keras3_weights(groups[place], layers[name], path)
        elif place in groups:
            weights[path] = _keras3_layer(groups[place])
    return weights


def _keras3_layer(group: Any) -> LayerWeights:
    """One layer's weights by number, those of an activation layer that it holds as `activation/NUMBER`."""
    weights = {}
    for part, prefix in ((group, ""), (_member(group, "activation"), "activation/")):
        variables = _member(part, "vars")
        count = 0 if variables is None else len(variables)
        weights |= {f"{prefix}{i}": _array(variables, str(i)) for i in range(count)}
    return weights


def _snake_case(name: str) -> str:
    """Source: keras/src/utils/naming.py, `to_snake_case`."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _h5_layer(models: Any, path: LayerPath) -> LayerWeights:
    """One layer's weights by name, in Keras' order, those of an activation layer in it as `NAME/alpha`.

    A nested model's weights lie in one group, told apart by their names only.
    """
    group = _member(models, path[0])
    if group is None:
        return {}
    names = _texts(_attribute(group, "weight_names"))
    parts = {name: name.partition(":")[0].split("/") for name in names}
    if len(path) > 1:
        names = _inside(path, {name: parts[name] for name in names if path[-1] in parts[name][:-1]})
    keys = [_after(parts[name], path[-1]) for name in names]
    if len(set(keys)) != len(keys):
        keys = [str(i) for i in range(len(names))]
    return {key: _array(group, name) for key, name in zip(keys, names, strict=True)}


def _inside(path: LayerPath, parts: dict[str, list[str]]) -> list[str]:
    """Of weights whose layers have this name, those whose models' names fit the path best."""

    def models_around(name: str) -> tuple[str, ...]:
        before = parts[name][:-1]
        return tuple(before[: len(before) - 1 - before[::-1].index(path[-1])])

    def fit(around: tuple[str, ...]) -> int:
        pairs = zip(reversed(around), reversed(path[:-1]), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(around), len(path) - 1))

    places = {models_around(name) for name in parts}
    best = [around for around in places if fit(around) == max(map(fit, places))]
    if len(best) > 1:
        raise ValueError(
            f"several nested layers are called {path[-1]}, and the .h5 does not tell which weights are "
            "whose: give them different names, or save a .keras file"
        )
    return [name for name in parts if models_around(name) in best]


def _after(parts: list[str], layer: str) -> str:
    """A weight's name after its layer's."""
    before = parts[:-1]
    first = len(before) - before[::-1].index(layer) if layer in before else len(before)
    return "/".join(parts[first:])


def _member(group: Any, name: str) -> Any:
    """What a group holds under a name, None if nothing. It must be in this file: HDF5 can link to others.

    Links are looked at before they are followed, as even asking whether a name exists opens the other file.

    Raises:
        ValueError: it is a link.
    """
    import h5py

    place = group
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or not place.id.links.exists(part.encode()):
            return None
        if place.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{place.name.rstrip('/')}/{part} is a link to another file or place: refused")
        place = place[part]
    return place


def _array(group: Any, name: str) -> np.ndarray:
    """One dataset, with its numbers in this file.

    Raises:
        ValueError: there is none, or it is elsewhere, or too large.
    """
    import h5py

    place = _member(group, name)
    if not isinstance(place, h5py.Dataset):
        raise ValueError(f"holds no weight {name}")
    if place.external or place.is_virtual:
        raise ValueError(f"weight {name} stores its numbers in another file: refused")
    if place.nbytes > LARGEST_BYTES:
        raise ValueError(f"weight {name} declares {place.nbytes:,} bytes, above {LARGEST_BYTES:,}: refused")
    with memory_at_most(READING_BYTES):
        return np.asarray(place)


def _attribute(place: Any, name: str) -> Any:
    """An attribute, None if there is none."""
    import h5py

    if name not in place.attrs:
        return None
    found = h5py.h5a.open(place.id, name.encode())
    size = found.get_type().get_size() * found.get_space().get_simple_extent_npoints()
    if size > LARGEST_BYTES:
        raise ValueError(f"attribute {name} declares {size:,} bytes, above {LARGEST_BYTES:,}: refused")
    with memory_at_most(READING_BYTES):
        return place.attrs[name]


def _texts(values: Any) -> list[str]:
    """HDF5 attributes give texts as str or bytes, depending on who wrote them."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
