"""Caption files as found in practice: each was once misread without an error."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from caption_files import captions_of, found, write, write_table
from laion_tables import everything, open_source

from dalle_ppo.captions.overview import as_text
from dalle_ppo.captions.reading import spelled
from dalle_ppo.captions.tags import UNTAGGED

# --- quotes


def test_a_quote_that_opens_a_caption_swallows_no_rows(tmp_path):
    captions = ['"24 inch monitor', "a boat", 'a 30" screen', '"quoted" word', "a tree", 'the "end'] * 7
    lines = [f"{text} {n}\thttp://example.org/{n}" for n, text in enumerate(captions)]
    path = write(tmp_path / "train.tsv", "\n".join(lines) + "\n")
    assert [text for text, _ in captions_of(path)] == [f"{text} {n}" for n, text in enumerate(captions)]


def test_a_tsv_that_quotes_by_the_rules_is_read_by_them(tmp_path):
    table = pa.table({"TEXT": ['a "24 inch" monitor', "a boat\nat sea", "tab\there"], "NSFW": ["NSFW"] * 3})
    options = pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="all_valid")
    pyarrow.csv.write_csv(table, tmp_path / "a.tsv", options)
    assert captions_of(tmp_path / "a.tsv") == [(text, "NSFW") for text in table["TEXT"].to_pylist()]


DOUBTFUL = 'TEXT\tNSFW\n"a ""big"" boat"\tNSFW\n"24 inch\tNSFW\n'


def test_a_quote_style_in_doubt_is_asked_for(tmp_path):
    path = write(tmp_path / "a.tsv", DOUBTFUL)
    with pytest.raises(ValueError, match=r"a\.tsv: it is unclear .* captions\.quoting to standard"):
        captions_of(path)
    assert [text for text, _ in captions_of(path, quoting="none")] == ['"a ""big"" boat"', '"24 inch']


def test_rows_that_a_quote_swallows_in_a_csv_are_not_lost_in_silence(tmp_path):
    path = write(tmp_path / "a.csv", 'TEXT,NSFW\n"24 inch,NSFW\na boat,NSFW\nthe end",NSFW\n')
    with pytest.raises(ValueError, match="on, a quote spans 3 lines that look like rows"):
        captions_of(path)
    assert len(captions_of(path, quoting="none")) == 3
    honest = write(tmp_path / "b.csv", 'TEXT,NSFW\n"a boat,\nat sea, far",NSFW\na tree,UNSURE\n')
    assert captions_of(honest) == [("a boat,\nat sea, far", "NSFW"), ("a tree", "UNSURE")]


# --- headers


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["cc3m", "cc12m"])
def test_conceptual_captions_has_no_header(order, tmp_path):
    rows = [("a red boat", "http://example.org/1.jpg"), ("a blue car", "https://example.org/2.jpg")]
    path = write(tmp_path / "a.tsv", "".join("\t".join(row[i] for i in order) + "\n" for row in rows))
    assert [text for text, _ in captions_of(path)] == ["a red boat", "a blue car"]


def test_columns_by_number(tmp_path):
    path = write(tmp_path / "a.csv", "1,a red boat,NSFW\n2,a blue car,UNSURE\n")
    wanted = [("a red boat", "NSFW"), ("a blue car", "UNSURE")]
    assert captions_of(path, header=False, column="1", tag_column="2") == wanted
    assert captions_of(path, column="1", tag_column="2") == wanted
    with pytest.raises(ValueError, match=r"has no header; give the number .* 0: '1', 1: 'a red boat'"):
        captions_of(path, header=False)
    with pytest.raises(ValueError, match=r"has no column '7' \(captions\.column\)"):
        captions_of(path, header=False, column="7")


def test_a_header_may_be_declared(tmp_path):
    path = write(tmp_path / "a.tsv", "caption\nb\n")
    assert [text for text, _ in captions_of(path, header=False, column="0")] == ["caption", "b"]


# --- columns


def test_keys_may_be_missing_in_the_first_rows(tmp_path):
    rows = [{"url": "u"}, {"text": "a"}, {"text": "b", "NSFW": "NSFW"}, {"NSFW": "UNSURE", "text": "c"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert captions_of(path) == [("a", UNTAGGED), ("b", "NSFW"), ("c", "UNSURE")]


@pytest.mark.parametrize("name", ["nsfw", "Nsfw", "TAG"])
def test_columns_are_found_whatever_their_case(name, tmp_path):
    path = write_table(tmp_path / "a.parquet", **{"Caption": ["a boat"], name: ["NSFW"]})
    assert captions_of(path) == [("a boat", "NSFW")]
    assert captions_of(path, column="CAPTION", tag_column=name.swapcase()) == [("a boat", "NSFW")]
    assert captions_of(path, tag_column="") == [("a boat", UNTAGGED)]


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["TEXT", "TEXT"])
    pq.write_table(table, tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", write(tmp_path / "b.csv", "TEXT,TEXT\na,b\n")):
        with pytest.raises(ValueError, match=rf"{path.name}: has 2 columns called 'TEXT'; rename"):
            captions_of(path)


def test_fields_of_a_struct(tmp_path):
    meta = [{"caption": "a boat", "rating": {"nsfw": "NSFW"}}, {"caption": "a car", "rating": None}]
    names = {"column": "meta.caption", "tag_column": "meta.rating.nsfw"}
    write_table(tmp_path / "a.parquet", meta=meta)
    write(tmp_path / "b.jsonl", "".join(json.dumps({"meta": m}) + "\n" for m in meta))
    for name in ("a.parquet", "b.jsonl"):
        assert captions_of(tmp_path / name, **names) == [("a boat", "NSFW"), ("a car", UNTAGGED)]
    with pytest.raises(ValueError, match=r"a\.parquet: there is no 'meta\.text'; 'text' is not a field"):
        captions_of(tmp_path / "a.parquet", column="meta.text")


def test_text_in_a_binary_column(tmp_path):
    values = ["a café".encode(), b"bro\xffken"]
    for name, kind in (("a", pa.binary()), ("b", pa.large_binary()), ("c", pa.binary_view())):
        if kind != pa.binary_view():
            path = write_table(tmp_path / f"{name}.parquet", caption=pa.array(values, kind))
            assert [text for text, _ in captions_of(path)] == ["a café", "bro\ufffdken"]


def test_lists_of_captions(tmp_path):
    lists = [["a boat", "a ship"], [], None, ["a car", None, "a bus"]]
    write_table(tmp_path / "a.parquet", captions=lists, NSFW=["NSFW", "NSFW", "NSFW", "UNSURE"])
    rows = [{"captions": c, "NSFW": t} for c, t in zip(lists, ["NSFW"] * 3 + ["UNSURE"], strict=True)]
    write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.parquet", "b.jsonl"):
        every = captions_of(tmp_path / name)
        assert every == [("a boat", "NSFW"), ("a ship", "NSFW"), ("a car", "UNSURE"), ("a bus", "UNSURE")]


def test_one_caption_of_each_list_in_each_pass(tmp_path):
    write_table(tmp_path / "a.parquet", captions=[[f"{n} boats", f"{n} ships"] for n in range(40)])
    source = open_source(str(tmp_path), everything(), lists="one")
    passes = [{record.text for record in source.next_batch(40)} for _ in range(4)]
    for drawn in passes:
        assert sorted(text.split()[0] for text in drawn) == sorted(str(n) for n in range(40))
    assert len({frozenset(drawn) for drawn in passes}) == 4
    assert 40 < len(set.union(*passes)) <= 80
    again = open_source(str(tmp_path), everything(), lists="one")
    again.next_batch(25)
    state = again.state_dict()
    resumed = open_source(str(tmp_path), everything(), lists="one")
    resumed.load_state_dict(state)
    assert resumed.next_batch(30) == again.next_batch(30)


# --- tags


@pytest.mark.parametrize(
    "values, tags",
    [
        ([True, False, None], ["true", "false", UNTAGGED]),
        ([1, 0, None], ["1", "0", UNTAGGED]),
        (["NSFW", " NSFW ", ""], ["NSFW", "NSFW", UNTAGGED]),
    ],
    ids=["truth", "integers", "text"],
)
def test_a_tag_has_one_spelling_in_every_format(values, tags, tmp_path):
    texts = [f"caption {n}" for n in range(3)]
    write_table(tmp_path / "a.parquet", TEXT=texts, NSFW=values)
    rows = [{"TEXT": text, "NSFW": value} for text, value in zip(texts, values, strict=True)]
    write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "c.json", json.dumps(rows))
    cells = ["" if value is None else str(value) for value in values]
    write(
        tmp_path / "d.csv", "TEXT,NSFW\n" + "".join(f"{t},{c}\n" for t, c in zip(texts, cells, strict=True))
    )
    write(
        tmp_path / "e.tsv", "TEXT\tNSFW\n" + "".join(f"{t}\t{c}\n" for t, c in zip(texts, cells, strict=True))
    )
    for path in sorted(tmp_path.iterdir()):
        assert [tag for _, tag in captions_of(path)] == tags, path.name


def test_spelling():
    given = [True, "TRUE", 1, 1.0, "1.0", "-2.00", float("nan"), " x ", "1.5"]
    assert [spelled(value) for value in given] == ["true", "true", "1", "1", "1", "-2", UNTAGGED, "x", "1.5"]


def test_a_map_renames_tags(tmp_path):
    path = write_table(tmp_path / "a.parquet", TEXT=["a", "b", "c"], unsafe=[True, False, None])
    mapped = captions_of(path, tag_column="unsafe", tag_map={"true": "NSFW", UNTAGGED: "UNSURE"})
    assert [tag for _, tag in mapped] == ["NSFW", "false", "UNSURE"]
    shares = {"NSFW": 0.5, "false": 0.5}
    renamed = {"tag_column": "unsafe", "tag_map": {"true": "NSFW"}}
    drawn = open_source(str(path), everything(), shares, **renamed).next_batch(4)
    assert sorted(record.tag for record in drawn) == ["NSFW", "NSFW", "false", "false"]


SCORES = [0.0312, 0.3, 0.95, None, -0.5]
THRESHOLDS = {"UNLIKELY": 0, "NSFW": 0.8, "UNSURE": 0.3}


def test_scores_are_no_tags_and_thresholds_make_them_some(tmp_path):
    texts = [f"caption {n}" for n in range(5)]
    write_table(tmp_path / "a.parquet", TEXT=texts, punsafe=SCORES)
    rows = [{"TEXT": text, "punsafe": score} for text, score in zip(texts, SCORES, strict=True)]
    write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    cells = ["" if score is None else score for score in SCORES]
    write(
        tmp_path / "c.csv",
        "TEXT,punsafe\n" + "".join(f"{t},{c}\n" for t, c in zip(texts, cells, strict=True)),
    )
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"'punsafe' holds scores such as .*captions\.tag_thresholds"):
            captions_of(path, tag_column="punsafe")
        tags = [tag for _, tag in captions_of(path, tag_thresholds=THRESHOLDS)]
        assert tags == ["UNLIKELY", "UNSURE", "NSFW", UNTAGGED, UNTAGGED], path.name
    with pytest.raises(ValueError, match="needs scores, but column 'TEXT' holds something else"):
        captions_of(tmp_path / "a.parquet", tag_column="TEXT", column="TEXT", tag_thresholds=THRESHOLDS)


def test_a_column_of_scores_that_is_found_by_itself_is_refused_too(tmp_path):
    path = write_table(tmp_path / "a.parquet", TEXT=["a", "b"], nsfw=[0.1, 0.9])
    with pytest.raises(ValueError, match=r"holds scores such as 0\.1"):
        captions_of(path)
    assert captions_of(path, tag_column="") == [("a", UNTAGGED), ("b", UNTAGGED)]


# --- folders


def test_what_img2dataset_writes_is_read_once(tmp_path):
    for shard in ("00000", "00001"):
        keys = [f"{shard}{n:04d}" for n in range(3)]
        captions = [f"caption {key}" for key in keys]
        write_table(tmp_path / f"{shard}.parquet", caption=captions, key=keys, status=["success"] * 3)
        write(tmp_path / f"{shard}_stats.json", json.dumps({"count": 3, "caption": "no"}))
        for key, caption in zip(keys, captions, strict=True):
            write(tmp_path / shard / f"{key}.txt", caption)
            write(tmp_path / shard / f"{key}.json", json.dumps({"caption": caption, "key": key}))
            (tmp_path / shard / f"{key}.jpg").write_bytes(b"")
    everything_in_it = found(tmp_path)
    assert everything_in_it.rows == 6 and len(everything_in_it.files) == 2
    whys = {left.why for left in everything_in_it.left_out}
    assert "img2dataset's statistics, not captions" in whys and len(everything_in_it.left_out) == 14
    assert "holds one image's caption, which is read from 00000.parquet" in whys
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    alone = found(tmp_path)
    assert sorted(text for text, _ in captions_of(tmp_path)) == sorted(
        f"caption {s}{n:04d}" for s in ("00000", "00001") for n in range(3)
    )
    assert "holds one image's caption, which is read from the .txt file" in {
        left.why for left in alone.left_out
    }


def test_every_kind_in_a_folder_is_read(tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one"], NSFW=["NSFW"])
    line = json.dumps({"TEXT": "two", "NSFW": "NSFW"}) + "\n"
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    write(tmp_path / "c.ndjson", line.replace("two", "three"))
    write(tmp_path / "d.json", json.dumps([{"TEXT": "four", "NSFW": "NSFW"}]))
    (tmp_path / "e.csv.bz2").write_bytes(bz2.compress(b"TEXT,NSFW\nfive,NSFW\n"))
    with pa.output_stream(str(tmp_path / "f.tsv.zst"), compression="zstd") as stream:
        stream.write(b"TEXT\tNSFW\nsix\tNSFW\n")
    (tmp_path / "g.TXT.GZ").write_bytes(gzip.compress(b"seven\n", mtime=0) + gzip.compress(b"eight\n"))
    write(tmp_path / "h.json", json.dumps({"annotations": [{"id": 1, "caption": "nine"}]}))
    texts = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert [text for text, _ in captions_of(tmp_path)] == texts
    for path in sorted(tmp_path.iterdir()):
        assert captions_of(path), "alone, too"


def test_companions_of_captions_are_none(tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one", "two"])
    (tmp_path / "._a.parquet").write_bytes(b"\0\5\26\7")
    write_table(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.parquet", TEXT=["one"])
    for name in ("_SUCCESS", ".a.parquet.crc", "README.txt", "LICENSE.txt", "a.tar", "_temporary/b.csv"):
        write(tmp_path / name, "TEXT\nno caption\n")
    seen = found(tmp_path)
    assert seen.rows == 2 and len(seen.left_out) == 8
    whys = {Path(left.file).name: left.why for left in seen.left_out}
    assert whys["a.tar"] == "format not supported (.tar)"
    assert whys["README.txt"] == "its name says it holds no captions"
    assert whys["._a.parquet"].startswith("hidden")


def test_json_without_captions_does_not_stop_a_folder(tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one"])
    write(tmp_path / "dataset_info.json", json.dumps({"features": {"x": 1}}))
    seen = found(tmp_path)
    assert seen.rows == 1 and seen.left_out[0].why.startswith("holds no captions (")
    with pytest.raises(ValueError, match=r"dataset_info\.json: has none of the usual caption columns"):
        captions_of(tmp_path / "dataset_info.json")


def test_the_same_captions_in_two_formats_are_read_once(tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one", "two"])
    write(tmp_path / "a.csv", "TEXT\none\ntwo\n")
    write(tmp_path / "b.csv", "TEXT\nthree\n")
    write(tmp_path / "b.jsonl", json.dumps({"TEXT": "four"}) + "\n")
    seen = found(tmp_path)
    assert [text for text, _ in captions_of(tmp_path)] == ["one", "two", "three", "four"]
    assert [left.why for left in seen.left_out] == ["the same captions as a.parquet"]


def test_hive_folders_are_columns(tmp_path):
    for tag in ("NSFW", "UNSURE", "__HIVE_DEFAULT_PARTITION__"):
        for year in ("2021", "2022"):
            folder = tmp_path / f"NSFW={tag}" / f"year={year}"
            write_table(folder / "part-0.parquet", TEXT=[f"{tag[:4]} {year}"])
    write(tmp_path / "NSFW=not%20sure" / "year=2021" / "a.csv", "TEXT\nodd\n")
    tags = dict(captions_of(tmp_path))
    assert tags["NSFW 2021"] == "NSFW" and tags["UNSU 2022"] == "UNSURE" and tags["__HI 2021"] == UNTAGGED
    assert tags["odd"] == "not sure"
    assert {text for text, _ in captions_of(tmp_path, where="year = '2022'")} == {
        "NSFW 2022",
        "UNSU 2022",
        "__HI 2022",
    }
    drawn = open_source(str(tmp_path), everything(), {"UNSURE": 1.0}).next_batch(4)
    assert {record.text for record in drawn} == {"UNSU 2021", "UNSU 2022"}


def test_files_without_the_columns_that_others_have_are_named(tmp_path):

    write_table(tmp_path / "a.parquet", TEXT=["one"], NSFW=["NSFW"])
    write_table(tmp_path / "b.parquet", TEXT=["two", "three"])
    text = as_text(found(tmp_path))
    assert "not in b.parquet of 2 files: their 2 rows are UNTAGGED" in text
    assert "tags: NSFW 1 (33.3%), UNTAGGED 2 (66.7%)" in text
    (tmp_path / "a.parquet").unlink()
    assert "no tag column: every caption is UNTAGGED" in as_text(found(tmp_path))


def test_text_beside_tables_is_left_out_where_columns_are_named(tmp_path):
    write_table(tmp_path / "a.parquet", words=["one"])
    write(tmp_path / "b.txt", "two\n")
    seen = found(tmp_path, column="words")
    assert seen.rows == 1 and seen.left_out[0].why == "text files have no columns, but the settings name some"


def test_blanks_around_tags_rule_no_row_group_out(tmp_path):
    """Statistics are of the raw values, and " NSFW" sorts before "NSFW"."""
    write_table(tmp_path / "a.parquet", TEXT=["a", "b"], NSFW=[" NSFW", " NSFW"])
    assert len(open_source(str(tmp_path), everything(), {"NSFW": 1.0}).next_batch(2)) == 2
    write_table(tmp_path / "a.parquet", TEXT=["a", "b"], NSFW=["True", "True"])
    assert len(open_source(str(tmp_path), everything(), {"true": 1.0}).next_batch(2)) == 2


# --- what an attempt to break the readers found


@pytest.mark.parametrize(
    "text",
    [
        'TEXT,title\na,"24 inch\nb,x\nc,end"\nd,y\n',
        'id,TEXT\n1,"24 inch\n2,b\n3,the end"\n4,"a, b"\n',
        'TEXT\n"24 inch\nb\nthe end"\nd\n',
    ],
    ids=["other column", "a quoted comma elsewhere", "one column"],
)
def test_a_swallowing_quote_is_seen_wherever_it_is(text, tmp_path):
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(ValueError, match="it is unclear whether quotes hold fields together"):
        captions_of(path)


def test_nan_and_null_are_no_tags_and_fulfil_no_condition(tmp_path):
    path = write(tmp_path / "a.csv", "TEXT,NSFW\na,NaN\nb,NULL\nc,NSFW\n")
    assert [tag for _, tag in captions_of(path)] == [UNTAGGED, UNTAGGED, "NSFW"]
    path = write_table(tmp_path / "a.parquet", TEXT=["a", "b"], score=[float("nan"), 0.9])
    assert [text for text, _ in captions_of(path, where="score > 0.5")] == ["b"]


def test_shards_that_look_alike_are_no_copies(tmp_path):
    for part in range(2):
        columns = {"TEXT": ["same", "same"], "n": [part, part]}
        write_table(tmp_path / f"part.{part}.parquet", **columns)
    assert len(found(tmp_path).files) == 2


def test_of_two_copies_the_one_with_tags_is_read(tmp_path):
    write(tmp_path / "a.csv", "TEXT\none\n")
    write(tmp_path / "a.jsonl", '{"TEXT": "one", "NSFW": "NSFW"}\n')
    assert captions_of(tmp_path) == [("one", "NSFW")]
    assert [left.why for left in found(tmp_path).left_out] == [
        "the same captions as a.jsonl, which has tags too"
    ]


def test_captions_of_images_are_read_where_no_table_covers_them(tmp_path):
    write(tmp_path / "a" / "1.txt", "one")
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    write(tmp_path / "b" / "captions.csv", "TEXT\ntwo\n")
    write(tmp_path / "b" / "captions" / "more.txt", "three")
    assert {text for text, _ in captions_of(tmp_path)} == {"one", "two", "three"}


def test_damaged_json_in_a_folder_is_not_passed_over(tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one"])
    write(tmp_path / "b.json", '[{"TEXT": "two"}, {"TEXT"')
    with pytest.raises(ValueError, match=r"b\.json, line 1: is not JSON"):
        captions_of(tmp_path)


def test_linked_folders_are_entered_once(tmp_path):
    write_table(tmp_path / "data" / "a.parquet", TEXT=["one"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.csv").symlink_to(tmp_path / "nowhere")
    assert captions_of(tmp_path / "set") == [("one", UNTAGGED)]
    assert [left.why for left in found(tmp_path / "set").left_out] == ["not a file, or a broken link"]


def test_a_glob_may_name_folders(tmp_path):
    write(tmp_path / "a.csv" / "part-0.csv", "TEXT\none\n")
    write(tmp_path / "b.csv" / "part-0.csv", "TEXT\ntwo\n")
    assert [text for text, _ in captions_of(tmp_path / "*.csv")] == ["one", "two"]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", "1.jpg#0\tA child\n1.jpg#1\tA boy\n", r"looks like a table .* rename it to end in \.tsv"),
        ("a.txt", "image,caption\n1.jpg,A child\n", r"rename it to end in \.csv"),
        (
            "a.csv",
            "image;caption\n1.jpg;A child\n",
            r"only commas \(\.csv\) and tabs \(\.tsv\)",
        ),
        ("a.jsonl", '{"text": {"a": 1}}\n', r"a\.jsonl, line 1: 'text' is \{'a': 1\}, expected text"),
        ("a.jsonl", '{"text": "a", "NSFW": ["x"]}\n', r"'NSFW' is \['x'\], expected a tag"),
    ],
)
def test_files_that_are_something_else_than_their_name_says(name, content, words, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=words):
        captions_of(path)


@pytest.mark.parametrize(
    "data, words",
    [
        (gzip.compress(b"TEXT\na\n", mtime=0), "its name must end in .gz"),
        ("TEXT\na\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_the_first_bytes_say_what_a_file_is(data, words, tmp_path):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        captions_of(tmp_path / "a.csv")


def test_flickrs_captions_have_no_header(tmp_path):
    path = write(tmp_path / "a.tsv", "1.jpg#0\tA child\n1.jpg#1\tA boy\n")
    assert [text for text, _ in captions_of(path)] == ["A child", "A boy"]


def test_a_row_with_an_address_is_no_header_whatever_it_says(tmp_path):
    path = write(tmp_path / "a.tsv", "caption\thttp://example.org/1\ntext\thttp://example.org/2\n")
    assert [text for text, _ in captions_of(path)] == ["caption", "text"]


def test_folders_give_no_captions(tmp_path):
    write_table(tmp_path / "text=en" / "a.parquet", prompt=["one"], nsfw=["NSFW"])
    assert captions_of(tmp_path) == [("one", "NSFW")]
    with pytest.raises(ValueError, match=r"has no column 'text' \(captions\.column\); columns found: prompt"):
        captions_of(tmp_path, column="text")


def test_a_column_of_the_file_goes_before_that_of_its_folder(tmp_path):
    write_table(tmp_path / "NSFW=NSFW" / "a.parquet", TEXT=["one"], NSFW=["UNSURE"])
    write(tmp_path / "NSFW=NSFW" / "b.csv", "TEXT,NSFW\ntwo,UNSURE\n")
    assert captions_of(tmp_path) == [("one", "UNSURE"), ("two", "UNSURE")]
    drawn = open_source(str(tmp_path), everything(), {"UNSURE": 1.0}).next_batch(2)
    assert sorted(record.text for record in drawn) == ["one", "two"]


def test_tags_in_bytes_and_decimals(tmp_path):
    from decimal import Decimal

    path = write_table(tmp_path / "a.parquet", TEXT=["a"], NSFW=[b"NSFW"])
    assert captions_of(path) == [("a", "NSFW")]
    path = write_table(tmp_path / "b.parquet", TEXT=["a", "b"], NSFW=[Decimal("0.10"), Decimal("1.00")])
    with pytest.raises(ValueError, match="holds scores such as 0"):
        captions_of(path)
    path = write_table(tmp_path / "c.parquet", TEXT=list("abcd"), NSFW=[0.0, 1.0, 2.0, 0.5])
    with pytest.raises(ValueError, match="holds scores such as 0"):
        captions_of(path)


def test_thresholds_in_the_columns_own_precision(tmp_path):
    path = write_table(tmp_path / "a.parquet", TEXT=["a"], punsafe=pa.array([0.7], pa.float32()))
    assert captions_of(path, tag_thresholds={"low": 0, "high": 0.7}) == [("a", "high")]


@pytest.mark.parametrize(
    "reading, words",
    [
        ({"tag_thresholds": {"a": float("nan")}}, "thresholds must be different numbers"),
        ({"tag_thresholds": {"a": 0.5, "b": 0.5}}, "thresholds must be different numbers"),
        ({"tag_thresholds": {"a": 0.5}, "tag_column": ""}, "needs a column of scores"),
        ({"tag_thresholds": {"a": 0.5}}, "needs a column of scores; name it with captions.tag_column"),
        ({"tag_thresholds": {"a": 0.5}, "tag_map": {"a": "b"}}, "cannot be combined"),
    ],
)
def test_thresholds_that_say_nothing(reading, words, tmp_path):
    path = write_table(tmp_path / "a.parquet", TEXT=["a"])
    with pytest.raises(ValueError, match=words):
        captions_of(path, **reading)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.txt", "a.jsonl"])
def test_a_map_names_captions_of_files_without_a_column_of_tags(name, tmp_path):
    if name == "a.parquet":
        write_table(tmp_path / name, TEXT=["one", "two"])
    else:
        text = {"a.csv": "TEXT,n\none,1\ntwo,2\n", "a.txt": "one\ntwo\n"}
        write(tmp_path / name, text.get(name, '{"TEXT": "one"}\n{"TEXT": "two"}\n'))
    reading = {"tag_map": {UNTAGGED: "UNLIKELY"}}
    assert captions_of(tmp_path, **reading) == [("one", "UNLIKELY"), ("two", "UNLIKELY")]
    drawn = open_source(str(tmp_path), everything(), {"UNLIKELY": 1.0}, **reading).next_batch(2)
    assert {record.tag for record in drawn} == {"UNLIKELY"}
    assert "no tag column: every caption is UNLIKELY" in as_text(found(tmp_path, **reading))


def test_a_name_with_a_tilde_is_a_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"there are no caption files at ~nosuch/x\.csv"):
        captions_of("~nosuch/x.csv")
    with pytest.raises(ValueError, match=r"hpdv2:~nosuch lacks anime\.json"):
        captions_of("hpdv2:~nosuch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "~x.csv", "TEXT\none\n")
    assert captions_of("~x.csv") == [("one", UNTAGGED)]
    write(tmp_path / "home" / "a.csv", "TEXT\ntwo\n")
    assert captions_of("~/a.csv") == [("two", UNTAGGED)]


@pytest.mark.parametrize(
    "content", ["[1, 2, 3]", '{"annotations": {"a": 1}}', "7", "null", '"a"', "[[1], []]"]
)
def test_json_about_other_things_does_not_stop_a_folder(content, tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one"])
    write(tmp_path / "b.json", content)
    seen = found(tmp_path)
    assert seen.rows == 1 and seen.left_out[0].why.startswith("holds no captions (")
    with pytest.raises(
        ValueError, match=r"b\.json(, row 1: is not a JSON object|: is not a list of objects)"
    ):
        captions_of(tmp_path / "b.json")


@pytest.mark.parametrize("content", ['[{"TEXT": "two"}, 3]', '{"TEXT": "two"}\n3\n', "[1, 2"])
def test_rows_that_are_damaged_still_stop_a_folder(content, tmp_path):
    write_table(tmp_path / "a.parquet", TEXT=["one"])
    write(tmp_path / "b.json", content)
    with pytest.raises(ValueError, match=r"b\.json, (row|line) \d: is not"):
        captions_of(tmp_path)
