"""`python -m dalle_ppo.captions`: what a source holds, without training."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_ppo.captions import streams
from dalle_ppo.captions.__main__ import main

REAL = Path(__file__).parents[3] / "shared" / "captions"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "set"
    made.mkdir()
    texts = [f"caption {n}" for n in range(30)]
    pq.write_table(pa.table({"TEXT": texts, "NSFW": ["NSFW", "UNSURE", None] * 10}), made / "a.parquet")
    (made / "b.jsonl").write_text(
        json.dumps({"text": "caption 3"}) + "\n" + json.dumps({"text": "y" * 3000}) + "\n"
    )
    (made / "_SUCCESS").write_text("")
    return made


def test_it_prints_what_it_found(folder, cli):
    outcome = cli(main, folder)
    assert outcome.code == 0 and outcome.out.splitlines()[:9] == [
        "captions: 32 rows in 2 files (1 parquet, 1 jsonl)",
        "  a.parquet: 30 rows",
        "  b.jsonl: 2 rows",
        "  captions from column TEXT and text",
        "  tags from column NSFW",
        "  not in b.jsonl of 2 files: their 2 rows are UNTAGGED",
        "  tags: UNSURE 10 (31.2%), NSFW 10 (31.2%), UNTAGGED 12 (37.5%)",
        "  dropped by filters, of the first 32: 1 duplicate, 1 long",
        "  left out: _SUCCESS: hidden: its name or its folder's begins with . or _",
    ]
    assert len(outcome.out.splitlines()) == 9 + 10 and "  NSFW      caption 0\n" in outcome.out


def test_json_and_dump(folder, cli, tmp_path):
    outcome = cli(main, folder, "--json", "--dump", tmp_path / "out.jsonl")
    shown = json.loads(outcome.out)
    assert shown["rows"] == 32 and shown["tags"] == {"UNSURE": 10, "NSFW": 10, "UNTAGGED": 12}
    assert [Path(left["file"]).name for left in shown["left_out"]] == ["_SUCCESS"]
    assert [(Path(f["file"]).name, f["rows"]) for f in shown["files"]] == [("a.parquet", 30), ("b.jsonl", 2)]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[:2] == [{"text": "caption 0", "tag": "NSFW"}, {"text": "caption 1", "tag": "UNSURE"}]
    assert sorted(row["text"] for row in rows) == sorted(f"caption {n}" for n in range(30))


def test_a_dump_holds_each_caption_once_however_far_apart_repeats_are(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "DUPLICATE_WINDOW", 4)
    (tmp_path / "a.txt").write_text("".join(f"caption {n}\n" for n in [*range(20), *range(20)]))
    assert cli(main, tmp_path / "a.txt", "--dump", tmp_path / "out.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"caption {n}" for n in range(20)]


def test_a_dump_replaces_no_file(folder, cli, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    for path in (tmp_path / "kept.txt", folder / "a.parquet"):
        before = path.read_bytes()
        outcome = cli(main, folder, "--dump", path)
        assert outcome.code == 2 and f"--dump {path} already exists" in outcome.error
        assert path.read_bytes() == before


def test_settings_are_options_with_and_without_their_section(folder, cli):
    for prefix in ("--", "--captions."):
        arguments = (
            f"{prefix}tag_map",
            "{NSFW: bad}",
            f"{prefix}where",
            "NSFW = 'NSFW'",
            f"{prefix}max_chars",
            "9",
        )
        outcome = cli(main, folder / "a.parquet", *arguments)
        assert outcome.code == 0, outcome.err
        assert "  tags: bad 10 (100.0%)\n" in outcome.out
        assert "dropped by filters, of the first 10: 6 long\n" in outcome.out


def test_truth_values_in_a_map(folder, cli):
    (folder / "c.jsonl").write_text('{"text": "a", "tag": true}\n{"text": "b", "tag": false}\n')
    outcome = cli(main, folder / "c.jsonl", "--tag_map", "{true: NSFW, false: UNLIKELY}")
    assert "  tags: UNLIKELY 1 (50.0%), NSFW 1 (50.0%)\n" in outcome.out


def test_the_settings_of_a_run(folder, cli, tmp_path):
    (tmp_path / "config.yaml").write_text("captions: {tag_column: '', clean: true}\n")
    outcome = cli(main, folder, "--config", tmp_path / "config.yaml")
    assert "no tag column: every caption is UNTAGGED" in outcome.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("builtin",), "captions.source is builtin, which makes up its captions as they are drawn"),
        (("absent.csv",), "there are no caption files at absent.csv (supported: .parquet, .csv"),
        (("letters",), "and a source that you added NAME:REST"),
        (("{folder}", "--tag_colum", "x"), "unrecognized arguments: --tag_colum"),
        (("{folder}", "--quoting", "maybe"), "captions.quoting"),
        (
            ("prompts:counting", "--where", "a < 1"),
            "prompts:counting has no columns; leave captions.where",
        ),
        (
            ("{folder}/a.parquet", "--where", "NSFW = 'x'"),
            "a.parquet; none meets captions.where = \"NSFW = 'x'\"; give others",
        ),
        (
            ("{folder}/c.csv", "--where", "n > 1"),
            "c.csv contains no captions that meet captions.where = 'n > 1'; add at least one",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, words, folder, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "c.csv").write_text("TEXT,n\na boat,1\n")
    outcome = cli(main, *(str(argument).format(folder=folder) for argument in arguments))
    assert outcome.code == 2 and words in outcome.error


def test_a_source_without_captions_is_not_put_down_to_a_condition(cli, tmp_path):
    pq.write_table(pa.table({"TEXT": ["a boat"] * 9}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = b"\xff" * 36  # the first page; the footer stays whole
    (tmp_path / "a.parquet").write_bytes(content)
    outcome = cli(main, tmp_path / "a.parquet", "--skip_bad_files", "true")
    assert outcome.code == 2 and "file skipped" in outcome.err
    assert f"no captions could be read from {tmp_path / 'a.parquet'}; give others" in outcome.err


def test_it_is_a_command(folder):
    call = [sys.executable, "-m", "dalle_ppo.captions", str(folder), "--json"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"] == 32 and not done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="no real captions here")
def test_real_web_text(cli, tmp_path):
    outcome = cli(main, REAL, "--json", "--dump", tmp_path / "a.jsonl")
    shown = json.loads(outcome.out)
    assert shown["rows"] == 5000 and shown["tags"] == {"UNTAGGED": 5000}
    with (tmp_path / "a.jsonl").open(encoding="utf-8") as file:
        written = [json.loads(line)["text"] for line in file]
    texts = pq.read_table(next(REAL.glob("*.parquet")))["TEXT"].to_pylist()
    assert set(written) <= set(texts) and len(written) == 5000 - sum(shown["dropped"].values())
