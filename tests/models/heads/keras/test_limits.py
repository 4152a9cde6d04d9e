"""What a Keras file may not make the converter do: read other files, or make arrays that no head has."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from dalle_ppo.models.heads.keras import graph_operations, saved_model
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.keras.graph_operations import apply

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "keras"


def entries_of(source: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(source) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def links(kind: str, other: Path, place: str) -> h5py.ExternalLink | h5py.SoftLink:
    return h5py.ExternalLink(other, place) if kind == "another file" else h5py.SoftLink("/moved")


def relink(h5: h5py.File, place: str, kind: str, other: Path) -> None:
    """Puts a link in a member's place, to the same content: what follows it notices nothing."""
    h5.move(place, "moved")
    h5[place] = links(kind, other, place)
    assert place in h5


@pytest.mark.parametrize("kind", ["another file", "another place"])
@pytest.mark.parametrize(
    "name, place",
    [
        ("keras2.h5", "model_weights"),
        ("keras2.h5", "model_weights/dense"),
        ("keras3.h5", "model_weights/dense"),
        ("keras3.keras", "layers"),
        ("keras3.keras", "layers/dense"),
        ("keras3.keras", "layers/dense/vars"),
        ("keras3.keras", "layers/dense/vars/0"),
    ],
)
def test_links_are_refused_wherever_they_stand(tmp_path, name, place, kind):
    path, other = Path(shutil.copy(FIXTURES / name, tmp_path)), tmp_path / "other.h5"
    if path.suffix == ".h5":
        shutil.copy(path, other)
        with h5py.File(path, "r+") as h5:
            relink(h5, place, kind, other)
    else:
        entries = entries_of(path)
        weights = entries["model.weights.h5"]
        other.write_bytes(weights)
        inner = io.BytesIO(weights)
        with h5py.File(inner, "r+") as h5:
            relink(h5, place, kind, other)
        write(path, entries | {"model.weights.h5": inner.getvalue()})
    with pytest.raises(ValueError, match=rf"{place} is a link to another file or place: refused"):
        convert(path, tmp_path / "out.safetensors")


def test_a_constant_of_a_few_bytes_does_not_become_an_array_of_many(monkeypatch):
    node = NodeDef(op="Const", name="many")
    node.attr["value"].tensor.dtype = 1  # float32
    node.attr["value"].tensor.float_val.append(1.0)
    node.attr["value"].tensor.tensor_shape.dim.add(size=250)
    monkeypatch.setattr(graph_operations, "LARGEST_BYTES", 1000)
    assert np.array_equal(saved_model._constant(node), np.ones(250, dtype=np.float32))
    for size in (251, 2**62, -1):
        node.attr["value"].tensor.tensor_shape.dim[0].size = size
        with pytest.raises(ValueError, match=r"operation Const \(many\): makes an array of shape"):
            saved_model._constant(node)


def test_a_broadcast_does_not_either(monkeypatch):
    monkeypatch.setattr(graph_operations, "LARGEST_BYTES", 1000)
    column, row = np.ones((12, 1), dtype=np.float32), np.ones((1, 12), dtype=np.float32)
    (found,) = apply(NodeDef(op="Add"), [column[:10], row])
    assert found.shape == (10, 12)
    with pytest.raises(ValueError, match=r"operation Add .*shape \[12, 12\], above 1,000 bytes"):
        apply(NodeDef(op="Add"), [column, row])


def test_nor_do_many_small_ones(tmp_path, monkeypatch):
    source, out = FIXTURES / "keras2_saved_model.zip", tmp_path / "out.safetensors"
    monkeypatch.setattr(saved_model, "LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="makes more numbers than 1,000 bytes with those before it"):
        convert(source, out)


def test_an_input_wider_than_any_embedding_is_refused(tmp_path):
    entries = entries_of(FIXTURES / "keras3.keras")
    config = json.loads(entries["config.json"])
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, 100_000]
    path = write(tmp_path / "a.keras", entries | {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="reads 100000 numbers; an embedding has at most 65536"):
        convert(path, tmp_path / "out.safetensors")
