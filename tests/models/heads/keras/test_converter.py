"""Real Keras models in every file format against what Keras computed; and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import runpy
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from dalle_ppo.models.heads.keras import verify as verification
from dalle_ppo.models.heads.keras.convert import convert, unpacked
from dalle_ppo.models.heads.keras.download import detector_file, fetch
from dalle_ppo.models.heads.keras.graph_check import check_operations
from dalle_ppo.models.heads.keras.graph_operations import apply
from dalle_ppo.models.heads.keras.graph_values import Stream
from dalle_ppo.models.heads.keras.published import DETECTORS
from dalle_ppo.models.heads.keras.saved_model import read_graph
from dalle_ppo.models.heads.keras.verify import verify
from dalle_ppo.models.heads.nsfw import load_detector

ROOT = Path(__file__).resolve().parents[4]
FIXTURES = ROOT / "tests" / "fixtures" / "keras"
MODELS = {
    "keras3.keras": "keras3",
    "keras3.h5": "keras3",
    "keras3_export.zip": "keras3",
    "keras2.h5": "keras2",
    "keras2_saved_model.zip": "keras2",
    "category_saved_model.zip": "category",
}
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow: pip install '.[convert]'"
)


def _unzipped(name: str, folder: Path) -> Path:
    shutil.unpack_archive(FIXTURES / f"{name}.zip", folder)
    return folder / name


def _difference(source: Path, out: Path, embeddings: np.ndarray, expected: np.ndarray) -> float:
    convert(source, out)
    with torch.inference_mode():
        return float(np.abs(load_detector(out)(torch.from_numpy(embeddings)).numpy() - expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_committed_models(name, tmp_path):
    """Saved and evaluated by Keras itself: see make_fixtures.py."""
    expected = np.load(FIXTURES / "expected.npz")
    kind = MODELS[name]
    embeddings = expected["category_embeddings" if kind == "category" else "embeddings"]
    assert expected[kind].std() > 0.05  # else any constant would pass
    assert _difference(FIXTURES / name, tmp_path / "out.safetensors", embeddings, expected[kind]) <= 1e-6


def test_tables_of_the_committed_model_matter(tmp_path):
    expected = np.load(FIXTURES / "expected.npz")
    convert(FIXTURES / "category_saved_model.zip", tmp_path / "out.safetensors")
    smooth = load_detector(tmp_path / "out.safetensors", smooth=True)
    found = smooth(torch.from_numpy(expected["category_embeddings"])).numpy()
    assert np.abs(found - expected["category"]).max() > 0.01


def test_folder_and_zip_are_one_model(tmp_path):
    folder = _unzipped("keras2_saved_model", tmp_path)
    convert(folder, tmp_path / "a.safetensors")
    convert(FIXTURES / "keras2_saved_model.zip", tmp_path / "b.safetensors")
    a, b = load_detector(tmp_path / "a.safetensors"), load_detector(tmp_path / "b.safetensors")
    x = torch.randn(8, 12)
    assert torch.equal(a(x), b(x))
    assert len({a.info.source_sha256, b.info.source_sha256}) == 2
    zip_hash = hashlib.sha256((FIXTURES / "keras2_saved_model.zip").read_bytes()).hexdigest()
    assert b.info.source_sha256 == zip_hash


def test_metadata(tmp_path):
    out = tmp_path / "out.safetensors"
    clip = {"clip_model": "ViT-B-32", "clip_pretrained": "openai"}
    info = convert(FIXTURES / "keras3.keras", out, **clip, round_to_float16=True, licence="mine")
    assert load_detector(out).info == info
    assert (info.clip_model, info.clip_pretrained, info.dimension) == ("ViT-B-32", "openai", 12)
    assert info.round_to_float16 and info.licence == "mine" and info.source == "keras3.keras"
    assert not convert(FIXTURES / "keras3.keras", out).round_to_float16


# --- what is refused


def _edited_keras(tmp_path: Path, edit) -> Path:
    """keras3.keras with its configuration changed."""
    path = tmp_path / "edited.keras"
    with zipfile.ZipFile(FIXTURES / "keras3.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                edit({layer["config"]["name"]: layer for layer in config["config"]["layers"]})
                data = json.dumps(config).encode()
            new.writestr(name, data)
    return path


def _set(layer: dict, **values) -> None:
    layer.update(values)


_EDITS = {
    "Lambda": lambda layers: _set(layers["dropout"], class_name="Lambda"),
    "is a GroupNormalization": lambda layers: _set(layers["dropout"], class_name="GroupNormalization"),
    "is a Conv1D": lambda layers: _set(layers["dense"], class_name="Conv1D"),
    "export it as a SavedModel": lambda layers: _set(
        layers["dropout"], class_name="MultiCategoryEncoding", module="autokeras.keras_layers"
    ),
    "refers to Dense of my_code": lambda layers: _set(layers["dense"], module="my_code"),
    r"custom Dense \(mine>Dense\)": lambda layers: _set(layers["dense"], registered_name="mine>Dense"),
    "has activation cosine": lambda layers: _set(layers["dense"]["config"], activation="cosine"),
    "refers to system of os": lambda layers: _set(
        layers["dense"]["config"], kernel_initializer={"module": "os", "class_name": "system", "config": {}}
    ),
    "computes in float16": lambda layers: _set(layers["dense"]["config"], dtype="float16"),
    "needs {'kernel': .12, 17.": lambda layers: _set(layers["dense"]["config"], units=17),
    "axis=0": lambda layers: _set(layers["normalization"]["config"], axis=0),
    "a chain": lambda layers: layers["dropout"]["inbound_nodes"][0]["args"].append(
        {"config": {"keras_history": ["dense", 0, 0]}}
    ),
}


@pytest.mark.parametrize("message", _EDITS)
def test_unreadable_layers_are_named(message, tmp_path):
    source = _edited_keras(tmp_path, _EDITS[message])
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_category_tables_in_an_h5_are_refused_with_advice(tmp_path):
    import h5py

    path = tmp_path / "autokeras.h5"
    shutil.copy(FIXTURES / "keras2.h5", path)
    with h5py.File(path, "r+") as h5:
        config = h5.attrs["model_config"]
        config = config if isinstance(config, bytes) else config.encode()
        assert b'"Dropout"' in config
        h5.attrs["model_config"] = config.replace(b'"Dropout"', b'"Custom>MultiCategoryEncoding"')
    with pytest.raises(ValueError, match=r"autokeras\.h5: .* export it as a SavedModel"):
        convert(path, tmp_path / "out.safetensors")


def test_hdf5_links_to_other_files_are_refused(tmp_path):
    import h5py

    path = tmp_path / "linked.h5"
    shutil.copy(FIXTURES / "keras2.h5", path)
    with h5py.File(path, "r+") as h5:
        group = h5["model_weights/dense/dense"]
        kernel = next(name for name in group if name.startswith("kernel"))
        del group[kernel]
        group[kernel] = h5py.ExternalLink("other.h5", "/kernel")
    with pytest.raises(ValueError, match="link to another file"):
        convert(path, tmp_path / "out.safetensors")


def _rewritten_graph(tmp_path: Path, edit, name: str = "keras2_saved_model") -> Path:
    """A fixture's SavedModel with its graph changed."""
    folder = _unzipped(name, tmp_path)
    graph = read_graph(folder)
    edit(graph)
    data = graph.SerializeToString()
    size, length = len(data), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12" + length + bytes([size]) + data)
    return folder


def _change_operations(graph, old: str, new: str) -> None:
    for function in graph.graph_def.library.function:
        for node in function.node_def:
            node.op = new if node.op == old else node.op


def test_unreadable_operations_are_named(tmp_path):
    folder = _rewritten_graph(tmp_path, lambda graph: _change_operations(graph, "LeakyRelu", "Cos"))
    with pytest.raises(ValueError, match=r"operation Cos \(.*LeakyRelu\)"):
        convert(folder, tmp_path / "out.safetensors")


def test_damaged_weights_are_noticed(tmp_path):
    folder = _unzipped("keras2_saved_model", tmp_path)
    weights = folder / "variables" / "variables.data-00000-of-00001"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        convert(folder, tmp_path / "out.safetensors")
    (folder / "variables" / "variables.index").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"variables.index|index is damaged"):
        convert(folder, tmp_path / "out.safetensors")


def _zip(path: Path, entries: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, data)
    return path


@pytest.mark.parametrize("name", ["../evil.txt", "model/../../evil.txt", "/evil.txt", "C:/evil", "..\\evil"])
def test_a_zip_cannot_write_outside_its_folder(name, tmp_path):
    source = _zip(tmp_path / "slip.zip", {"model/saved_model.pb": b"", name: b"evil"})
    with pytest.raises(ValueError, match="outside its folder"):
        convert(source, tmp_path / "out.safetensors")
    assert not list(tmp_path.rglob("evil*")) and not Path("/evil.txt").exists()


def test_a_zip_holds_no_links_and_one_model(tmp_path):
    link = _zip(tmp_path / "link.zip", {"model/saved_model.pb": b"elsewhere"}, mode=0o120777)
    with pytest.raises(ValueError, match="is a link"):
        convert(link, tmp_path / "out.safetensors")
    two = _zip(tmp_path / "two.zip", {"a/saved_model.pb": b"", "b/saved_model.pb": b""})
    with pytest.raises(ValueError, match="holds 2 SavedModels"):
        convert(two, tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x89HDF\r\n\x1a\nhello"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "file.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.keras"):
        convert(tmp_path / "file.keras", tmp_path / "out.safetensors")


def test_slope_that_the_graph_leaves_out():
    """TensorFlow strips attributes that have their default: 0.2 for LeakyRelu."""
    (stream,) = apply(NodeDef(op="LeakyRelu"), [Stream()])
    assert stream.steps[0].options == (("negative_slope", 0.2),)


# --- before TensorFlow loads a graph


def test_committed_graphs_are_allowed(tmp_path):
    for name in ("keras3_export", "keras2_saved_model", "category_saved_model"):
        check_operations(read_graph(_unzipped(name, tmp_path)))


@pytest.mark.parametrize("operation", ["ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "DecodeRaw"])
def test_operations_off_the_list_are_not_loaded(operation, tmp_path):
    folder = _rewritten_graph(tmp_path, lambda graph: _change_operations(graph, "RandomUniform", operation))
    with pytest.raises(ValueError, match=f"operation {operation} .* not allowed"):
        check_operations(read_graph(folder))


def test_files_are_touched_by_the_saver_only(tmp_path):
    """SaveV2 is in every SavedModel; in a function that serving calls it would write on prediction."""
    folder = _rewritten_graph(tmp_path, lambda graph: _change_operations(graph, "LeakyRelu", "SaveV2"))
    with pytest.raises(ValueError, match=r"operation SaveV2 .* outside the saver"):
        check_operations(read_graph(folder))

    def call_the_saver(graph):
        saver = next(f for f in graph.graph_def.library.function if "traced_save" in f.signature.name)
        node = graph.graph_def.node.add(name="again", op="PartitionedCall")
        node.attr["f"].func.name = saver.signature.name

    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="outside the saver"):
        check_operations(read_graph(_rewritten_graph(tmp_path, call_the_saver)))


def test_restoring_may_only_read(tmp_path):
    """A model is restored when it is loaded: a saver that writes then is refused."""

    def save_instead(graph):
        nodes = {node.name: node for node in graph.graph_def.node}
        save = nodes[graph.saver_def.save_tensor_name.partition(":")[0]]
        nodes[graph.saver_def.restore_op_name].attr["f"].CopyFrom(save.attr["f"])

    folder = _rewritten_graph(tmp_path, lambda graph: _change_operations(graph, "RestoreV2", "SaveV2"))
    with pytest.raises(ValueError, match=r"operation SaveV2 .* in the saver's restoring"):
        check_operations(read_graph(folder))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="in the saver's restoring"):
        check_operations(read_graph(_rewritten_graph(tmp_path, save_instead)))


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
def test_published_graphs_are_allowed(detector):
    published = ROOT.parent / "shared" / "nsfw" / detector.url.rpartition("/")[2]
    if not published.exists():
        pytest.skip("needs LAION's published files")
    with unpacked(published) as folder:
        check_operations(read_graph(folder))


# --- downloads


def test_downloads_are_checked_and_cached(tmp_path, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(b"something else")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch("laion-l14", tmp_path)
    assert not list(tmp_path.iterdir())
    assert asked == [DETECTORS["laion-l14"].url]
    published = ROOT.parent / "shared" / "nsfw" / "clip_autokeras_nsfw_b32.zip"
    if published.exists():
        monkeypatch.setattr(
            urllib.request, "urlopen", lambda url, timeout: io.BytesIO(published.read_bytes())
        )
        path = fetch("laion-b32", tmp_path)
        assert path.read_bytes() == published.read_bytes()
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: pytest.fail("asked again"))
        assert fetch("laion-b32", tmp_path) == path


def test_no_connection_is_one_clear_error(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ValueError, match="put it at"):
        fetch("laion-l14", tmp_path)


def test_a_detector_is_named_in_the_settings_and_converted_once(tmp_path, monkeypatch):
    published = ROOT.parent / "shared" / "nsfw" / "clip_autokeras_nsfw_b32.zip"
    if not published.exists():
        pytest.skip("needs LAION's published files")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "dalle_ppo").mkdir()
    shutil.copy(published, tmp_path / "dalle_ppo")
    path = detector_file("laion-b32")
    reference = np.load(published.with_name("b32_reference.npz"))
    found = load_detector(path)(torch.from_numpy(reference["embeddings"]))
    assert np.abs(found.numpy() - reference["probabilities"]).max() < 1e-6
    written = path.stat().st_mtime_ns
    assert detector_file("laion-b32") == path and path.stat().st_mtime_ns == written
    (tmp_path / "dalle_ppo" / published.name).unlink()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: pytest.fail("asked again"))
    assert detector_file("laion-b32") == path, "what is converted needs no download"
    assert detector_file("my/head.safetensors") == Path("my/head.safetensors")


# --- the command


def _run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "converters" / "keras_nsfw_to_torch.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)


def test_command(tmp_path):
    result = _run(FIXTURES / "keras3.h5", tmp_path / "out.safetensors", "--clip_model", "ViT-B-32")
    assert result.returncode == 0, result.stderr
    assert "dense(bias[16], kernel[12, 16])" in result.stdout
    assert load_detector(tmp_path / "out.safetensors").info.clip_model == "ViT-B-32"


def test_command_on_bad_input(tmp_path):
    result = _run(tmp_path / "missing.keras", tmp_path / "out.safetensors")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "missing.keras" in result.stderr


@pytest.mark.parametrize(
    "largest, code, words",
    [(9e-7, 0, "verify: equal"), (1.1e-6, 1, "NOT equal"), (float("nan"), 1, "NOT equal")],
)
def test_the_verification_is_printed_and_decides_the_exit_code(
    largest, code, words, tmp_path, monkeypatch, capsys
):
    comparisons = [verification.Comparison("float32", 2048, 1e-8)]
    comparisons.append(verification.Comparison("float16-representable", 2048, largest))
    monkeypatch.setattr(verification, "verify", lambda source, out, **options: comparisons)
    arguments = [FIXTURES / "keras3.h5", tmp_path / "out.safetensors", "--verify"]
    monkeypatch.setattr(sys, "argv", ["keras_nsfw_to_torch.py", *map(str, arguments)])
    command = runpy.run_path(str(ROOT / "converters" / "keras_nsfw_to_torch.py"))
    assert command["main"]() == code
    printed = capsys.readouterr().out
    assert words in printed
    assert f"2048 embeddings, float16-representable: largest difference {largest:.1e}" in printed
    assert f"(largest difference {largest:.1e})" in printed


def test_verifying_without_tensorflow_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    arguments = [FIXTURES / "category_saved_model.zip", tmp_path / "out.safetensors", "--verify"]
    monkeypatch.setattr(sys, "argv", ["keras_nsfw_to_torch.py", *map(str, arguments)])
    command = runpy.run_path(str(ROOT / "converters" / "keras_nsfw_to_torch.py"))
    assert command["main"]() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "pip install -e '.[convert]'" in error
    assert load_detector(tmp_path / "out.safetensors"), "converting needs no TensorFlow"


# --- with TensorFlow


@needs_tensorflow
@pytest.mark.parametrize("name", ["category_saved_model.zip", "keras3.keras"])
def test_verify(name, tmp_path):
    convert(FIXTURES / name, tmp_path / "out.safetensors")
    results = verify(FIXTURES / name, tmp_path / "out.safetensors")
    assert len(results) == (3 if "category" in name else 2)
    assert max(result.largest for result in results) <= 1e-6


@needs_tensorflow
def test_verify_notices_another_model(tmp_path):
    convert(FIXTURES / "keras2.h5", tmp_path / "out.safetensors")
    results = verify(FIXTURES / "keras3.keras", tmp_path / "out.safetensors")
    assert max(result.largest for result in results) > 1e-3


_activations = st.sampled_from(
    ["relu", "tanh", "gelu", "silu", "elu", "selu", "softplus", "mish", "leaky_relu"]
)
_kinds = ["dense", "nested", "object", "prelu", "norm", "layer norm", "unit norm", "dropout"]
_layers = st.lists(
    st.tuples(st.sampled_from(_kinds), st.integers(1, 40), _activations, st.booleans()),
    max_size=5,
)


@needs_tensorflow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(width=st.integers(1, 60), layers=_layers, normalised=st.booleans(), seed=st.integers(0, 9))
def test_models_of_many_shapes(width, layers, normalised, seed, tmp_path_factory):
    """Built, saved and evaluated by Keras here and now, in all of its formats."""
    import keras

    keras.utils.set_random_seed(seed)
    embeddings = np.random.default_rng(seed).normal(size=(40, width)).astype(np.float32)
    model = keras.Sequential([keras.Input((width,))])
    if normalised:
        model.add(keras.layers.Normalization())
        model.layers[-1].adapt(2 * embeddings + 1)
    for kind, units, activation, flag in layers:
        if kind == "dense":
            model.add(keras.layers.Dense(units, activation=activation, use_bias=flag))
        elif kind == "nested":
            model.add(keras.Sequential([keras.layers.Dense(units, activation), keras.layers.Dense(3)]))
        elif kind == "object":
            model.add(keras.layers.Dense(units, activation=keras.layers.LeakyReLU(0.1 if flag else 0.4)))
        elif kind == "prelu":
            model.add(keras.layers.PReLU(keras.initializers.RandomUniform(-1, 1)))
        elif kind == "layer norm":
            model.add(keras.layers.LayerNormalization(scale=flag, center=not flag))
        elif kind == "unit norm":
            model.add(keras.layers.UnitNormalization())
        elif kind == "norm":
            model.add(keras.layers.BatchNormalization(scale=flag, center=not flag))
        else:
            model.add(keras.layers.Dropout(0.5))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    expected = model(embeddings).numpy()[:, 0]
    folder = tmp_path_factory.mktemp("model")
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.export(folder / "exported", verbose=False)
    for source in ("model.keras", "model.h5", "exported"):
        assert _difference(folder / source, folder / "out.safetensors", embeddings, expected) <= 1e-6, source
