"""Every setting under `captions` reaches the captions that are drawn."""

import csv
from collections import Counter
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_ppo.build.captions import EVALUATION_STREAM, build_captions, evaluation_captions
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.text import split_of
from dalle_ppo.config.captions import READING, CaptionsConfig
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.settings import Config

ROWS = [
    ("red boat", "x"),
    ("RED boat!", "x"),
    ("a very long caption of a green tree", "x"),
    ("&lt;b&gt;blue&lt;/b&gt; cup", "y"),
    ("красная лодка", "y"),
]


@pytest.fixture
def source(tmp_path):
    """A table with captions in `words` and in `TEXT`, tags in `kind` and in `tag`, none of them held out."""
    rows = [row for row in ROWS if split_of(row[0]) == "train"]
    assert len(rows) == len(ROWS)
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["words", "kind", "TEXT", "tag"])
        writer.writerows([(words, kind, f"text {i}", "t") for i, (words, kind) in enumerate(rows)])
    return tmp_path / "a.csv"


def drawn(source, **settings) -> set[tuple[str, str]]:
    """Texts and tags of what is drawn from the table's `words` and `kind`."""
    settings = {"column": "words", "tag_column": "kind", **settings}
    config = Config(captions=CaptionsConfig(source=str(source), **settings))
    return {(r.text, r.tag) for r in build_captions(config, 0, 0, "train").next_batch(40)}


def test_columns(source):
    assert drawn(source, drop_duplicates=False) == set(ROWS)
    by_name = drawn(source, column=None, tag_column=None)
    assert by_name <= {(f"text {i}", "t") for i in range(5)} and len(by_name) >= 3


def test_shares(source):
    assert {tag for _, tag in drawn(source, shares={"y": 1.0})} == {"y"}


def test_evaluation_may_have_a_mix_of_its_own():
    training = CaptionsConfig(shares={"UNLIKELY": 0.25, "NSFW": 0.75})
    own = {"UNLIKELY": 0.5, "UNSURE": 0.5}
    for shares, expected in ((None, training.shares), (own, own)):
        config = Config(captions=training, evaluation=EvaluationConfig(num_captions=40, shares=shares))
        tags = Counter(record.tag for record in evaluation_captions(config))
        assert tags == {tag: 40 * share for tag, share in expected.items()}
        assert {r.tag for r in build_captions(config, 0, 0, "train").next_batch(40)} == {"UNLIKELY", "NSFW"}


def test_an_evaluation_keeps_its_mix_where_duplicates_are_drawn_and_chance_may_move_it(tmp_path):
    rows = [f"rare {n // 9},a" for n in range(9 * 200)] + [f"common {n},b" for n in range(2000)]
    (tmp_path / "a.csv").write_text("\n".join(["TEXT,tag", *rows]) + "\n")
    captions = CaptionsConfig(str(tmp_path / "a.csv"), shares={"a": 0.5, "b": 0.5}, drop_duplicates=False)

    def drawn(num):
        config = Config(captions=captions, evaluation=EvaluationConfig(num_captions=num))
        return Counter(record.tag for record in evaluation_captions(config))

    assert drawn(20) == {"a": 10, "b": 10}
    with pytest.raises(ValueError, match=r"evaluation.num_captions is 100.* for a, whose share needs 50"):
        drawn(100)
    # The built-in world makes up its captions; none of its tags runs out.
    tags = Counter(r.tag for r in evaluation_captions(Config(evaluation=EvaluationConfig(num_captions=2000))))
    assert tags == {"UNLIKELY": 999, "UNSURE": 501, "NSFW": 500}


def test_only_a_lack_of_held_out_captions_is_put_down_to_their_number(tmp_path):
    (tmp_path / "a.csv").write_text("\n".join(["TEXT,tag", *(f"a boat {n},x" for n in range(100))]) + "\n")

    def refused(num=None, **settings):
        captions = CaptionsConfig(str(tmp_path / "a.csv"), **settings)
        with pytest.raises(ValueError) as raised:
            evaluation_captions(Config(captions=captions), num)
        return str(raised.value)

    assert refused().startswith("evaluation.num_captions is 2000, but held-out captions are only a tenth")
    assert refused(32).startswith("32 held-out captions are needed and evaluation.num_captions is 2000, but")
    assert refused(shares={"y": 1.0}).startswith("captions: no caption tagged y to draw")
    assert "column 'absent'" in refused(column="absent") and "num_captions" not in refused(column="absent")
    (tmp_path / "a.csv").write_text("TEXT\n" + "\n".join(row[0] for row in ROWS))  # none is held out
    assert refused().startswith("evaluation.num_captions is 2000, but held-out captions are only a tenth")


def test_cleaning(source):
    assert ("blue cup", "y") in drawn(source, clean=True)
    assert ("blue cup", "y") not in drawn(source)


@pytest.mark.parametrize("drop", [True, False])
def test_duplicates(source, drop):
    config = Config(captions=CaptionsConfig(str(source), "words", "kind", drop_duplicates=drop))
    captions = build_captions(config, 0, 0, "train")
    captions.next_batch(5)
    assert ("captions/skipped_duplicate" in captions.metrics()) == drop


def test_lengths_and_letters(source):
    texts = {text for text, _ in drawn(source, drop_duplicates=False, min_chars=9, max_chars=20)}
    assert texts == {"RED boat!", "красная лодка"}
    assert ("красная лодка", "y") not in drawn(source, min_latin_share=0.5)


def test_lists(source, tmp_path):
    (tmp_path / "list.txt").write_text("# a list\nboat\nblue\n")
    lists = str(tmp_path / "list.txt")
    texts = {text for text, _ in drawn(source, blocklist=lists)}
    assert texts == {ROWS[2][0], "красная лодка"}
    texts = {text for text, _ in drawn(source, drop_duplicates=False, allowlist=lists)}
    assert texts == {"red boat", "RED boat!", ROWS[3][0]}
    for name in ("blocklist", "allowlist"):
        with pytest.raises(ValueError, match=r"absent\.txt"):
            drawn(source, **{name: "absent.txt"})


def test_bad_files(source):
    (source.parent / "b.csv").write_bytes(b"words,kind\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match=r"b\.csv"):
        drawn(source.parent)
    with pytest.warns(UserWarning, match=r"b\.csv"):
        assert drawn(source.parent, skip_bad_files=True)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_without_captions_is_a_bad_file(tmp_path, suffix):
    (tmp_path / "a.csv").write_text("TEXT\na boat\n")
    (tmp_path / "b.csv").write_text("width,height\n1,2\n3,4\n")
    (tmp_path / "b.jsonl").write_text('{"width": 1}\n')
    pq.write_table(pa.table({"width": [1]}), tmp_path / "b.parquet")
    for other in {"csv", "jsonl", "parquet"} - {suffix}:
        (tmp_path / f"b.{other}").unlink()
    usual = {"column": None, "tag_column": None}
    with pytest.raises(ValueError, match=rf"b\.{suffix}: has none of the usual caption columns"):
        drawn(tmp_path, **usual)
    with pytest.warns(UserWarning, match=rf"file skipped.*b\.{suffix}"):
        assert drawn(tmp_path, skip_bad_files=True, **usual) == {("a boat", "UNTAGGED")}


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"min_chars": 9, "max_chars": 3}, r"captions\.min_chars is 9"),
        ({"min_latin_share": 2.0}, r"captions\.min_latin_share is 2\.0"),
        ({"shares": {"x": 0.7}}, r"captions\.shares"),
        ({"column": "absent"}, r"captions\.column"),
        ({"tag_column": "absent"}, r"captions\.tag_column"),
    ],
)
def test_wrong_settings_are_named(source, settings, named):
    with pytest.raises(ValueError, match=named):
        drawn(source, **settings)


@pytest.mark.parametrize("world_size", [2, 4])
def test_runs_that_share_captions_train_on_disjoint_shares_and_hold_out_the_same(tmp_path, world_size):
    rows = [f"caption {i // 2}{'!' * (i % 2)}" for i in range(600)]  # each twice, written differently
    (tmp_path / "a.txt").write_text("\n".join(rows), encoding="utf-8")

    def config(rank, world_size):
        captions = CaptionsConfig(source=str(tmp_path / "a.txt"), rank=rank, world_size=world_size)
        return Config(captions=captions, evaluation=EvaluationConfig(num_captions=15))

    def one_pass(config):
        source = build_captions(config, 0, 0, "train")
        ids = []
        while source.state_dict()["streams"]["all"]["position"][0] == 0:
            ids.append(source.next_batch(1)[0].id)
        return ids[:-1]  # the last one began the second pass

    alone, parts = config(0, 1), [config(rank, world_size) for rank in range(world_size)]
    shares = [one_pass(part) for part in parts]
    drawn = [caption_id for share in shares for caption_id in share]
    assert sorted(drawn) == sorted(one_pass(alone)), "none twice, none missing"
    assert all(shares) and len(set(one_pass(alone))) == len(one_pass(alone)) > 200
    assert all(evaluation_captions(part) == evaluation_captions(alone) for part in parts)
    heldout = {record.id for record in build_captions(alone, 0, EVALUATION_STREAM, "heldout").next_batch(300)}
    assert len(heldout) >= 15 and not heldout & set(drawn)


@pytest.mark.parametrize("rank, world_size", [(2, 2), (-1, 3), (0, 0)])
def test_a_rank_outside_the_world_is_named(rank, world_size):
    with pytest.raises(ValueError, match=r"captions\.(rank|world_size) is"):
        CaptionsConfig(rank=rank, world_size=world_size)


def test_a_position_of_another_share_is_refused(source):
    def captions(rank):
        settings = CaptionsConfig(str(source), "words", "kind", rank=rank, world_size=2)
        return build_captions(Config(captions=settings), 0, 0, "train")

    with pytest.raises(ValueError, match=r"rank was 0 .* now 1"):
        captions(1).load_state_dict(captions(0).state_dict())


def test_the_settings_for_reading_are_all_handed_on():
    assert tuple(f.name for f in fields(ReadSettings)) == READING
