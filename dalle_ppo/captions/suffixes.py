"""The suffixes of caption files, which say how captions are read from them."""

from pathlib import Path

TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
KINDS = (*TABLES, ".txt")
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
SUPPORTED = f"{', '.join(KINDS)}; all but parquet also compressed as {', '.join(COMPRESSIONS)}"


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, ignoring a compression's; empty if it is not supported."""
    stem, compressed = path, path.suffix.lower() in COMPRESSIONS
    if compressed:
        stem = path.with_suffix("")
    kind = stem.suffix.lower()
    return kind if kind in KINDS and not (compressed and kind == ".parquet") else ""


def without_suffixes(path: Path) -> Path:
    """The path without the suffixes that `kind_of` reads."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).with_suffix("")
