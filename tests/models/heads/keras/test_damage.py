"""Sources of the Keras converter that are damaged or cut: one clear error, or no change in what is read."""

from __future__ import annotations

import dataclasses
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dalle_ppo.models.heads.keras import keras_files
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.keras.download import fetch
from dalle_ppo.models.heads.keras.published import DETECTORS
from dalle_ppo.models.heads.keras.tensor_bundle import TensorBundle
from dalle_ppo.models.heads.nsfw import read_head

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "keras"
# Zips and checkpoints hold checksums of all that is read; HDF5 and a graph outside a zip do not.
CHECKED_FILES = ["keras3.keras", "keras3_export.zip", "keras2_saved_model.zip", "category_saved_model.zip"]
CHECKED_PARTS = ["variables/variables.index", "variables/variables.data-00000-of-00001"]
UNCHECKED_FILES = ["keras3.h5", "keras2.h5"]
UNCHECKED_PARTS = ["saved_model.pb"]
MODEL = "category_saved_model"  # of which the parts are


def _damages(data: bytes) -> Iterator[bytes]:
    """The data with one byte changed, 30 times, and cut short, 5 times."""
    rng = np.random.default_rng(len(data))
    for position in rng.integers(len(data), size=30):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        yield bytes(changed)
    for length in rng.integers(len(data), size=5):
        yield data[:length]


def _converted(source: Path, out: Path) -> tuple | None:
    """What the converter makes of a source, but for its hash; None if it refuses it, in one line."""
    try:
        convert(source, out)
    except ValueError as error:
        assert source.name in str(error) and "\n" not in str(error)
        return None
    specs, info = read_head(out)
    layers = [(s.type, s.options, {k: t.numpy().tobytes() for k, t in s.tensors.items()}) for s in specs]
    return layers, info.dimension, info.output, info.clip_model


def _outcomes(file: Path, source: Path, out: Path) -> tuple[tuple, list[tuple | None]]:
    """What is read from a source, and what after each damage to one of its files."""
    whole = file.read_bytes()
    expected = _converted(source, out)
    assert expected is not None
    found = []
    for data in _damages(whole):
        file.write_bytes(data)
        found.append(_converted(source, out))
    return expected, found


@pytest.mark.parametrize("name", CHECKED_FILES + UNCHECKED_FILES)
def test_damaged_files(name, tmp_path):
    source = Path(shutil.copy(FIXTURES / name, tmp_path))
    expected, found = _outcomes(source, source, tmp_path / "out.safetensors")
    assert found.count(None) >= 5, "at least what is cut cannot be read"
    if name in CHECKED_FILES:
        assert all(outcome in (None, expected) for outcome in found)


@pytest.mark.parametrize("name", CHECKED_PARTS + UNCHECKED_PARTS)
def test_damaged_parts_of_a_saved_model(name, tmp_path):
    shutil.unpack_archive(FIXTURES / f"{MODEL}.zip", tmp_path)
    source = tmp_path / MODEL
    expected, found = _outcomes(source / name, source, tmp_path / "out.safetensors")
    assert found.count(None) >= 2
    if name in CHECKED_PARTS:
        assert all(outcome in (None, expected) for outcome in found)


def test_texts_in_a_checkpoint_are_checked(tmp_path):
    """TensorFlow wrote the fixture; what changes in its texts is noticed, and so is what is missing."""
    shutil.unpack_archive(FIXTURES / f"{MODEL}.zip", tmp_path)
    prefix = tmp_path / MODEL / "variables" / "variables"
    bundle = TensorBundle(prefix)
    texts = {name: entry for name, entry in bundle.entries.items() if entry.dtype == 7}
    assert {entry.shape for entry in texts.values()} == {(), (0,)}
    weights = prefix.with_name("variables.data-00000-of-00001")
    whole = weights.read_bytes()
    for name, entry in texts.items():
        weights.write_bytes(whole)
        assert bundle.read(name).shape == entry.shape
        assert sum(map(len, bundle.read(name).ravel())) in range(max(0, entry.size - 10), entry.size)
        positions = {*range(min(8, entry.size)), entry.size - 1, entry.size // 2}
        for position in positions:
            changed = bytearray(whole)
            changed[entry.offset + position] ^= 0x81
            weights.write_bytes(changed)
            with pytest.raises(ValueError, match="damaged"):
                bundle.read(name)
        weights.write_bytes(whole[: entry.offset + entry.size - 1])
        with pytest.raises(ValueError, match="damaged"):
            bundle.read(name)


def test_a_download_cut_midway_is_one_clear_error(tmp_path, monkeypatch):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"the first part")

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Cut) as server:
        url = f"http://127.0.0.1:{server.server_port}/detector.zip"
        monkeypatch.setitem(DETECTORS, "laion-l14", dataclasses.replace(DETECTORS["laion-l14"], url=url))
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ValueError, match=r"cannot download .*put it at"):
            fetch("laion-l14", tmp_path)
        thread.join()
    assert not list(tmp_path.iterdir())


def test_an_array_that_declares_more_than_a_head_holds_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:  # nothing is stored, so it would be read as zeros
        file.create_dataset("kernel", shape=(2**27,), dtype="f4", chunks=(1024,))
    with (
        h5py.File(tmp_path / "a.h5") as file,
        pytest.raises(ValueError, match="weight kernel declares 536,870,912 bytes, above"),
    ):
        keras_files._array(file, "kernel")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process")
def test_hdf5_may_not_allocate_more_than_a_text_of_a_head_needs(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("vars").attrs["name"] = "a" * 2**27
    monkeypatch.setattr(keras_files, "READING_BYTES", 2**25)
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises((OSError, MemoryError)):
        keras_files._attribute(file["vars"], "name")
