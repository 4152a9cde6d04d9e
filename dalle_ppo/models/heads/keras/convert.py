"""Converts a Keras detector to the safetensors file that `models.heads.nsfw.load_detector` reads."""

from __future__ import annotations

import hashlib
import json
import lzma
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import DecodeError

from dalle_ppo.base.archives import check_unpacked
from dalle_ppo.base.one_line import one_line
from dalle_ppo.models.heads.head_layers import LayerSpec, build_layers
from dalle_ppo.models.heads.keras.chain import Chain
from dalle_ppo.models.heads.keras.endings import AS_IT_IS, Ending
from dalle_ppo.models.heads.keras.keras_files import HDF5_MAGIC, holds_other_hdf5, read_h5, read_keras
from dalle_ppo.models.heads.keras.published import DETECTORS, PublishedDetector
from dalle_ppo.models.heads.keras.saved_model import read_saved_model
from dalle_ppo.models.heads.nsfw import HeadInfo, save_head

PROBABILITY_ACTIVATIONS = ("sigmoid", "hard_sigmoid")

LONGEST_LINE = 1000  # characters of an error: a file can give its layers names of any length

# What zipfile, h5py, json, protobuf, numpy and the readers here raise on damaged files.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, MemoryError),
    *(struct.error, DecodeError, UnicodeError, json.JSONDecodeError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    clip_model: str = "",
    clip_pretrained: str = "",
    round_to_float16: bool | None = None,
    licence: str = "",
    ending: Ending = AS_IT_IS,
) -> HeadInfo:
    """Convert one detector. Reads weights and graph; runs no code from the file.

    Args:
        source: a SavedModel folder, a zip of one, a `.keras` or a whole-model `.h5` file.
        out: the `.safetensors` file to write.
        clip_model, clip_pretrained: open_clip's names for the CLIP it reads; known for LAION's own files.
        round_to_float16: whether the reward must round embeddings to float16 before the head. None: only
            for LAION's own files, which were trained on such embeddings.
        licence: a note on the terms of the original; known for LAION's own files.
        ending: how the model's outputs become one probability, if they are not one.

    Returns:
        The metadata that was written.

    Raises:
        ValueError: the source is missing, unreadable, or not a chain of known layers ending in one number.
    """
    source = Path(source)
    with unpacked(source) as model, reading(source):
        chain = read_model(model)
        specs = ending.fold(chain.layers)
        output = _output_kind(specs)
        build_layers(specs)
        known = _published(model)
    info = HeadInfo(
        clip_model=clip_model or (known.clip_model if known else ""),
        clip_pretrained=clip_pretrained or (known.clip_pretrained if known else ""),
        dimension=chain.dimension,
        output=output,
        round_to_float16=bool(known) if round_to_float16 is None else round_to_float16,
        source=source.name,
        source_sha256=hash_source(source),
        licence=licence or (known.licence if known else ""),
    )
    save_head(out, specs, info)
    return info


def read_model(path: Path) -> Chain:
    """Read a model, going by the file's content, not its name.

    Args:
        path: a SavedModel folder, a `.keras` or `.h5` file (a zipped SavedModel: see `unpacked`).
    """
    if path.is_dir():
        return read_saved_model(path)
    return read_keras(path) if format_of(path) == ".keras" else read_h5(path)


def format_of(path: Path) -> str:
    """Which of Keras' own formats a file has, by its content: ".keras" or ".h5".

    Raises:
        ValueError: it has neither, or both: Keras goes by the name, and would load what nobody checked.
    """
    is_zip, is_h5 = _starts_with(path, b"PK"), _starts_with(path, HDF5_MAGIC)
    if not is_zip and not is_h5:
        raise ValueError(f"{path}: neither a SavedModel folder nor a .zip, .keras or .h5 file")
    if holds_other_hdf5(path) if is_zip else zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is both a zip and an HDF5 file, so it can hold two models: refused")
    return ".keras" if is_zip else ".h5"


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def rounding_of_source(source: Path) -> str:
    """What the original rounds its results to: "float16", "bfloat16", "int8", or "" for float32."""
    with unpacked(source) as model, reading(source):
        return read_model(model).rounding


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a source is read into one line that names it.

    Raises:
        ValueError: replaces what the body raised, which becomes its cause.
    """
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{source}: damaged, or not a supported model ({one_line(error)})") from error
    except ValueError as error:
        line = str(error).replace("\n", " ")[:LONGEST_LINE]
        raise ValueError(line if str(source) in line else f"{source}: {line}") from error


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The model as a folder or file; a zipped SavedModel is unpacked to a temporary folder.

    Raises:
        ValueError: there is no such file, or a zip is damaged, holds no or several models, or has entries
            outside its folder.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder, and not one of {', '.join(DETECTORS)}")
    if source.is_dir() or not zipfile.is_zipfile(source) or _starts_with(source, HDF5_MAGIC):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        with reading(source):
            model = _unpack(source, Path(folder))
        yield model


def _unpack(source: Path, folder: Path) -> Path:
    """Unpack a zipped SavedModel; a `.keras` file is read as it is."""
    with zipfile.ZipFile(source) as archive:
        if "config.json" in archive.namelist():
            return source
        _check_entries(archive, source)
        archive.extractall(folder)
    models = [path.parent for path in folder.rglob("saved_model.pb")]
    if len(models) != 1:
        raise ValueError(f"{source}: holds {len(models)} SavedModels (saved_model.pb), needs one")
    return models[0]


def _check_entries(archive: zipfile.ZipFile, source: Path) -> None:
    """Reject entries outside the folder, links, and more bytes than any detector has."""
    for entry in archive.infolist():
        parts = Path(entry.filename.replace("\\", "/")).parts
        if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in entry.filename:
            raise ValueError(
                f"{source}: entry {entry.filename!r} would be written outside its folder: refused"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{source}: entry {entry.filename!r} is a link: refused")
    check_unpacked(archive, source)


def hash_source(source: Path) -> str:
    """SHA-256 of a file, or of a folder's relative file names and contents in order."""
    if source.is_file():
        return hashlib.sha256(source.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(source).as_posix()}\n".encode())
    return digest.hexdigest()


def _published(model: Path) -> PublishedDetector | None:
    """Recognise LAION's own detectors, even unpacked to a folder."""
    graph = model / "saved_model.pb"
    if not graph.is_file():
        return None
    sha256 = hashlib.sha256(graph.read_bytes()).hexdigest()
    return next((known for known in DETECTORS.values() if known.graph_sha256 == sha256), None)


def _output_kind(specs: list[LayerSpec]) -> str:
    """'probability' if the last activation maps to [0, 1], else 'score'."""
    dense = [spec for spec in specs if spec.type == "dense"]
    if not dense or dense[-1].tensors["kernel"].shape[1] != 1:
        units = dense[-1].tensors["kernel"].shape[1] if dense else 0
        raise ValueError(f"the model outputs {units} numbers: a detector outputs one")
    last = specs[-1]
    if last.type == "activation" and last.options["name"] in PROBABILITY_ACTIVATIONS:
        return "probability"
    return "score"
