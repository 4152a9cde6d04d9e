"""Caption files on this machine: which ones are read, and which are left out and why."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dalle_ppo.captions.columns import NoCaptionColumn
from dalle_ppo.captions.open_shard import open_shard
from dalle_ppo.captions.reading import ReadSettings, shown
from dalle_ppo.captions.same_files import place_of
from dalle_ppo.captions.shards import Shard, TableShard, UnreadableShard
from dalle_ppo.captions.suffixes import KINDS, SUPPORTED, TABLES, kind_of, without_suffixes

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
_NO_CAPTIONS = re.compile(r"(readme|licen[sc]e|notice|changelog|requirements)(\.\w+)*", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, and why."""

    file: str
    why: str


@dataclass(frozen=True)
class FoundFiles:
    """What a path, folder or glob names.

    Args:
        files: files to read, in alphabetical order, each with the folder it was found in; None for files that
            were named explicitly.
        left_out: files that are not read.
    """

    files: list[tuple[Path, Path | None]]
    left_out: list[LeftOut]


def find_files(source: str) -> FoundFiles:
    """The caption files that a path, folder or glob names.

    Raises:
        ValueError: there is none, or a file that was named explicitly has an unsupported format.
    """
    path = Path(os.path.expanduser(source))  # leaves ~NAME alone where nobody is called so
    named = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    found = FoundFiles([], [])
    for place in named:
        if place.is_dir():
            files, left_out = _of_folder(place)
            found.files.extend((file, place) for file in files)
            found.left_out.extend(left_out)
        elif kind_of(place):
            found.files.append((place, None))
        else:
            raise ValueError(f"captions: the format of {place} is not supported; convert it to {SUPPORTED}")
    if not found.files:
        raise ValueError(
            f"captions: there are no caption files at {source} (supported: {SUPPORTED})"
            f"{_others(found.left_out)}; a data set on the hub is written hub:OWNER/NAME, and a source "
            "that you added NAME:REST"
        )
    return found


def _others(left_out: Sequence[LeftOut]) -> str:
    """The end of an error message: the first files left out, and why."""
    shown = ", ".join(f"{Path(left.file).name} ({left.why})" for left in left_out[:3])
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"; left out: {shown}{more}" if left_out else ""


def _of_folder(root: Path) -> tuple[list[Path], list[LeftOut]]:
    everything, left_out = _walk(root)
    images = {path.with_suffix("") for path in everything if path.suffix.lower() in _IMAGES}
    files = []
    for path in everything:
        why = _why_not(path, root)
        if why is None:
            files.append(path)
        elif path.suffix.lower() not in _IMAGES:
            left_out.append(LeftOut(str(path), why))
    left_out += _sidecars(files, images, root)
    gone = {left.file for left in left_out}
    return [path for path in files if str(path) not in gone], left_out


def _walk(root: Path) -> tuple[list[Path], list[LeftOut]]:
    """All files below a folder, visiting each folder once and following links; and what cannot be read."""
    files, seen = [], set()
    left_out: list[LeftOut] = []

    def refused(error: OSError) -> None:
        left_out.append(LeftOut(str(error.filename), f"cannot be opened ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refused):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        for name in names:
            path = Path(folder) / name
            if path.is_file():
                files.append(path)
            else:
                left_out.append(LeftOut(str(path), "not a file, or a broken link"))
    return sorted(files), left_out


def _sidecars(files: Sequence[Path], images: Collection[Path], root: Path) -> list[LeftOut]:
    """Files with the caption of a single image that is also read from another file.

    They lie next to the image or, as img2dataset writes them, in the folder 00000 next to 00000.parquet.
    """
    tables = {}
    for path in files:
        if kind_of(path) in TABLES and kind_of(path) != ".json":
            tables.setdefault(path.parent, path)
    folders = {
        without_suffixes(path) for path in files if kind_of(path) == ".parquet" and path.stem.isdecimal()
    }
    own = [
        path
        for path in files
        if kind_of(path) in (".txt", ".json") and (path.with_suffix("") in images or path.parent in folders)
    ]
    texts = {path.with_suffix("") for path in own if kind_of(path) == ".txt"}
    left_out = []
    for path in own:
        table = next((tables[folder] for folder in _folders_up(path, root) if folder in tables), None)
        if table is not None:
            left_out.append(LeftOut(str(path), f"holds one image's caption, which is read from {table.name}"))
        elif kind_of(path) == ".json" and path.with_suffix("") in texts:
            left_out.append(LeftOut(str(path), "holds one image's caption, which is read from the .txt file"))
    return left_out


def _folders_up(path: Path, root: Path) -> Iterator[Path]:
    """The folder of a file and those above it, up to the root."""
    for folder in path.parents:
        yield folder
        if folder == root:
            return


def _why_not(path: Path, root: Path) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    if any(part.startswith((".", "_")) for part in path.relative_to(root).parts):
        return "hidden: its name or its folder's begins with . or _"
    if path.name.lower().endswith("_stats.json"):
        return "img2dataset's statistics, not captions"
    if kind_of(path) in (".txt", ".json") and _NO_CAPTIONS.fullmatch(path.stem):
        return "its name says it holds no captions"
    if not kind_of(path):
        return f"format not supported ({path.suffix or 'no suffix'})"
    return None


def open_files(
    source: str, reading: ReadSettings, on_bad: Callable[[ValueError], None] | None = None
) -> tuple[list[Shard], list[LeftOut]]:
    """Opens the caption files that a path, folder or glob names.

    Args:
        source: the path, folder or glob.
        reading: the settings.
        on_bad: called with the error of a file that cannot be read, which is then left out; None raises.

    Returns:
        Shards, and the files that are left out. A file that cannot be read is among both: positions count
        shards, and a run that it stopped can be resumed without it.

    Raises:
        ValueError: there is no file, one cannot be read, or they hold no rows at all.
    """
    found = find_files(source)
    shards, left_out = [], list(found.left_out)
    mixed = len({kind_of(path) == ".txt" for path, _ in found.files}) == 2
    names_columns = reading.column or reading.tag_column or reading.where or reading.tag_thresholds
    for path, root in found.files:
        if kind_of(path) == ".txt" and mixed and names_columns:
            left_out.append(LeftOut(str(path), "text files have no columns, but the settings name some"))
            continue
        try:
            shards.append(open_shard(path, reading, root))
        except ValueError as error:
            # A folder may hold JSON files about other things.
            about_others = (
                isinstance(error, NoCaptionColumn) and kind_of(path) == ".json" and root is not None
            )
            if about_others:
                left_out.append(LeftOut(str(path), f"holds no captions ({error})"))
                continue
            if on_bad is None:
                raise
            shards.append(UnreadableShard(str(path), str(error)))
            left_out.append(LeftOut(str(path), str(error)))
            on_bad(error)
    if not any(shard.num_rows for shard in shards):
        which = f" that meet captions.where = {shown(reading.where)}" if reading.where else ""
        raise ValueError(
            f"captions: {source} contains no captions{which}{_others(left_out)}; add at least one, or name "
            "another file"
        )
    return _without_copies(shards, left_out), left_out


def _without_copies(shards: list[Shard], left_out: list[LeftOut]) -> list[Shard]:
    """Leaves out files that repeat another of the same name in a different format."""
    kept: dict[Path, list[Shard]] = {}
    for shard in sorted(shards, key=lambda shard: KINDS.index(kind_of(Path(shard.name)))):
        path = Path(shard.name)
        others = kept.setdefault(without_suffixes(path), [])
        same = next((other for other in others if _repeats(shard, other)), None)
        if same is None:
            others.append(shard)
        elif _has_tags(shard) and not _has_tags(same):
            others[others.index(same)] = shard
            left_out.append(LeftOut(same.name, f"the same captions as {path.name}, which has tags too"))
        else:
            left_out.append(LeftOut(shard.name, f"the same captions as {Path(same.name).name}"))
    stay = (shard for others in kept.values() for shard in _without_damaged(others))
    return sorted(stay, key=place_of)


def _without_damaged(shards: list[Shard]) -> list[Shard]:
    """Of files of one name, leaves out those that cannot be read and may be copies of one that can.

    Whether they were copies is not known any more. Most were, and were not read when the position was saved
    that a run now resumes from; or the copy that can be read was not, and takes the place of the other.
    """
    lead = next((shard for shard in shards if not isinstance(shard, UnreadableShard)), shards[0])
    kind = kind_of(Path(lead.name))
    stay = [s for s in shards if not isinstance(s, UnreadableShard) or kind_of(Path(s.name)) == kind]
    if shards[0] not in stay:
        lead.stands_for = shards[0].name
    return stay


def _has_tags(shard: Shard) -> bool:
    return shard.columns is not None and shard.columns.tag is not None


def _repeats(shard: Shard, other: Shard) -> bool:
    """Whether two files in different formats hold the same captions, and tags that do not conflict.

    All rows count, as they are read: a file's own number of rows knows neither conditions nor lists.
    """
    tables = [s for s in (shard, other) if isinstance(s, TableShard)]
    if not tables or kind_of(Path(shard.name)) == kind_of(Path(other.name)):
        return False
    table, read = tables[0], other if tables[0] is shard else shard
    both_tagged, start = _has_tags(shard) == _has_tags(other), 0
    try:
        for chunk in (chunk for group in range(read.num_groups()) for chunk in read.chunks(group)):
            rows = table.rows(start, len(chunk.texts))
            start += len(chunk.texts)
            same = _without_nulls(rows.texts).equals(_without_nulls(chunk.texts))
            if not same or (both_tagged and not rows.tags.equals(chunk.tags)):
                return False
    except ValueError:
        return False  # whoever draws from the file says what is wrong
    return start == table.num_rows


def _without_nulls(texts: pa.Array) -> pa.Array:
    """Texts as CSV holds them: a missing one is empty."""
    return pc.fill_null(texts, "") if pa.types.is_string(texts.type) else texts
