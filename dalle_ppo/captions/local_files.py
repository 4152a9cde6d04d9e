"""Caption files on this machine: which of a folder's files are read, and which are left out and why."""

import csv
import glob
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from dalle_ppo.captions.columns import Columns, make_chunk
from dalle_ppo.captions.delimited import read_delimited
from dalle_ppo.captions.json_files import read_json
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.shards import ParquetShard, Shard, TableShard, one_line, with_constants

TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
KINDS = (*TABLES, ".txt")
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
READ = f"{', '.join(KINDS)}; all but parquet also compressed as {', '.join(COMPRESSIONS)}"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
_NO_CAPTIONS = ("readme", "license", "licence", "notice", "changelog", "requirements")


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, and why."""

    file: str
    why: str


@dataclass(frozen=True)
class FoundFiles:
    """What a path, folder or glob names.

    Args:
        files: to be read, in alphabetical order.
        left_out: those that are not.
        root: the folder, if it is one; what lies above it says nothing about a file.
    """

    files: list[Path]
    left_out: list[LeftOut]
    root: Path | None = None


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(source: str) -> FoundFiles:
    """The caption files that a path, folder or glob names.

    Raises:
        ValueError: there is none, or a file that is named outright has a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = _of_folder(path)
    elif path.exists():
        found = FoundFiles([path], [])
    else:
        found = FoundFiles(
            sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()), []
        )
    if not found.files:
        others = f"; left out: {_shown(found.left_out)}" if found.left_out else ""
        raise ValueError(
            f"captions: there are no caption files at {source} (supported: {READ}){others}; write a data set "
            "on the hub as hub:OWNER/NAME, and a source that you added as NAME:REST"
        )
    for file in found.files:
        if kind_of(file) not in KINDS or (kind_of(file) == ".parquet" and file.suffix.lower() != ".parquet"):
            raise ValueError(f"captions: the format of {file} is not supported; convert it to one of {READ}")
    return found


def _shown(left_out: Sequence[LeftOut]) -> str:
    shown = ", ".join(f"{Path(left.file).name} ({left.why})" for left in left_out[:3])
    return shown + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")


def _of_folder(root: Path) -> FoundFiles:
    everything = sorted(path for path in root.rglob("*") if path.is_file())
    images = {path.with_suffix("") for path in everything if path.suffix.lower() in _IMAGES}
    files, left_out = [], []
    for path in everything:
        why = _why_not(path, root)
        if why is None:
            files.append(path)
        elif path.suffix.lower() not in _IMAGES:
            left_out.append(LeftOut(str(path), why))
    left_out += _sidecars(files, images)
    gone = {left.file for left in left_out}
    return FoundFiles([path for path in files if str(path) not in gone], left_out, root)


def _sidecars(files: Sequence[Path], images: Collection[Path]) -> list[LeftOut]:
    """Files that hold one image's caption, where it is read from elsewhere.

    They lie beside the image or, as img2dataset writes them, in the folder 00000 beside 00000.parquet.
    """
    tables = [path for path in files if kind_of(path) in TABLES and kind_of(path) != ".json"]
    folders = {path.with_name(path.name.split(".")[0]) for path in tables}
    own = [
        path
        for path in files
        if kind_of(path) in (".txt", ".json") and (path.with_suffix("") in images or path.parent in folders)
    ]
    texts = {path.with_suffix("") for path in own if kind_of(path) == ".txt"}
    left_out = []
    for path in own:
        if tables:
            left_out.append(LeftOut(str(path), f"is an image's own; captions are read from {tables[0].name}"))
        elif kind_of(path) == ".json" and path.with_suffix("") in texts:
            left_out.append(LeftOut(str(path), "is an image's own; its caption is read from the .txt file"))
    return left_out


def _why_not(path: Path, root: Path) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    if any(part.startswith((".", "_")) for part in path.relative_to(root).parts):
        return "hidden: its name or its folder's begins with . or _"
    if path.name.lower().endswith("_stats.json"):
        return "counts of img2dataset, not captions"
    if path.stem.lower().split(".")[0].split("-")[0] in _NO_CAPTIONS and kind_of(path) in (".txt", ".json"):
        return "by its name no captions"
    if kind_of(path) not in KINDS or (kind_of(path) == ".parquet" and path.suffix.lower() != ".parquet"):
        return f"of a kind that is not read ({path.suffix or 'no suffix'})"
    return None


def partitions(path: Path, root: Path | None) -> dict[str, str | None]:
    """Columns that a path gives, as Hive lays them out: `NSFW=UNSURE/part-0.parquet`."""
    folders = path.relative_to(root).parts[:-1] if root else path.parts[:-1]
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder]
    missing = "__HIVE_DEFAULT_PARTITION__"
    return {unquote(name): None if value == missing else unquote(value) for name, value in pairs}


def open_shard(path: Path, reading: ReadSettings, root: Path | None = None) -> Shard:
    """Open one local file; one that is not parquet is held in memory, its captions and tags only.

    Raises:
        ValueError: the file cannot be read, or a column is missing.
    """
    constants = partitions(path, root)
    if kind_of(path) == ".parquet":
        shard = ParquetShard(str(path), lambda: pa.OSFile(str(path)), reading, constants)
        shard.num_groups()  # a damaged file is better found now than after an hour
        return shard
    readers = {".csv": read_delimited, ".tsv": read_delimited, ".txt": _read_text}
    try:
        values, columns = readers.get(kind_of(path), read_json)(path, read_buffer(path), reading, constants)
        values = with_constants(values, constants, columns)
        return TableShard.of_chunk(str(path), make_chunk(str(path), values, columns, reading), columns)
    except (OSError, pa.ArrowException, UnicodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from error


def read_buffer(path: Path) -> pa.Buffer:
    """The contents of a file, decompressed by what its name says."""
    if path.suffix.lower() in COMPRESSIONS:
        names = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
        with pa.input_stream(str(path), compression=names[path.suffix.lower()]) as stream:
            return pa.py_buffer(stream.read())
    with pa.OSFile(str(path)) as file:
        return file.read_buffer()


def open_files(
    source: str, reading: ReadSettings, on_bad: Callable[[ValueError], None] | None = None
) -> tuple[list[Shard], list[LeftOut]]:
    """Opens the caption files that a path, folder or glob names.

    Args:
        source: the path.
        reading: the settings.
        on_bad: told of a file that cannot be read, which is then left out; None raises.

    Returns:
        Shards, and the files that are left out.

    Raises:
        ValueError: there is no file, or one cannot be read.
    """
    found = find_files(source)
    shards, left_out = [], list(found.left_out)
    named_columns = bool(reading.column or reading.tag_column or reading.where)
    mixed = len({kind_of(path) == ".txt" for path in found.files}) == 2
    for path in found.files:
        if kind_of(path) == ".txt" and named_columns and mixed:
            left_out.append(LeftOut(str(path), "text has no columns, and the settings name some"))
            continue
        try:
            shards.append(open_shard(path, reading, found.root))
        except ValueError as error:
            if kind_of(path) == ".json" and len(found.files) > 1 and found.root:
                left_out.append(LeftOut(str(path), f"no captions in it ({error})"))
            elif on_bad is None:
                raise
            else:
                left_out.append(LeftOut(str(path), str(error)))
                on_bad(error)
    return _without_copies(shards, left_out), left_out


def _without_copies(shards: list[Shard], left_out: list[LeftOut]) -> list[Shard]:
    """Leaves out files that hold what another of the same name, in another format, holds."""
    kept: dict[str, Shard] = {}
    for shard in sorted(shards, key=lambda shard: KINDS.index(kind_of(Path(shard.name)))):
        path = Path(shard.name)
        stem = str(path.with_name(path.name.split(".")[0]))
        other = kept.setdefault(stem, shard)
        if other is not shard:
            if _first_texts(shard) == _first_texts(other) and shard.num_rows == other.num_rows:
                left_out.append(LeftOut(shard.name, f"the same captions as {Path(other.name).name}"))
            else:
                kept[shard.name] = shard
    return sorted(kept.values(), key=lambda shard: shard.name)


def _first_texts(shard: Shard) -> list:
    chunk = next(iter(shard.chunks(0)), None) if shard.num_groups() else None
    return [] if chunk is None else chunk.texts.slice(0, 1000).to_pylist()


def _read_text(
    path: Path, data: pa.Buffer, reading: ReadSettings, constants
) -> tuple[dict[str, pa.Array], Columns]:
    """One caption per line."""
    if reading.column or reading.tag_column or reading.where:
        raise ValueError(
            f"{path}: text files have no columns; leave captions.column, captions.tag_column and "
            "captions.where out"
        )
    lines = data.to_pybytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n").split("\n")
    tag = next((name for name in constants if name.lower() in ("nsfw", "tag")), None)
    return {"text": pa.array([line for line in lines if line.strip()], pa.string())}, Columns("text", tag)
