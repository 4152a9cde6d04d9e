"""Caption files."""

import functools
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bad_input.case import Case, cases, text_file

from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import captions_of_file

DEEP = "[" * 100_000 + "]" * 100_000

FILES = {
    "empty text": ("a.txt", "", ("a.txt",)),
    "blank lines": ("a.txt", "\n \n\n", ("a.txt",)),
    "text in UTF-16": ("a.txt", "a boat\n".encode("utf-16"), ("a.txt", "UTF-16")),
    "text that is a table": ("a.txt", "url\tcaption\nx\ta boat\n", ("a.txt", ".tsv")),
    "a picture": ("a.png", b"\x89PNG\r\n", ("a.png", "not supported")),
    "json that is cut": ("a.json", '[{"text": "a boat"', ("a.json", "line 1")),
    "json that is a number": ("a.json", "3", ("a.json", "list of objects")),
    "json with a number in the list": ("a.json", "[3]", ("a.json", "row 1")),
    "json, nested deeply": ("a.json", DEEP, ("a.json", "nested too deeply")),
    "json lines, nested deeply": ("a.jsonl", DEEP, ("a.jsonl", "line 1", "nested too deeply")),
    "json, objects nested deeply": (
        "a.json",
        '{"text":' * 50_000 + "1" + "}" * 50_000,
        ("a.json", "nested too deeply"),
    ),
    "json with a number of 5000 digits": (
        "a.jsonl",
        f'{{"text": {"9" * 5000}}}',
        ("a.jsonl", "line 1", "digits"),
    ),
    "json document with such a number": ("a.json", f'[{{"text": {"9" * 5000}}}]', ("a.json", "digits")),
    "json lines that are cut": ("a.jsonl", '{"text": "a"}\n{"text"', ("a.jsonl", "line 2")),
    "json lines of lists": ("a.jsonl", "[1]\n", ("a.jsonl", "line 1", "object")),
    "json lines of numbers": ("a.jsonl", '{"text": 3}\n', ("a.jsonl", "line 1", "text")),
    "json without captions": ("a.jsonl", '{"x": "a"}\n', ("a.jsonl", "captions.column")),
    "json that is not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', ("a.jsonl",)),
    "json tags that are lists": ("a.jsonl", '{"text": "a", "NSFW": ["x"]}\n', ("a.jsonl", "NSFW")),
    "csv, empty": ("a.csv", "", ("a.csv",)),
    "csv without captions": ("a.csv", "x,y\n1,2\n", ("a.csv", "captions.column")),
    "csv, uneven": ("a.csv", "text,b\nx\n", ("a.csv",)),
    "csv with a column twice": ("a.csv", "text,text\na,b\n", ("a.csv", "2 columns called 'text'")),
    "csv by semicolons": ("a.csv", "url;text\nx;a\n", ("a.csv", "only commas")),
    "csv with an open quote": ("a.csv", 'text,b\n"a,1\nb,2\nc,3\n', ("a.csv",)),
    "tsv with doubtful quotes": ("a.tsv", 'text\tb\n"a""b"\t1\n"c\t2\n', ("a.tsv", "captions.quoting")),
    "gzip that is not": ("a.txt.gz", "a boat\n", ("a.txt.gz", "cannot be read")),
    "gzip that is cut": ("a.jsonl.gz", gzip.compress(b'{"text": "a boat"}\n' * 99)[:30], ("a.jsonl.gz",)),
    "gzip under another name": ("a.txt", gzip.compress(b"a boat\n"), ("a.txt", ".gz")),
    "gzip that unpacks to too much": (
        "a.txt.gz",
        gzip.compress(b"a boat\n" * (10 << 20), 1),
        ("a.txt.gz", "unpacks to more than"),
    ),
    "zstd that is not": ("a.jsonl.zst", "text", ("a.jsonl.zst", "cannot be read")),
    "lz4 that is not": ("a.jsonl.lz4", "text", ("a.jsonl.lz4", "cannot be read")),
    "bzip2 that is not": ("a.jsonl.bz2", "text", ("a.jsonl.bz2", "cannot be read")),
    "parquet that is not": ("a.parquet", "PAR1 text PAR1", ("a.parquet",)),
    "parquet, empty": ("a.parquet", "", ("a.parquet",)),
    "parquet under another name": ("a.jsonl", b"PAR1....", ("a.jsonl", "must end in .parquet")),
    "parquet with a huge footer": ("a.parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1", ("a.parquet",)),
}

SETTINGS = {
    "a column that is not there": ({"column": "nothing"}, ("captions.column", "nothing")),
    "a tag column that is not there": ({"tag_column": "nothing"}, ("captions.tag_column", "nothing")),
    "a condition on nothing": ({"where": "nothing > 1"}, ("captions.where", "nothing")),
    "a condition on text as a number": ({"where": "text > 1"}, ("a.csv", "captions.where")),
    "a field of nothing": ({"column": "text.inner"}, ("a.csv", "text")),
    "thresholds without scores": ({"tag_thresholds": {"NSFW": 0.5}}, ("a.csv", "captions.tag_thresholds")),
}


def read(name: str, content: str | bytes, folder: Path) -> object:
    return captions_of_file(str(text_file(folder / name, content)), 5)


def read_with(settings: dict, folder: Path) -> object:
    file = text_file(folder / "a.csv", "text,b\na boat,1\n")
    return captions_of_file(str(file), 5, ReadSettings(**settings))


def of_table(columns: dict, folder: Path) -> object:
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return captions_of_file(str(folder / "a.parquet"), 5)


def many_rows_of_nothing(folder: Path) -> object:
    pq.write_table(
        pa.table({"text": pa.nulls(3 << 20, pa.string())}), folder / "a.parquet", row_group_size=4 << 20
    )
    return captions_of_file(str(folder / "a.parquet"), 5)


def cut_parquet(folder: Path) -> object:
    pq.write_table(pa.table({"text": ["a boat"] * 99}), folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[: len(content) // 2])
    return captions_of_file(str(folder / "a.parquet"), 5)


def empty_folder(folder: Path) -> object:
    (folder / "captions").mkdir()
    return captions_of_file(str(folder / "captions"), 5)


CASES: list[Case] = (
    cases("captions", [(n, functools.partial(read, *f[:2]), f[2]) for n, f in FILES.items()])
    + cases("captions", [(n, functools.partial(read_with, s), words) for n, (s, words) in SETTINGS.items()])
    + cases(
        "captions",
        [
            (
                "nothing there",
                lambda folder: captions_of_file(str(folder / "a.txt"), 5),
                ("a.txt", "supported"),
            ),
            ("an empty folder", empty_folder, ("captions", "supported")),
            ("a source nobody knows", lambda folder: captions_of_file("hup:x", 5), ("hup", "hub:")),
            ("a source with a path", lambda folder: captions_of_file("../hub:x", 5), ("../hub:x",)),
            ("parquet of numbers", functools.partial(of_table, {"text": [1, 2]}), ("a.parquet", "int64")),
            (
                "parquet without captions",
                functools.partial(of_table, {"x": ["a"]}),
                ("a.parquet", "captions.column"),
            ),
            ("parquet that is cut", cut_parquet, ("a.parquet",)),
            ("parquet that claims many rows", many_rows_of_nothing, ("a.parquet", "rows")),
        ],
    )
)
