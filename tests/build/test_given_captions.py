"""The captions that `evaluate --captions` names: how many, which ones and how they are read."""

import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_ppo.build.given_captions import given_captions
from dalle_ppo.captions import streams
from dalle_ppo.captions.source import freeze_captions
from dalle_ppo.captions.streams import CaptionRecord
from dalle_ppo.captions.text import caption_id
from dalle_ppo.config.captions import CaptionsConfig
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.settings import Config

OTHER_COLUMNS = CaptionsConfig("laion", "words", tag_thresholds={"NSFW": 0.5}, where="punsafe < 0.9")


def config(num=3, captions=OTHER_COLUMNS, seed=1):
    """A run's settings; its columns are not those of the files below."""
    return Config(captions=captions, evaluation=EvaluationConfig(num_captions=num, seed=seed))


@pytest.fixture
def parti(tmp_path):
    rows = [f"prompt {n}\tAbstract\t{'Basic' if n % 2 else 'Complex'}\t" for n in range(20)]
    (tmp_path / "parti.tsv").write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *rows]) + "\n")
    return f"partiprompts:{tmp_path / 'parti.tsv'}"


def test_all_prompts_of_a_prompt_set_are_drawn_unless_fewer_are_wanted(parti, capsys):
    assert {record.text for record in given_captions(config(), parti)} == {f"prompt {n}" for n in range(20)}
    assert len(given_captions(config(), "prompts:simple_animals")) == 45
    assert capsys.readouterr().out == ""
    assert len(given_captions(config(), parti, num=4)) == 4
    assert f"captions: 4 of {parti}, which has 20 rows, are drawn" in capsys.readouterr().out


def test_a_part_of_another_file_is_drawn_by_the_seed_and_announced(tmp_path, capsys):
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(f"caption {n}" for n in range(40)) + "\n")

    def drawn(**settings):
        return [record.text for record in given_captions(config(**settings), str(file))]

    assert drawn(num=40) and capsys.readouterr().out == ""
    assert drawn(num=10, seed=1) == drawn(num=10, seed=1) and len(set(drawn(num=10))) == 10
    assert f"captions: 10 of {file}, which has 40 rows, are drawn" in capsys.readouterr().out
    assert set(drawn(num=10, seed=1)) != set(drawn(num=10, seed=2))


def test_a_file_is_drawn_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_text("words\na red boat\nA &amp; B\n")
    settings = CaptionsConfig("laion", "words", min_chars=9, clean=True)
    drawn = given_captions(config(captions=settings), str(tmp_path / "a.csv"))
    assert {record.text for record in drawn} == {"a red boat", "A &amp; B"}


def test_long_captions_are_drawn_and_repeats_are_told(tmp_path, capsys):
    file, long = tmp_path / "mine.txt", "word " * 500 + "end"
    file.write_text(f"A red boat!\n{long}\na red boat\na car\na car\n")
    drawn = {record.text for record in given_captions(config(num=9), str(file))}
    assert {long, "a car"} < drawn and len(drawn) == 3
    assert f"captions: 2 of {file} left out: 2 repeats; all others are drawn" in capsys.readouterr().out
    given_captions(config(num=2), str(file))
    assert "left out" not in capsys.readouterr().out


def test_captions_of_an_evaluation_are_read_whatever_the_runs_columns(tmp_path):
    texts = [f"caption {n}" for n in range(9)] + ["long " * 900]
    records = [CaptionRecord(text, f"tag {n % 3}", caption_id(text)) for n, text in enumerate(texts)]
    freeze_captions(records, tmp_path / "captions.parquet")
    settings = CaptionsConfig(
        "laion", "words", "punsafe", tag_map={"tag 1": "x"}, where="a < 1", max_chars=9000
    )
    again = given_captions(config(captions=settings), str(tmp_path / "captions.parquet"))
    assert sorted(again, key=lambda r: r.id) == sorted(records, key=lambda r: r.id)


def test_a_prompt_set_has_its_own_columns_whatever_else_is_given(parti):
    assert {record.tag for record in given_captions(config(), parti)} == {"Abstract"}
    run = config(captions=CaptionsConfig("laion", "words", "Challenge", tag_thresholds={"NSFW": 0.5}))
    tags = Counter(record.tag for record in given_captions(run, parti, {"tag_column"}))
    assert tags == {"Basic": 10, "Complex": 10}


@pytest.mark.parametrize("name", ["mine.txt.gz", "mine.TXT", "folder"])
def test_text_has_no_columns_whatever_its_suffix(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("a tree\n")
    else:
        text = b"a tree\n"
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [record.text for record in given_captions(config(), str(tmp_path / name))] == ["a tree"]


def test_the_runs_columns_are_read_in_a_table_like_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("text,words,punsafe\nx,a boat,0.1\ny,a car,0.95\n")
    file = str(tmp_path / "a.csv")
    assert [record.text for record in given_captions(config(), file)] == ["a boat"]
    given = config(captions=CaptionsConfig("laion", "text", where="punsafe < 1"))
    assert {record.text for record in given_captions(given, file, {"column", "where"})} == {"x", "y"}


def test_one_caption_of_each_list_is_drawn_where_one_is_asked_for(tmp_path):
    rows = [{"text": [f"boat {n} {which}" for which in "abcde"]} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = CaptionsConfig("laion", "text", lists="one")
    drawn = given_captions(config(num=100, captions=settings), str(tmp_path / "a.jsonl"))
    assert sorted(record.text.split()[1] for record in drawn) == [str(n) for n in range(6)]


def test_repeats_do_not_hide_what_comes_after_them(tmp_path, monkeypatch):
    """A file of nothing but repeats, which lie too far from the first to be known as such while drawing."""
    monkeypatch.setattr(streams, "DUPLICATE_WINDOW", 4)
    for name, first, times in (("a", 0, 1), ("b", 0, 200), ("c", 100, 1)):
        lines = [f"boat {first + n % 9}" for n in range(9 * times)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for seed in range(6):  # in every order of the files
        drawn = given_captions(config(num=1000, seed=seed), str(tmp_path))
        assert {record.text for record in drawn} == {f"boat {n}" for n in (*range(9), *range(100, 109))}


def test_the_number_of_rows_is_not_told_where_a_condition_leaves_some_out(tmp_path, capsys):
    table = pa.table({"text": [f"boat {n}" for n in range(100)], "n": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet")
    for where, said in ((None, f"{tmp_path}/a.parquet, which has 100 rows, are"), ("n < 9", "a.parquet are")):
        settings = config(num=5, captions=CaptionsConfig("laion", "text", where=where))
        given_captions(settings, str(tmp_path / "a.parquet"))
        assert said in capsys.readouterr().out
