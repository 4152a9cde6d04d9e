"""One answer of a published data set, whatever its layout, and how each layout is read.

Sources: Pick-a-Pic: its data card, https://huggingface.co/datasets/yuvalkirstain/pickapic_v1. HPDv2: "Data
Structure" of https://github.com/tgxs002/HPSv2. ImageReward: data/test.json of
https://github.com/THUDM/ImageReward, and the data card https://huggingface.co/datasets/THUDM/ImageRewardDB.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_ppo.base.one_line import one_line

PICKAPIC_COLUMNS = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
PICKAPIC_MORE = ("has_label", "user_id", "ranking_id", "best_image_uid", "image_0_uid", "image_1_uid")


@dataclass(frozen=True)
class Row:
    """One answer.

    Args:
        caption: of the pictures.
        pictures: each the bytes of a file, or a path.
        ranks: 1 is best.
        rater: who answered, as far as the data say.
        name: what tells its set from others in the file.
    """

    caption: str
    pictures: tuple[bytes | str, ...]
    ranks: tuple[int, ...]
    rater: str
    name: str


class NoAnswer(ValueError):
    """Raised for a row that holds no answer, or a damaged one."""


def read_rows(path: Path, layout: str) -> Iterator[Row | NoAnswer]:
    """The answers of one file, and an error in place of each row without one.

    Raises:
        ValueError: the file is missing or in another layout.
    """
    if not path.is_file():
        raise ValueError(f"FILE {path} does not exist")
    if layout == "pickapic":
        yield from _pickapic(path)
        return
    reader = {"hpdv2": _hpdv2, "imagereward": _imagereward}[layout]
    yield from reader(_json_list(path), path)


def dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 1 without gaps; the lowest value is best."""
    order = sorted(set(values))
    return tuple(order.index(value) + 1 for value in values)


def _pickapic(path: Path) -> Iterator[Row | NoAnswer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"FILE {path} is not parquet ({' '.join(str(error).split())[:120]})") from None
    with file:
        missing = [name for name in PICKAPIC_COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(
                f"FILE {path} lacks the column {missing[0]} of Pick-a-Pic; is it another layout?"
            )
        columns = [name for name in (*PICKAPIC_COLUMNS, *PICKAPIC_MORE) if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(64, columns=columns):
                for values in batch.to_pylist():
                    yield _pickapic_row(values)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"FILE {path} is damaged ({' '.join(str(error).split())[:120]})") from None


def _pickapic_row(values: Mapping[str, Any]) -> Row | NoAnswer:
    """Labels are 1 and 0, or 0.5 each for a tie; pictures are bytes, or records with `bytes`."""
    pictures = [values["jpg_0"], values["jpg_1"]]
    pictures = [picture.get("bytes") if isinstance(picture, dict) else picture for picture in pictures]
    labels = [values["label_0"], values["label_1"]]
    if values.get("has_label") is False or None in labels:
        return NoAnswer("it has no label")
    if None in pictures or not values["caption"]:
        return NoAnswer("a picture or the caption is missing")
    if not all(map(_is_number, labels)):
        return NoAnswer("a label is no number")
    name = "|".join(str(values.get(key, "")) for key in ("ranking_id", "image_0_uid", "image_1_uid"))
    rater = f"pickapic {values.get('user_id', '')}".strip()
    return _row(values["caption"], tuple(pictures), [-label for label in labels], rater, name)


def _hpdv2(entries: list, path: Path) -> Iterator[Row | NoAnswer]:
    """Training rows have `human_preference`; test rows have `rank`, and every annotator's own."""
    for number, entry in enumerate(entries):
        try:
            pictures = tuple(entry.get("image_path") or entry["file_path"])
            caption, name = entry["prompt"], f"{path.name} {number}"
            given = entry.get("raw_annotations") or entry.get("raw_annotation")
            if given:
                ranks = [(one["rank"], one.get("user_hash", "")) for one in given]
            elif "human_preference" in entry:
                ranks = [([-value for value in entry["human_preference"]], entry.get("user_hash", ""))]
            else:
                ranks = [(entry["rank"], "")]
            for values, user in ranks:
                yield _row(caption, pictures, values, f"hpdv2 {user}".strip(), name)
        except (KeyError, TypeError, AttributeError) as error:
            yield NoAnswer(f"entry {number} is not as in HPDv2 ({one_line(error)})")


def _imagereward(entries: list, path: Path) -> Iterator[Row | NoAnswer]:
    """Rankings with `generations`, or ImageRewardDB's rows with one picture each, grouped by `prompt_id`."""
    grouped: dict[str, list[dict]] = {}
    for number, entry in enumerate(entries):
        try:
            if "generations" in entry:
                name = str(entry.get("prompt_id", entry.get("id", number)))
                pictures = tuple(entry["generations"])
                yield _row(entry["prompt"], pictures, entry["ranking"], "imagereward", name)
            else:
                picture = {key: entry[key] for key in ("prompt", "image_path", "rank")}
                grouped.setdefault(entry["prompt_id"], []).append(picture)
        except (KeyError, TypeError, AttributeError) as error:
            yield NoAnswer(f"entry {number} is not as in ImageReward ({one_line(error)})")
    for name, rows in grouped.items():
        pictures, ranks = tuple(row["image_path"] for row in rows), [row["rank"] for row in rows]
        yield _row(rows[0]["prompt"], pictures, ranks, "imagereward", name)


def _row(caption: str, pictures: tuple, values: Sequence[float], rater: str, name: str) -> Row | NoAnswer:
    """A row, with any numbers of which the lowest is best."""
    if not (len(pictures) == len(values) >= 2 and all(map(_is_number, values))):
        return NoAnswer("it does not have one rank for each of two or more pictures")
    if not (isinstance(caption, str) and all(isinstance(picture, bytes | str) for picture in pictures)):
        return NoAnswer("its caption or a picture is neither text nor a file")
    return Row(caption, pictures, dense_ranks(values), rater, name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _json_list(path: Path) -> list:
    """A JSON list, or JSON Lines."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except RecursionError:
        raise ValueError(f"FILE {path} is not JSON of this kind: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"FILE {path} is not JSON ({one_line(error)})") from None
