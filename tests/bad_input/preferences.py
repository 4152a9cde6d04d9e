"""Preference stores, their rows and pictures, and imports of files."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bad_input.case import Case, cases, text_file
from bad_input.weights import INFO, head

from dalle_ppo.models.heads.preference import load_preference
from dalle_ppo.preferences.answer import Answer
from dalle_ppo.preferences.layouts.importing import Bringing, import_files
from dalle_ppo.preferences.reward_model.data import find_answers, split
from dalle_ppo.preferences.store import Store, find_store

KEYS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(2)]
DEEP = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5000
ROW = asdict(Answer("a boat", tuple(KEYS), "ranking", "ann", "person", "set", ranks=(1, 2)))
PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def answers_of(text: str | bytes) -> Callable[[Path], object]:
    """Learning from a store whose file of answers is this."""

    def run(folder: Path) -> object:
        text_file(folder / "answers.jsonl", text)
        return find_answers(find_store(folder))

    return run


def row(**changes: object) -> Callable[[Path], object]:
    """Learning from one row, changed."""
    return answers_of(json.dumps(ROW | changes) + "\n")


def append(store: Store) -> None:
    try:
        store.append(Answer(**ROW))
    except OSError as error:  # the command prints it as it does a ValueError
        raise ValueError(str(error)) from None


def file_in_place(folder: Path) -> object:
    """A store whose folder is a file."""
    text_file(folder / "preferences", "mine")
    return append(Store(folder / "preferences"))


def answers_are_a_folder(folder: Path) -> object:
    (folder / "answers.jsonl").mkdir()
    return find_store(folder)


def images_outside(folder: Path) -> object:
    return Store(folder).image_path("../../etc/passwd")


def no_picture(folder: Path) -> object:
    return Store(folder).add_image(b"GIF89a", "a boat")


def few_captions(folder: Path) -> object:
    """Answers about one caption, whose pictures are there."""
    from dalle_ppo.preferences.reward_model.data import Rankings

    text_file(folder / "answers.jsonl", json.dumps(ROW) + "\n")
    index, ranks = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    return split(Rankings(torch.zeros(2, 3), index, ranks, ("a boat",)))


def pictures(content: bytes) -> Callable[[Path], object]:
    """Learning from two pictures that are this."""

    def run(folder: Path) -> object:
        from toy_preferences import toy_clip

        from dalle_ppo.preferences.reward_model.data import embed

        store = Store(folder)
        keys = [store.add_image(content + bytes([n]), "a boat") for n in range(2)]
        store.append(Answer(**ROW | {"images": keys}))
        return embed(store, find_answers(store).answers, toy_clip())

    return run


def moved(folder: Path) -> object:
    store = Store(folder / "preferences")
    store.append(Answer(**ROW))
    os.rename(folder / "preferences", folder / "moved")
    return append(store)


STORES = [
    ("no folder", lambda folder: find_store(folder / "nowhere"), ("nowhere", "dalle_ppo.label")),
    ("an empty folder", find_store, ("answers.jsonl", "dalle_ppo.label")),
    ("an empty store", answers_of(""), ("holds no rankings yet", "dalle_ppo.label")),
    ("a folder that is a file", file_in_place, ("preferences", "is a file")),
    ("answers that are a folder", answers_are_a_folder, ("answers.jsonl",)),
    ("a torn row", answers_of(json.dumps(ROW)[:50]), ("holds no rankings yet",)),
    ("rows that are not UTF-8", answers_of(b"\xff\xfe\n" * 3), ("holds no rankings yet",)),
    ("a row nested deeply", answers_of(DEEP + "\n"), ("holds no rankings yet",)),
    ("a number of 5000 digits", answers_of(f'{{"ranks": [{DIGITS}, 1]}}\n'), ("holds no rankings yet",)),
    ("a row that is a list", answers_of("[1, 2]\n"), ("holds no rankings yet",)),
    ("a row that is null", answers_of("null\n"), ("holds no rankings yet",)),
    ("rows of NUL bytes", answers_of(b"\0" * 4096), ("holds no rankings yet",)),
    ("an unknown field", row(from_the_future=1), ("holds no rankings yet",)),
    ("a field that lacks", answers_of('{"caption": "a boat"}\n'), ("holds no rankings yet",)),
    ("images that are a number", row(images=3), ("holds no rankings yet",)),
    ("images that are no keys", row(images=["../../etc/passwd", KEYS[0]]), ("holds no rankings yet",)),
    ("a caption that is a number", row(caption=3), ("holds no rankings yet",)),
    ("a caption that is a list", row(caption=["a boat"]), ("holds no rankings yet",)),
    ("a rater that is a number", row(rater=3), ("holds no rankings yet",)),
    ("a set_id that is a list", row(set_id=[]), ("holds no rankings yet",)),
    ("an id that is a list", row(id=[]), ("holds no rankings yet",)),
    ("a kind that is a list", row(kind=["ranking"]), ("holds no rankings yet",)),
    ("an undo of a list", row(kind="undo", ranks=None, undoes=[1]), ("holds no rankings yet",)),
    ("ranks that are text", row(ranks=["1", "2"]), ("holds no rankings yet",)),
    ("ranks that are NaN", row(ranks=[float("nan"), 1]), ("holds no rankings yet",)),
    ("ranks beyond int64", row(ranks=[1, 10**400]), ("holds no rankings yet",)),
    ("a rank too few", row(ranks=[1]), ("holds no rankings yet",)),
    (
        "ratings of NaN",
        row(kind="rating", ranks=None, ratings=[float("nan"), 1.0]),
        ("holds no rankings yet",),
    ),
    ("harm beyond all numbers", row(harm=[float("inf"), 0]), ("holds no rankings yet",)),
    ("a time that is negative", row(seconds=-1), ("holds no rankings yet",)),
    ("seconds that are text", row(seconds="long"), ("holds no rankings yet",)),
    ("pictures that are gone", row(), ("nothing to learn from", "2 picture files are gone")),
    ("pictures that are none", pictures(PICTURE), ("nothing to learn from", "cannot be read")),
    ("a picture that is no PNG", no_picture, ("not a PNG", "convert")),
    ("a key that leads outside", images_outside, ("SHA-256",)),
    ("one caption", few_captions, ("captions", "label more")),
    ("a store that is moved", moved, ("preferences", "moved or removed", "start the command again")),
]


def imported(layout: str, content: str | bytes, name: str = "a.json") -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = text_file(folder / name, content)
        return import_files([path], Store(folder / "preferences"), Bringing(layout))

    return run


def parquet(**columns: list) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return import_files([folder / "a.parquet"], Store(folder / "preferences"), Bringing("pickapic"))

    return run


def no_file(folder: Path) -> object:
    return import_files([folder / "nowhere.json"], Store(folder / "preferences"), Bringing("hpdv2"))


def damaged_parquet(folder: Path) -> object:
    """A parquet file whose footer is right and whose pages are not."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({k: v * 2000 for k, v in PAIR.items()}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    return import_files([path], Store(folder / "preferences"), Bringing("pickapic"))


PAIR = {"caption": ["a"], "jpg_0": [b"x"], "jpg_1": [b"y"], "label_0": [1.0], "label_1": [0.0]}
HPD = {"prompt": "a", "image_path": ["1.jpg", "2.jpg"], "rank": [1, 2]}
IMPORTS = [
    ("no file", no_file, ("nowhere.json", "does not exist")),
    ("an empty file", imported("hpdv2", ""), ("a.json", "no rows")),
    ("JSON that is cut", imported("hpdv2", '[{"prompt": "a"'), ("a.json", "not JSON")),
    ("JSON nested deeply", imported("hpdv2", DEEP), ("a.json",)),
    ("JSON Lines nested deeply", imported("imagereward", '{"a":' * 99_999), ("a.json",)),
    ("a number of 5000 digits", imported("hpdv2", f"[{DIGITS}]"), ("a.json",)),
    ("text that is not UTF-8", imported("hpdv2", b"\xff\xfe["), ("a.json",)),
    ("a list of numbers", imported("hpdv2", "[1, 2]"), ("a.json", "HPDv2")),
    ("one object", imported("imagereward", '{"a": 1}'), ("a.json", "ImageReward")),
    ("another layout", imported("imagereward", json.dumps([HPD])), ("a.json", "ImageReward")),
    ("pictures that are numbers", imported("hpdv2", json.dumps([HPD | {"image_path": [1, 2]}])), ("a.json",)),
    ("pictures that are gone", imported("hpdv2", json.dumps([HPD])), ("a.json", "1.jpg")),
    (
        "pictures outside",
        imported("hpdv2", json.dumps([HPD | {"image_path": ["../x", "/etc/passwd"]}])),
        ("leads out",),
    ),
    ("a NUL in a path", imported("hpdv2", json.dumps([HPD | {"image_path": ["a\0", "b"]}])), ("a.json",)),
    (
        "ranks of NaN",
        imported("hpdv2", '[{"prompt": "a", "image_path": ["1", "2"], "rank": [NaN, 1]}]'),
        ("a.json",),
    ),
    (
        "a prompt_id that is a list",
        imported(
            "imagereward", json.dumps([{"prompt_id": [1], "prompt": "a", "image_path": "x", "rank": 1}])
        ),
        ("a.json",),
    ),
    (
        "a picture without its path",
        imported("imagereward", '[{"prompt_id": null}]'),
        ("a.json", "ImageReward"),
    ),
    ("JSON for parquet", imported("pickapic", "[]"), ("a.json", "parquet")),
    ("parquet for JSON", imported("hpdv2", b"PAR1\x15\x04\xff"), ("a.json",)),
    ("parquet without pictures", parquet(caption=["a"]), ("a.parquet", "jpg_0")),
    ("parquet that is damaged", damaged_parquet, ("a.parquet",)),
    ("parquet with pictures that are none", parquet(**PAIR), ("a.parquet", "cannot be read")),
    ("parquet with labels of NaN", parquet(**PAIR | {"label_0": [float("nan")]}), ("a.parquet",)),
    ("parquet with labels that are text", parquet(**PAIR | {"label_0": ["yes"]}), ("a.parquet",)),
    ("parquet with pictures that are numbers", parquet(**PAIR | {"jpg_0": [3]}), ("a.parquet",)),
    ("parquet with captions that are numbers", parquet(**PAIR | {"caption": [3]}), ("a.parquet",)),
]


PREFERENCE = INFO | {"output": "preference"}
SCORES = {"0.kernel": torch.zeros(12, 2)}
LAYER = [{"type": "dense"}]


def bind(path: Path) -> object:
    """Uses a reward model with a CLIP that is not its own."""
    from toy_preferences import toy_clip

    from dalle_ppo.models.heads.binding import bind_clip

    return bind_clip(load_preference(path), toy_clip())


REWARD_MODELS = [
    ("not there", lambda folder: load_preference(folder / "m.safetensors"), ("m.safetensors",)),
    (
        "a detector",
        head({"0.kernel": torch.zeros(4, 1)}, use=load_preference),
        ("h.safetensors", "probability"),
    ),
    (
        "narrower than its CLIP",
        head({"0.kernel": torch.zeros(4, 2)}, LAYER, PREFERENCE, load_preference),
        ("h.safetensors", "fit"),
    ),
    ("of another CLIP", head(SCORES, LAYER, PREFERENCE, bind), ("ViT-B-32",)),
]

CASES: list[Case] = [
    *cases("store", STORES),
    *cases("import", IMPORTS),
    *cases("reward model", REWARD_MODELS),
]
