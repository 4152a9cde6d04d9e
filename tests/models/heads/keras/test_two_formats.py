"""Keras goes by a file's name and we by its content: both must read the same model."""

import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file

from dalle_ppo.models.heads.keras import verify as verification
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.keras.verify import load_original

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "keras"


def with_a_zip_behind(path: Path) -> Path:
    """A HDF5 file of Keras' that ends with a zip of one text."""
    shutil.copy(FIXTURES / "keras3.h5", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "nothing")
    return path


def with_hdf5_behind(path: Path) -> Path:
    """A zip named like a `.keras` file's, in which an empty HDF5 file begins where HDF5 looks for one."""
    with h5py.File(path, "w", userblock_size=512):
        pass
    with zipfile.ZipFile(path.with_suffix(".notes"), "w") as archive:
        archive.writestr("config.json", "{}")
    with path.open("r+b") as file:
        file.write(path.with_suffix(".notes").read_bytes())
    return path


@pytest.mark.parametrize("write, is_zip", [(with_a_zip_behind, True), (with_hdf5_behind, False)])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_is_both_is_refused(tmp_path, write, is_zip, suffix):
    path = write(tmp_path / f"model{suffix}")
    assert h5py.is_hdf5(path) and (not is_zip or zipfile.is_zipfile(path))
    for read in (lambda: convert(path, tmp_path / "out.safetensors"), lambda: load_original(path)):
        with pytest.raises(ValueError, match="both a zip and an HDF5 file"):
            read()
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_may_begin_where_hdf5_looks(tmp_path):
    """Keras stores them as they are, and now and then they begin at 512, 1 024, 2 048 ... bytes."""
    path, place = tmp_path / "model.keras", 2**15
    with zipfile.ZipFile(FIXTURES / "keras3.keras") as given, zipfile.ZipFile(path, "w") as archive:
        contents = {name: given.read(name) for name in given.namelist()}
        weights = contents.pop("model.weights.h5")
        for name, content in contents.items():
            archive.writestr(name, content)
        before = archive.start_dir + 30 + len("padding") + 30 + len("model.weights.h5")
        archive.writestr("padding", b" " * (place - before))
        archive.writestr("model.weights.h5", weights)
    assert h5py.is_hdf5(path) and path.read_bytes().find(weights) == place
    convert(path, tmp_path / "out.safetensors")
    convert(FIXTURES / "keras3.keras", tmp_path / "expected.safetensors")
    found, expected = (load_file(tmp_path / f"{name}.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys() and all(found[k].equal(expected[k]) for k in found)


@pytest.mark.parametrize("name, suffix", [("keras3.h5", ".h5"), ("keras3.keras", ".keras")])
def test_keras_loads_what_was_read_under_any_name(tmp_path, monkeypatch, name, suffix):
    wrong = {".h5": ".keras", ".keras": ".h5"}[suffix]
    path = shutil.copy(FIXTURES / name, tmp_path / f"model{wrong}")
    loaded = []

    def load_model(file: str, compile: bool, safe_mode: bool):
        assert safe_mode and not compile
        loaded.append((Path(file).suffix, Path(file).read_bytes()))
        return lambda batch, training: batch[:, :1]

    models = SimpleNamespace(load_model=load_model)
    fake = SimpleNamespace(keras=SimpleNamespace(models=models))
    monkeypatch.setattr(verification, "_tensorflow", lambda: fake)
    predict = load_original(Path(path))
    assert loaded == [(suffix, Path(FIXTURES / name).read_bytes())]
    assert predict(np.ones((2, 12), dtype=np.float32)).shape == (2,)
