"""Captions: shares, split, exact resume, sharding, reading files and bad input."""

import hashlib
import io
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from laion_tables import everything, laion_table, open_source, read_frozen, texts
from memory_peak import peak_growth

from dalle_ppo.captions import sources
from dalle_ppo.captions.shards import CHUNK_ROWS, ParquetShard, TableShard
from dalle_ppo.captions.source import (
    OTHER,
    CaptionRequest,
    distinct_captions,
    freeze_captions,
    open_captions,
)
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.captions.tags import UNTAGGED
from dalle_ppo.captions.text import CaptionFilter, fingerprint


@pytest.fixture(scope="module")
def laion_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laion")
    for part in range(3):
        pq.write_table(laion_table(900, part * 900), folder / f"part-{part:05d}.parquet", row_group_size=250)
    return folder


def test_shares_of_rare_tags_are_met_within_one_caption(laion_folder):
    shares = {"NSFW": 0.5, "UNSURE": 0.125, OTHER: 0.375}
    source = open_source(str(laion_folder), everything(), shares)
    tags = Counter()
    for n in (1, 7, 32, 40):
        tags.update(record.tag for record in source.next_batch(n))
        for tag in ("NSFW", "UNSURE"):
            assert abs(tags[tag] - shares[tag] * tags.total()) < 1
    assert tags["NSFW"] == 40 and tags["UNSURE"] == 10
    assert tags["UNLIKELY"] > 0 and tags[UNTAGGED] > 0
    metrics = source.metrics()
    assert metrics["captions/share_NSFW"] == 0.5 and metrics["captions/share_UNSURE"] == 0.125
    assert metrics["captions/drawn"] == 80 and metrics["captions/share_UNTAGGED"] == tags[UNTAGGED] / 80


def test_tags_belong_to_their_texts_and_ids_are_stable(laion_folder):
    for record in open_source(str(laion_folder), everything(), {"NSFW": 0.5, OTHER: 0.5}).next_batch(60):
        assert record.text.endswith(str(None if record.tag == UNTAGGED else record.tag))
    mark = fingerprint("A Red Boat, on blue")
    assert mark.id == hashlib.blake2b(b"a red boat on blue", digest_size=24).hexdigest()[:16]
    assert mark == fingerprint("a red  boat on BLUE!") != fingerprint("a red boat on blues")


def test_one_pass_draws_every_caption_once_in_a_new_order(laion_folder):
    source = open_source(str(laion_folder), everything())
    first, second = source.next_batch(2700), source.next_batch(2700)
    assert len(set(texts(first))) == 2700 and set(texts(first)) == set(texts(second))
    assert texts(first) != texts(second) and texts(first) != sorted(texts(first))
    numbers = [int(text.split()[1]) for text in texts(first)]
    assert len({n // 900 for n in numbers[:250]}) == 1  # one row group is read at a time


def test_train_and_heldout_are_disjoint_however_captions_are_written():
    variants = [
        f"{a}{word} {i}{b}"
        for i in range(150)
        for word in ("Boat", "BOAT")
        for a, b in ((" ", "!"), ("", ""))
    ]
    variants += [f"<b>boat</b> &#32;{i}" for i in range(150)]
    drawn = {}
    for split in ("train", "heldout"):
        settings = DrawSettings(split=split, heldout_share=0.3, drop_duplicates=False)
        source = CaptionRequest(settings).draw_from([TableShard("t", variants)])
        drawn[split] = {record.id for record in source.next_batch(600)}
    assert not drawn["train"] & drawn["heldout"]
    assert len(drawn["train"] | drawn["heldout"]) == 150
    assert 25 <= len(drawn["heldout"]) <= 65  # binomial(150, 0.3): mean 45, five standard deviations are 28


@pytest.mark.parametrize("source", ["files", "prompts:simple_animals"])
def test_the_next_batch_after_a_resume_is_the_one_that_was_due(laion_folder, source):
    def make(seed=3):
        if source == "files":
            return open_source(str(laion_folder), DrawSettings(seed=seed), {"NSFW": 0.5, OTHER: 0.5})
        return open_source(source, DrawSettings(seed=seed))

    for drawn_before in (0, 1, 50, 301):
        original = make()
        original.next_batch(drawn_before)
        state = json.loads(json.dumps(original.state_dict()))
        due = original.next_batch(40)
        resumed = make()
        resumed.next_batch(5)
        resumed.load_state_dict(state)
        assert resumed.next_batch(40) == due
        assert resumed.metrics() == original.metrics()
    with pytest.raises(ValueError, match=r"seed was 3 .* now 4"):
        make(seed=4).load_state_dict(state)


def test_resume_within_a_later_chunk_of_a_row_group(tmp_path):
    num_rows = CHUNK_ROWS + 500
    table = pa.table({"caption": [f"c {i}" for i in range(num_rows)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=num_rows)
    original = open_source(str(tmp_path / "a.parquet"), everything())
    original.next_batch(CHUNK_ROWS + 100)
    state = original.state_dict()
    assert state["streams"]["all"]["position"] == [0, 0, 0, 1, 100]
    due = original.next_batch(300)
    resumed = open_source(str(tmp_path / "a.parquet"), everything())
    resumed.load_state_dict(state)
    assert resumed.next_batch(300) == due
    assert len({r.id for r in due}) == 300


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_captions_without_overlap(world_size):
    shards = [TableShard("t", [f"caption {i % 400}" for i in range(1000)])]
    parts = []
    for rank in range(world_size):
        source = CaptionRequest(everything(rank=rank, world_size=world_size)).draw_from(shards)
        parts.append({record.id for record in source.next_batch(1)})
        while len(parts[-1]) < 400:
            before = source.state_dict()["streams"]["all"]["position"][0]
            record = source.next_batch(1)[0]
            if source.state_dict()["streams"]["all"]["position"][0] > before:
                break
            assert record.id not in parts[-1]  # duplicates never reach two processes, nor one twice
            parts[-1].add(record.id)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert min(map(len, parts)) > 400 / world_size * 0.7


def test_the_order_is_the_same_on_every_machine():
    """Written down once: a resumed run on another machine must find the same captions."""
    drawn = open_source("prompts:counting", DrawSettings(seed=5)).next_batch(3)
    assert texts(drawn) == ["three foxes", "three frogs", "three butterflies"]


def test_filters_and_duplicates_are_counted(tmp_path):
    rows = [
        "ok boat",
        "OK, boat!",
        "x",
        "y" * 50,
        "",
        None,
        "красная лодка",
        "a bad word",
        "badword fine",
        "a  Bad-Word",
    ]
    chosen = CaptionFilter(min_chars=2, max_chars=40, min_latin_share=0.5, blocked=frozenset({"bad word"}))
    source = CaptionRequest(everything(filter=chosen)).draw_from([TableShard("t", rows)])
    kept = texts(source.next_batch(2))
    assert set(kept) in ({"ok boat", "badword fine"}, {"OK, boat!", "badword fine"})
    source.next_batch(4)  # the fifth begins the third pass: two passes are counted whole
    counts = {name.removeprefix("captions/"): value for name, value in source.metrics().items()}
    whole = {"empty": 2, "short": 1, "long": 1, "script": 1, "blocked": 2, "duplicate": 1}
    assert all(2 * number <= counts[f"skipped_{reason}"] <= 3 * number for reason, number in whole.items())
    assert counts["drawn"] == 6 and counts["read"] == 30 and counts["share_UNTAGGED"] == 1


def test_cleaning_is_optional():
    rows = ["<b>Caf\u00c3\u00a9</b> &amp;amp; bar\x07"]
    assert texts(CaptionRequest(everything()).draw_from([TableShard("t", rows)]).next_batch(1)) == rows
    cleaned = CaptionRequest(everything(clean=True)).draw_from([TableShard("t", rows)]).next_batch(1)
    assert texts(cleaned) == ["Café & bar"]


def test_missing_column_is_named_with_those_found(tmp_path):
    pq.write_table(pa.table({"picture": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet.*picture, n.*captions.column"):
        open_source(str(tmp_path / "a.parquet"), everything())
    with pytest.raises(ValueError, match=r"no column 'Caption'.*picture, n"):
        open_source(str(tmp_path / "a.parquet"), everything(), column="Caption")
    with pytest.raises(ValueError, match="int64, expected text"):
        open_source(str(tmp_path / "a.parquet"), everything(), column="n")
    assert texts(open_source(str(tmp_path), everything(), column="picture").next_batch(1)) == ["a"]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_an_empty_file_is_refused(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(laion_table(0), path)
    else:
        path.write_text({"a.csv": "caption\n", "a.tsv": "caption\tn\n", "a.txt": "\n \n"}.get(name, ""))
    with pytest.raises(ValueError, match=f"{name}.*no caption"):
        open_source(str(path), everything())


def test_captions_that_are_all_blank_are_refused_when_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"3 rows read; 3 empty dropped"):
        CaptionRequest(everything()).draw_from([TableShard("t", ["", None, "  "])]).next_batch(1)


def test_a_tag_never_seen_is_one_clear_line(laion_folder):
    source = open_source(str(laion_folder), everything(), {"nsfw": 0.5, OTHER: 0.5})
    with pytest.raises(ValueError, match=r"no caption tagged nsfw.*part-00000.*2 more"):
        source.next_batch(2)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet at all PAR1", b"plain text", "truncated"])
def test_a_foreign_or_truncated_parquet_file_is_named_or_skipped(laion_folder, tmp_path, content):
    for file in laion_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if content == "truncated":
        content = (tmp_path / "part-00001.parquet").read_bytes()[:-100]
    (tmp_path / "part-00001.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00001.*parquet"):
        open_source(str(tmp_path), everything())
    with pytest.warns(UserWarning, match="part-00001"):
        source = open_source(str(tmp_path), everything(skip_bad_files=True))
    assert len(source.next_batch(1800)) == 1800


def test_a_file_damaged_inside_is_named_or_skipped(laion_folder, tmp_path):
    content = bytearray((laion_folder / "part-00000.parquet").read_bytes())
    content[4:3000] = b"\xff" * 2996  # the first pages; the footer is whole
    (tmp_path / "bad.parquet").write_bytes(content)
    (tmp_path / "good.parquet").write_bytes((laion_folder / "part-00001.parquet").read_bytes())
    source = open_source(str(tmp_path), everything(), {"UNLIKELY": 1.0}, column="TEXT")
    with pytest.raises(ValueError, match=r"bad\.parquet: cannot be read"):
        source.next_batch(5000)
    skipping = open_source(str(tmp_path), everything(skip_bad_files=True), {"UNLIKELY": 1.0})
    with pytest.warns(UserWarning, match="file skipped"):
        assert len(skipping.next_batch(2500)) == 2500
    assert skipping.metrics()["captions/skipped_bad_files"] >= 1


def test_a_shard_that_disappears_in_mid_run(laion_folder, tmp_path):
    for file in laion_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    strict = open_source(str(tmp_path), everything())
    lenient = open_source(str(tmp_path), everything(skip_bad_files=True))
    first = strict.next_batch(100)
    assert lenient.next_batch(100) == first
    here = int(first[0].text.split()[1]) // 900
    gone = tmp_path / f"part-{(here + 1) % 3:05d}.parquet"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ValueError, match=gone.name):
        strict.next_batch(2600)
    with pytest.warns(UserWarning, match=gone.name):
        drawn = lenient.next_batch(1700)
    assert len({r.id for r in first + drawn}) == 1800
    position = strict.state_dict()
    gone.write_bytes(content)  # put back: the failed source goes on where it stood
    again = open_source(str(tmp_path), everything())
    again.load_state_dict(position)
    assert strict.next_batch(50) == again.next_batch(50)


def test_row_groups_that_cannot_hold_the_tag_are_not_read(tmp_path):
    table = pa.table({"TEXT": ["u"] * 10 + ["n"] * 10, "NSFW": ["UNLIKELY"] * 10 + ["NSFW"] * 10})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    source = open_source(str(tmp_path), everything(drop_duplicates=False), {"NSFW": 1.0})
    source.next_batch(10)
    assert source.metrics()["captions/read"] == 10


def test_rare_tags_are_found_without_scanning_the_set(tmp_path):
    """1 of 68 rows is NSFW: 32 of them lie in about 32 * 68 rows, and row groups are read whole."""
    for part in range(10):
        table = laion_table(3000, part * 3000)
        pq.write_table(table, tmp_path / f"part-{part:05d}.parquet", row_group_size=500)
    source = open_source(str(tmp_path / "part-*.parquet"), everything(), {"NSFW": 0.5, OTHER: 0.5})
    assert Counter(record.tag == "NSFW" for record in source.next_batch(64)) == {True: 32, False: 32}
    assert source.metrics()["captions/read"] <= 32 * 68 + 2 * 500 < 0.11 * 30_000


def test_memory_is_that_of_a_few_chunks_not_of_a_row_group(tmp_path):
    """One row group of 120 MB of text, of which a chunk is 13 MB: 60 MB are used, 350 if it is read whole."""
    num_rows, chars = 600_000, 200
    size = {"write_batch_size": 1000, "data_page_size": 1 << 18, "use_dictionary": False}
    rows = pa.array([f"{i:0{chars}d}" for i in range(num_rows)])
    pq.write_table(pa.table({"TEXT": rows}), tmp_path / "a.parquet", row_group_size=num_rows, **size)
    del rows
    pa.default_memory_pool().release_unused()
    source = open_source(str(tmp_path / "a.parquet"), everything())
    grown, _ = peak_growth(lambda: source.next_batch(100))
    assert grown < num_rows * chars


def test_only_the_needed_columns_are_read(tmp_path):
    table = laion_table(2000).append_column("BLOB", pa.array([b"x" * 2000] * 2000))
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    sizes = []

    class CountingFile(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            sizes.append(len(data))
            return data

    shard = ParquetShard("a", lambda: CountingFile(tmp_path / "a.parquet"))
    assert sum(len(chunk.texts) for chunk in shard.chunks(0)) == 2000
    assert 0 < sum(sizes) < 0.1 * (tmp_path / "a.parquet").stat().st_size


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt", "b.parquet"])
def test_every_kind_of_file_gives_the_same_captions(tmp_path, name):
    captions = ['a "red" boat, blue', "שלום עולם 💀", "tab here", "z" * 2000]
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("\ufeff" + "\r\n".join(captions) + "\n\n", encoding="utf8", newline="")
    elif name == "a.jsonl":
        rows = [{"caption": c, "tag": t} for c, t in zip([*captions, None], "xyxyx", strict=True)]
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf8")
    elif name == "b.parquet":
        columns = {"caption": pa.array([*captions, None]).dictionary_encode(), "tag": list("xyxyx")}
        pq.write_table(pa.table(columns), path)
    else:
        comma = "," if name == "a.csv" else "\t"
        lines = [
            comma.join(['"' + c.replace('"', '""') + '"', "1", t])
            for c, t in zip(captions, "xyxy", strict=True)
        ]
        path.write_text("\ufeff" + "\n".join([comma.join(["caption", "n", "tag"]), *lines]), encoding="utf8")
    records = open_source(str(path), everything()).next_batch(4)
    assert sorted(texts(records)) == sorted(captions)
    tags = {record.text: record.tag for record in records}
    expected = [UNTAGGED] * 4 if name == "a.txt" else list("xyxy")
    assert [tags[c] for c in captions] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"caption": "x"}\n{"caption": \n', "line 2"),
        ("a.jsonl", b'{"caption": "x"}\n[1]\n', "line 2"),
        ("a.jsonl", b'{"caption": 5}\n', "line 1.*5"),
        ("a.csv", b"caption,n\nx,1\ny\n", "a.csv"),
        ("a.csv", b"caption,n\n\xff\xfe,1\n", "a.csv"),
        ("a.docx", b"x", "a.docx.*parquet"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name), everything())


def test_odd_bytes_and_half_surrogates_do_not_stop_a_run(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"caption": "half \\ud83d boat"}\n')
    assert texts(open_source(str(tmp_path / "a.jsonl"), everything()).next_batch(1)) == ["half ? boat"]
    raw = pa.Array.from_buffers(pa.string(), 1, pa.array([b"bad \xff boat"]).buffers())
    pq.write_table(pa.table({"caption": raw}), tmp_path / "a.parquet")
    assert texts(open_source(str(tmp_path / "a.parquet"), everything()).next_batch(1)) == ["bad \ufffd boat"]


def test_no_such_file():
    for source in ("absent/folder", "absent/*.parquet", "prompts:absent"):
        with pytest.raises(ValueError, match="absent"):
            open_source(source, everything())


@pytest.mark.parametrize("shares", [{}, {"NSFW": 0.5}, {"NSFW": 1.5, "UNSURE": -0.5}, {"NSFW": float("nan")}])
def test_shares_that_do_not_add_up(shares):
    with pytest.raises(ValueError, match="shares"):
        CaptionRequest(everything(), shares)


def test_settings_that_a_source_would_ignore_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a boat\n")
    refused = [
        ("prompts:counting", everything(), {"tag_column": "NSFW"}),
        (str(tmp_path / "a.txt"), everything(), {"column": "TEXT"}),
    ]
    for source, settings, columns in refused:
        with pytest.raises(ValueError, match=r"leave captions\."):
            open_source(source, settings, **columns)


def test_evaluation_sets_are_distinct_and_frozen(tmp_path):
    source = CaptionRequest(everything(drop_duplicates=False)).draw_from(
        [TableShard("t", ["a b", "A, B", "c", "d"])]
    )
    records = distinct_captions(source, 3)
    assert len({record.id for record in records}) == 3
    assert freeze_captions(records, tmp_path / "e.parquet") == freeze_captions(
        records, tmp_path / "f.parquet"
    )
    assert read_frozen(tmp_path / "e.parquet") == records
    digest = hashlib.sha256((tmp_path / "e.parquet").read_bytes()).hexdigest()
    assert (tmp_path / "e.parquet.sha256").read_text() == f"{digest}  e.parquet\n"
    with pytest.raises(ValueError, match="only 3 distinct"):
        distinct_captions(source, 4)


def tagged(**counts):
    """A source with so many captions of each tag, half of them tagged `rare`."""
    rows = [(f"{tag} {n}", tag) for tag, count in counts.items() for n in range(count)]
    shard = TableShard("t", [text for text, _ in rows], [tag for _, tag in rows])
    return CaptionRequest(everything(), {"rare": 0.5, OTHER: 0.5}).draw_from([shard])


def test_an_evaluation_set_has_the_shares_or_names_the_tag_that_ran_out():
    assert Counter(r.tag for r in distinct_captions(tagged(rare=20, common=500), 40)) == {
        "rare": 20,
        "common": 20,
    }
    for few in (19, 3):
        with pytest.raises(ValueError, match=f"only {few} distinct captions for rare, whose share needs 20"):
            distinct_captions(tagged(rare=few, common=500), 40)
    with pytest.raises(ValueError, match="only 10 distinct captions for OTHER, whose share needs 20"):
        distinct_captions(tagged(rare=25, common=10), 40)


HAIKU = '''
from dalle_ppo.captions.shards import TableShard


def load(name, request):
    """Lines about a season."""
    return request.draw_from([TableShard(name, [f"{name} rain", f"{name} moon"])])
'''


def test_a_new_file_is_a_new_source(tmp_path, monkeypatch):
    (tmp_path / "haiku.py").write_text(HAIKU)
    with pytest.raises(ValueError, match=r"no source haiku; use one of .*\bfiles:, .*\bhub:, .*\bprompts:"):
        open_source("haiku:autumn", everything())
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    drawn = open_source("haiku:autumn", everything()).next_batch(2)
    assert sorted(texts(drawn)) == ["autumn moon", "autumn rain"]
    assert {record.tag for record in drawn} == {UNTAGGED}
    monkeypatch.delitem(sys.modules, "dalle_ppo.captions.sources.haiku")


def test_a_source_that_is_handed_in_goes_before_files_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("a file\n")
    monkeypatch.chdir(tmp_path)
    asked = []
    request = CaptionRequest(everything())
    given = {"mine": lambda rest, request: asked.append((rest, request)) or "opened"}
    assert open_captions("mine:all", request, given) == open_captions("mine", request, given) == "opened"
    assert asked == [("all", request), ("", request)]


def test_files_may_have_a_colon_in_their_name_and_a_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hub.txt", "odd:name.txt"):
        (tmp_path / name).write_text(f"captions of {name}\n")
        for source in (name, f"files:{name}"):
            assert texts(open_source(source, everything()).next_batch(1)) == [f"captions of {name}"]


@pytest.mark.parametrize("cleaned", [False, True])
def test_real_web_text_passes_through_everything(cleaned):
    path = Path(__file__).parents[2] / ".." / "shared" / "captions" / "web_alt_text_5000.parquet"
    if not path.exists():
        pytest.skip("the shared captions are not here")
    from open_clip.tokenizer import SimpleTokenizer

    from dalle_ppo.models.dalle.tokenizer import TextTokenizer, train_bpe

    chosen = everything(clean=cleaned, drop_duplicates=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(str(path), chosen)
        found = texts(source.next_batch(5000))
    assert source.metrics()["captions/read"] == 5000, "each of them, once"
    if not cleaned:
        assert sorted(found) == sorted(pq.read_table(path)["TEXT"].to_pylist())
    assert max(map(len, found)) > 1000
    assert cleaned != any("<a " in text or "&amp;" in text for text in found)
    assert TextTokenizer(*train_bpe(found[:300], 100)).encode(found).tokens.shape == (5000, 64)
    assert SimpleTokenizer()(found).shape == (5000, 77)
