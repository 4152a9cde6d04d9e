"""Fuzzes the readers of files that may come from strangers.

    python benchmarks/fuzz.py --minutes 10
    python benchmarks/fuzz.py --minutes 10 --atheris --only jsonl

Each reader gets files that hypothesis makes: noise, and valid files with bytes changed, cut or repeated. It
must accept the file or raise a one-line ValueError, within 5 s and 1 GB, and leave nothing behind but what it
was asked to write. Needs the extra [test]. With `--atheris`, that package chooses the files of one reader by
which lines of dalle_ppo they reach.
"""

import gzip
import hashlib
import io
import json
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dalle_ppo.config.command_line import OneLineParser, run_main

SECONDS, BYTES = 5.0, 1 << 30
NAMES = (
    *("config", "jsonl", "json", "csv", "tsv", "txt", "gzip", "parquet", "checkpoint", "head", "safetensors"),
    *("keras", "h5", "clip", "answers", "rankings"),
)
SPLIT, LISTED = b"\0the listed file\0", "out.safetensors"
"""Stands between a checkpoint's `state.json` and the file that it lists, which `check` knows by this name."""
FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "keras"


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: the file's name, whose suffix may matter.
        contents: makes its content.
        read: reads the file.
    """

    name: str
    contents: st.SearchStrategy[bytes]
    read: Callable[[Path], object]


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with up to eight places overwritten, cut out or repeated."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("set", "insert", "cut", "repeat", "end")))
        if kind == "set":
            new = draw(st.binary(min_size=1, max_size=8))
            content[place : place + len(new)] = new
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 64))]
        elif kind == "repeat":
            content[place:place] = content[place : place + 64] * draw(st.integers(1, 4))
        else:
            del content[place:]
    return bytes(content)


def json_like(leaves: st.SearchStrategy) -> st.SearchStrategy:
    """Nested lists and mappings."""

    def inner(children: st.SearchStrategy) -> st.SearchStrategy:
        return st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children)

    return st.recursive(leaves, inner, max_leaves=12)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)


def as_json(values: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


def config_texts() -> st.SearchStrategy[bytes]:
    """Settings files: known names with odd values, most with the number of the format; and damaged YAML."""
    from dalle_ppo.base.run_format import FORMAT
    from dalle_ppo.config.command_line import to_yaml
    from dalle_ppo.config.sections import all_sections, setting_names
    from dalle_ppo.config.settings import Config
    from dalle_ppo.config.term import term_names

    odd = json_like(LEAVES)
    usual = st.sampled_from((0, 1, 0.5, True, "none", "builtin", {"UNLIKELY": 1.0}))
    term = st.dictionaries(st.sampled_from(("weight", "only_if", "target", "detector")), usual | odd)
    named = st.builds(lambda found, name: {**found, "name": name}, term, st.sampled_from(term_names()) | odd)
    values = usual | odd
    terms = st.lists(named, min_size=1, max_size=3).map(lambda found: {"reward": {"terms": found}})
    dotted = st.dictionaries(st.sampled_from([*setting_names(), "class_path", "config"]), values, max_size=3)

    def nested(section: str, record: type) -> st.SearchStrategy[dict]:
        names = st.sampled_from([f.name for f in fields(record)])
        given = st.dictionaries(names, values, min_size=1, max_size=3)
        return given.map(lambda found: {section: found} if section else found)

    sections = [nested(section, record) for section, record in all_sections() if fields(record)]
    bare = st.one_of(*sections) | dotted | terms
    numbered = bare.map(lambda found: {**found, "format": FORMAT})
    damaged_text, text = damaged(to_yaml(Config()).encode()), st.text(max_size=80).map(str.encode)
    return st.one_of(*[as_json(numbered)] * 4, as_json(bare), damaged_text, text)


def header_texts() -> st.SearchStrategy[bytes]:
    """safetensors headers that look right, with numbers that may be wrong, and some bytes after them."""
    numbers = st.integers(-2, 70) | st.integers(0, 2**63)
    tensor = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(("F32", "I64", "BOOL", "F8_E4M3", "X")),
            "shape": st.lists(numbers, max_size=4),
            "data_offsets": st.lists(numbers, min_size=2, max_size=2),
        }
    )
    headers = st.dictionaries(
        st.sampled_from(("weight", "bias", "__metadata__", "0.kernel")), tensor | LEAVES
    )

    def pack(header: dict, data: bytes, more: int) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", max(0, len(text) + more)) + text + data

    return st.builds(pack, headers, st.binary(max_size=80), st.sampled_from((0, 0, 0, 1, -1, 1 << 40)))


def valid_head() -> bytes:
    import torch
    from safetensors.torch import save

    from dalle_ppo.models.heads.nsfw import FORMAT

    info = {"clip_model": "a", "clip_pretrained": "b", "dimension": 4, "output": "probability"}
    layers = [{"type": "dense"}, {"type": "activation", "name": "sigmoid"}]
    described = {"format": FORMAT, "layers": json.dumps(layers), "info": json.dumps(info)}
    return save({"0.kernel": torch.zeros(4, 1), "0.bias": torch.zeros(1)}, described)


@st.composite
def checkpoint_texts(draw: st.DrawFn) -> bytes:
    """A state.json whose hash is right, and after `SPLIT` the content of the file that it may list."""
    from dalle_ppo.base.run_format import FORMAT
    from dalle_ppo.runs.checkpoints import _content_hash

    odd = json_like(LEAVES)
    tensors = draw(header_texts() | damaged(valid_head()) | st.just(valid_head()) | st.binary(max_size=80))
    right = {"bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()}
    names = st.sampled_from((LISTED, "more.safetensors", "../a.safetensors", "a.bin")) | st.text(max_size=8)
    wrong = st.dictionaries(st.sampled_from(("bytes", "sha256")), st.integers() | odd)
    files = st.dictionaries(names, wrong.map(lambda changed: right | changed) | odd, max_size=2) | odd
    content = {"format": FORMAT, "iteration": 1, "files": {LISTED: right}, "state": {"a": 1}}
    odds = {"format": odd, "iteration": st.integers(-1, 3) | odd, "files": files, "state": odd}
    content |= {name: draw(odds[name]) for name in draw(st.lists(st.sampled_from([*odds]), max_size=2))}
    content["sha256"] = _content_hash(content)
    return json.dumps(content).encode() + SPLIT + tensors


def valid_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"TEXT": ["a red boat", None] * 20, "NSFW": ["NSFW", "UNSURE"] * 20}), out)
    return out.getvalue()


def gzip_files() -> st.SearchStrategy[bytes]:
    """Captions and noise in gzip, some of them damaged, and noise that is no gzip."""
    table = gzip.compress(b"a red boat\na blue car\n" * 20, mtime=0)
    content = st.text(max_size=200).map(str.encode) | st.binary(max_size=200)
    return content.map(gzip.compress) | damaged(table) | st.binary(max_size=80)


def keras_zips() -> st.SearchStrategy[bytes]:
    """`.keras` files whose configuration is any JSON, beside damaged ones."""

    def pack(config: object) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("metadata.json", "{}")
            archive.writestr(
                "model.weights.h5", zipfile.ZipFile(FIXTURES / "keras3.keras").read("model.weights.h5")
            )
        return out.getvalue()

    names = st.sampled_from(("class_name", "config", "layers", "name", "module", "inbound_nodes", "units"))
    words = st.sampled_from(("Sequential", "Functional", "Dense", "InputLayer", "keras", "a")) | LEAVES
    trees = st.recursive(
        words, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner), max_leaves=20
    )
    return st.builds(pack, trees) | damaged((FIXTURES / "keras3.keras").read_bytes())


def valid_answer() -> bytes:
    from dataclasses import asdict

    from dalle_ppo.preferences.answer import Answer

    keys = ("0" * 64, "1" * 64)
    answer = Answer(
        "a boat", keys, "ranking", "ann", "person", "s", ranks=(1, 2), harm=(0.5, 1), id="x", time="now"
    )
    return json.dumps(asdict(answer)).encode() + b"\n"


def answer_rows() -> st.SearchStrategy[bytes]:
    """Rows of a store: answers of which some fields are anything, and damaged ones."""
    valid = json.loads(valid_answer())
    changes = st.dictionaries(st.sampled_from([*valid, "new"]), json_like(LEAVES), max_size=3)
    rows = st.lists(changes.map(lambda changed: json.dumps(valid | changed)), max_size=4)
    return rows.map(lambda found: "\n".join(found).encode()) | damaged(valid_answer())


def published_rankings() -> st.SearchStrategy[bytes]:
    """Entries of HPDv2 and ImageReward in which anything may be wrong."""
    words = ("prompt", "image_path", "rank", "raw_annotations", "human_preference", "generations", "ranking")
    values = st.lists(st.integers(1, 4) | LEAVES, max_size=3) | json_like(LEAVES)
    entries = st.dictionaries(st.sampled_from((*words, "prompt_id", "id", "file_path")), values)
    return as_json(st.lists(entries, max_size=4))


def read_checkpoint(path: Path) -> object:
    """Loads a checkpoint whose `state.json` may be followed by the file that it lists."""
    from dalle_ppo.runs.checkpoints import load_checkpoint

    state, split, tensors = path.read_bytes().partition(SPLIT)
    if split:
        path.write_bytes(state)
        path.with_name(LISTED).write_bytes(tensors)
    return load_checkpoint(path.parent)


def make_targets() -> dict[str, Target]:
    """All readers by name."""
    import torch

    from dalle_ppo.captions.source import captions_of_file
    from dalle_ppo.config.command_line import load_config
    from dalle_ppo.models.clip_config import read_clip_config
    from dalle_ppo.models.dalle.weights import load_weights
    from dalle_ppo.models.heads.keras.convert import convert
    from dalle_ppo.models.heads.nsfw import load_detector
    from dalle_ppo.preferences.layouts.rows import read_rows
    from dalle_ppo.preferences.reward_model.data import find_answers
    from dalle_ppo.preferences.store import Store

    def weights(path: Path) -> object:
        with torch.device("meta"):
            network = torch.nn.Linear(4, 4)
        return load_weights(network, path)

    def keras(path: Path) -> object:
        return convert(path, path.with_name(LISTED))

    def answers(path: Path) -> object:
        Store(path.parent).report()
        return find_answers(Store(path.parent))

    def rankings(path: Path) -> object:
        return [*read_rows(path, "hpdv2"), *read_rows(path, "imagereward")]

    def captions(path: Path) -> object:
        return captions_of_file(str(path), 5)

    rows = st.lists(
        st.dictionaries(st.sampled_from(("text", "TEXT", "NSFW", "x")), json_like(LEAVES)), max_size=5
    )
    lines = rows.map(lambda found: "\n".join(map(json.dumps, found)).encode())
    table = b'text\tNSFW\na "red" boat\tUNLIKELY\nhttps://a.b/c.jpg\tNSFW\n'
    return {
        "config": Target("config.yaml", config_texts(), load_config),
        "jsonl": Target("a.jsonl", lines | st.binary(max_size=80), captions),
        "json": Target("a.json", as_json(rows | json_like(LEAVES)), captions),
        "csv": Target("a.csv", damaged(table.replace(b"\t", b",")) | st.binary(max_size=80), captions),
        "tsv": Target("a.tsv", damaged(table) | st.text(max_size=80).map(str.encode), captions),
        "txt": Target("a.txt", st.binary(max_size=200), captions),
        "gzip": Target("a.txt.gz", gzip_files(), captions),
        "parquet": Target("a.parquet", damaged(valid_parquet()), captions),
        "checkpoint": Target("state.json", checkpoint_texts() | as_json(json_like(LEAVES)), read_checkpoint),
        "head": Target("h.safetensors", damaged(valid_head()) | header_texts(), load_detector),
        "safetensors": Target("w.safetensors", header_texts() | st.binary(max_size=80), weights),
        "keras": Target("k.keras", keras_zips(), keras),
        "h5": Target("k.h5", damaged((FIXTURES / "keras3.h5").read_bytes()), keras),
        "clip": Target(
            "open_clip_config.json", as_json(json_like(LEAVES)) | st.binary(max_size=80), read_clip_config
        ),
        "answers": Target("answers.jsonl", answer_rows(), answers),
        "rankings": Target("a.json", published_rankings() | st.binary(max_size=80), rankings),
    }


def check(target: Target, content: bytes) -> None:
    """Reads one file.

    Raises:
        AssertionError: it took too long or too much memory, wrote something, or its error is not one line.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        folder.mkdir()
        (folder / target.name).write_bytes(content)
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            target.read(folder / target.name)
        except ValueError as error:
            assert type(error).__name__ not in ("JSONDecodeError", "UnicodeDecodeError"), repr(error)
            assert "\n" not in str(error) and len(str(error)) < 3000, str(error)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert time.monotonic() - started < SECONDS, "too slow"
        assert grown < BYTES, f"{grown} bytes more memory"
        written = {str(path.relative_to(parent)) for path in Path(parent).rglob("*")}
        assert written <= {"folder", f"folder/{target.name}", f"folder/{LISTED}"}, written


def fuzz(target: Target, examples: int, number: int) -> None:
    """Checks that many files; `number` chooses which."""
    checker(target, examples, number)()


def checker(target: Target, examples: int, number: int) -> Callable[[], None]:
    """A hypothesis test of a reader."""

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.contents)
    def run(content: bytes) -> None:
        check(target, content)

    return run


def fuzz_by_coverage(name: str, minutes: float, number: int) -> None:
    """Fuzzes a reader with atheris, which ends the process; an input that fails is left in a file crash-*.

    Source: "Using hypothesis with external fuzzers", https://hypothesis.readthedocs.io/en/latest/how-to/external-fuzzers.html

    Raises:
        ValueError: atheris is missing.
    """
    try:
        import atheris
    except ImportError:
        raise ValueError("--atheris needs the package atheris; pip install atheris") from None
    with atheris.instrument_imports(include=["dalle_ppo"], enable_loader_override=False):
        target = make_targets()[name]
    run = checker(target, 1, number)
    limits = [f"-max_total_time={int(60 * minutes)}", f"-seed={number + 1}", "-max_len=4096", "-timeout=30"]
    atheris.Setup([sys.argv[0], *limits], lambda data: run.hypothesis.fuzz_one_input(data))
    atheris.Fuzz()


def main(argv: list[str] | None) -> int:
    """Fuzzes all readers in turn until the time is up."""
    parser = OneLineParser(prog="python benchmarks/fuzz.py", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--examples", type=int, default=50, help="files for each reader and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--atheris", action="store_true", help="let atheris choose the files; needs --only")
    args = parser.parse_args(argv)
    if args.only not in (None, *NAMES) or (args.atheris and args.only is None):
        raise ValueError(f"--only is {args.only}; it must be one of {', '.join(NAMES)}")
    if args.atheris:
        fuzz_by_coverage(args.only, args.minutes, args.seed)
    targets = make_targets()
    assert tuple(targets) == NAMES
    targets = {name: target for name, target in targets.items() if args.only in (None, name)}
    counts, failed, number, started = dict.fromkeys(targets, 0), set(), args.seed, time.monotonic()
    while time.monotonic() - started < 60 * args.minutes and len(failed) < len(targets):
        for name, target in targets.items():
            if name in failed:
                continue
            try:
                fuzz(target, args.examples, number)
            except Exception as error:
                failed.add(name)
                print(f"{name}, seed {number}: {type(error).__name__}: {str(error)[:400]}", file=sys.stderr)
                for each in getattr(error, "exceptions", [error]):
                    print(repr(each)[:400], "\n".join(getattr(each, "__notes__", []))[:800], file=sys.stderr)
            counts[name] += args.examples
        number += 1
    print(f"{(time.monotonic() - started) / 60:.1f} minutes, {sum(counts.values())} files, {counts}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
