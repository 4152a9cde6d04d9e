"""Writes a store's answers to a file: all fields as parquet, or a published layout."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.new_file import check_new_file
from dalle_ppo.preferences.store import Answer, Store

TYPES = {
    "images": pa.list_(pa.string()),
    "ranks": pa.list_(pa.int64()),
    "ratings": pa.list_(pa.float64()),
    "harm": pa.list_(pa.float64()),
    "all_bad": pa.bool_(),
    "seconds": pa.float64(),
    "round": pa.int64(),
}
"""Columns that do not hold text."""
PICKAPIC = {
    "caption": pa.string(),
    "jpg_0": pa.binary(),
    "jpg_1": pa.binary(),
    "label_0": pa.float64(),
    "label_1": pa.float64(),
    "has_label": pa.bool_(),
    "are_different": pa.bool_(),
    "best_image_uid": pa.string(),
    "image_0_uid": pa.string(),
    "image_1_uid": pa.string(),
    "ranking_id": pa.int64(),
    "user_id": pa.int64(),
    "created_at": pa.string(),
}


def export_store(store: Store, layout: str, out: Path) -> str:
    """Writes a new file, and for JSON a folder of pictures beside it.

    Args:
        store: with answers; those taken back are left out.
        layout: "parquet", "pickapic", "hpdv2" or "imagereward".
        out: ends in .parquet or .json, as the layout needs.

    Returns:
        A line that says what was written.

    Raises:
        ValueError: `out` exists or has the wrong suffix, or there is nothing to write.
    """
    suffix = ".parquet" if layout in ("parquet", "pickapic") else ".json"
    if out.suffix != suffix:
        raise ValueError(f"OUT is {out}; for the layout {layout} its name must end in {suffix}")
    check_new_file("OUT", out, suffix, _pictures(out))
    answers = store.answers()
    if layout != "parquet":
        answers = [answer for answer in answers if answer.kind == "ranking" and _is_whole(answer, store)]
    if not answers:
        raise ValueError(
            f"{store.folder} has no answers for the layout {layout}, so there is nothing to write"
        )
    count = WRITERS[layout](answers, store, out)
    return f"wrote {out}: {count} rows"


def _parquet(answers: list[Answer], store: Store, out: Path) -> int:
    """One row for each answer, and for each of its pictures what is known of it."""
    schema = pa.schema([(f.name, TYPES.get(f.name, pa.string())) for f in fields(Answer)])
    schema = schema.append(pa.field("sides", pa.list_(pa.string())))
    schema = schema.append(pa.field("weights", pa.list_(pa.string())))
    schema = schema.append(pa.field("flagged", pa.list_(pa.bool_())))
    images = store.images()
    rows = []
    for answer in answers:
        known = [images.get(key) for key in answer.images]
        rows.append(
            asdict(answer)
            | {
                "sides": [image and image.side for image in known],
                "weights": [image and image.weights for image in known],
                "flagged": [image and image.flagged for image in known],
            }
        )
    table = pa.Table.from_pylist(rows, schema=schema)
    atomic_write(out, lambda new: pq.write_table(table, new))
    return len(rows)


def _pickapic(answers: list[Answer], store: Store, out: Path) -> int:
    """One row for each pair that a ranking implies, ties too; `jpg_0` and `jpg_1` hold PNG files."""
    users = {rater: number for number, rater in enumerate(sorted({answer.rater for answer in answers}))}
    schema, count = pa.schema(list(PICKAPIC.items())), 0

    def write(new: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(new, schema) as writer:
            for number, answer in enumerate(answers):
                rows = [_pickapic_row(answer, i, j, store) for i, j in _places(answer)]
                rows = [row | {"ranking_id": number, "user_id": users[answer.rater]} for row in rows]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                count += len(rows)

    atomic_write(out, write)
    return count


def _pickapic_row(answer: Answer, i: int, j: int, store: Store) -> dict[str, Any]:
    first, second = answer.ranks[i], answer.ranks[j]
    label = 0.5 if first == second else float(first < second)
    keys = answer.images[i], answer.images[j]
    return {
        "caption": answer.caption,
        "jpg_0": store.image_path(keys[0]).read_bytes(),
        "jpg_1": store.image_path(keys[1]).read_bytes(),
        "label_0": label,
        "label_1": 1 - label,
        "has_label": True,
        "are_different": True,
        "best_image_uid": None if label == 0.5 else keys[0] if label else keys[1],
        "image_0_uid": keys[0],
        "image_1_uid": keys[1],
        "created_at": answer.time,
    }


def _places(answer: Answer) -> list[tuple[int, int]]:
    n = len(answer.images)
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def _hpdv2(answers: list[Answer], store: Store, out: Path) -> int:
    """As `test.json`: each answer is an entry with the raw annotation of one rater."""
    entries = [
        {
            "prompt": answer.caption,
            "image_path": [f"{_pictures(out).name}/{key}.png" for key in answer.images],
            "rank": list(answer.ranks),
            "raw_annotations": [{"rank": list(answer.ranks), "user_hash": answer.rater}],
        }
        for answer in answers
    ]
    return _write_json(entries, answers, store, out)


def _imagereward(answers: list[Answer], store: Store, out: Path) -> int:
    """Rankings as in data/test.json."""
    entries = [
        {
            "id": answer.set_id + "-" + answer.id[:8],
            "prompt": answer.caption,
            "generations": [f"{_pictures(out).name}/{key}.png" for key in answer.images],
            "ranking": list(answer.ranks),
        }
        for answer in answers
    ]
    return _write_json(entries, answers, store, out)


def _write_json(entries: list[dict], answers: list[Answer], store: Store, out: Path) -> int:
    """The pictures first: a file is there only if they all are."""
    _pictures(out).mkdir()
    for key in sorted({key for answer in answers for key in answer.images}):
        shutil.copyfile(store.image_path(key), _pictures(out) / f"{key}.png")
    atomic_write(out, json.dumps(entries, ensure_ascii=False, indent=1))
    return len(entries)


def _pictures(out: Path) -> Path:
    return out.with_name(out.stem + "_images")


def _is_whole(answer: Answer, store: Store) -> bool:
    return all(store.image_path(key).is_file() for key in answer.images)


WRITERS: dict[str, Callable[[list[Answer], Store, Path], int]] = {
    "parquet": _parquet,
    "pickapic": _pickapic,
    "hpdv2": _hpdv2,
    "imagereward": _imagereward,
}
