"""`captions.where`: which rows of a file are read."""

import gzip
import json

import pyarrow as pa
import pyarrow.csv
import pytest
from caption_files import captions_of, write, write_table

from dalle_ppo.captions.reading import Condition


def test_conditions_choose_rows_in_every_format(tmp_path):
    columns = {"TEXT": ["a", "b", "c", "d"], "punsafe": [0.1, 0.7, None, 0.2], "WIDTH": [300, 300, 300, 100]}
    write_table(tmp_path / "a.parquet", **columns)
    rows = pa.table(columns).to_pylist()
    write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.csv.write_csv(pa.table(columns), tmp_path / "c.csv")
    for path in sorted(tmp_path.iterdir()):
        assert [t for t, _ in captions_of(path, where="punsafe < 0.5 and width >= 256")] == ["a"], path.name
        with pytest.raises(ValueError, match=r"has no column 'height' \(captions\.where\); columns found"):
            captions_of(path, where="height > 2")


@pytest.mark.parametrize(
    "condition, words",
    [
        ("punsafe <", "which is not a condition"),
        ("1 < 2", "it must name a column"),
        ("punsafe + 1", "it must be true or false for each row"),
        ("sum(punsafe) > 1", "it must be true or false for each row"),
        ("punsafe < date(TEXT)", r"a\.parquet: captions\.where is 'punsafe < date\(TEXT\)': "),
    ],
)
def test_conditions_that_are_none(condition, words, tmp_path):
    path = write_table(tmp_path / "a.parquet", TEXT=["a", "b"], punsafe=[0.1, 0.2])
    with pytest.raises(ValueError, match=words):
        captions_of(path, where=condition)


def test_a_condition_reads_the_columns_that_it_names():
    assert Condition("a < 1 and not (b = 'x' or a > 3)").columns == ("a", "b")


def test_text_that_is_numbers_is_compared_as_numbers(tmp_path):
    rows = [("a", "9e-05"), ("b", "0.9"), ("c", ""), ("d", "0.1")]
    path = write(tmp_path / "a.csv", "TEXT,punsafe\n" + "".join(f"{t},{p}\n" for t, p in rows))
    low = {"where": "punsafe < 0.5", "tag_thresholds": {"low": 0.0}}
    assert [text for text, _ in captions_of(path, **low)] == ["a", "d"]
    path = write_table(tmp_path / "a.parquet", TEXT=["a", "b"], width=["1000", "99"])
    assert [text for text, _ in captions_of(path, where="width > 256.5")] == ["a"]
    assert [text for text, _ in captions_of(path, where="width = '99'")] == ["b"]


HEAD = ["TEXT", "key", "date", "n", "good", "kind", "other"]
LINES = [
    ["one", "0012", "2020-12-31", "1", "True", "x", "12x"],
    ["two", "12", "2021-02-01", "2", "True", "x", "12"],
    ["three", "7", "2021-04-01", "3", "False", "x", "7"],
]
TYPED = {"key = 12": [0, 1], "date > DATE '2021-03-01'": [2]}
"""Conditions on columns of numbers and dates, and the rows that meet them."""
AS_TEXT = {
    "key = '0012'": [0],
    "'0012' = key": [0],
    "key in ('0012', '7') and n > 1": [2],
    "date > '2021-01-01'": [1, 2],
    "date > '2021-01-01' and n = 2 and good = true": [1],
    "key = '0012' and kind = 'x'": [0],
    "key = '0012' and date < '2021-01-01' and n < 2 and good": [0],
    "key like '00%' or n + 1 > 3": [0, 2],
}
"""Those that hold in any format: `good` is true or false, `n` a number, and all others are text."""
SPELLED = {"good = 'True' and n > 1": [1], "good = 'true' or key = '7'": [2], "key = other and n > 2": [2]}


@pytest.mark.parametrize(
    "name, condition, rows",
    [
        *(("a.parquet", *case) for case in AS_TEXT.items()),
        *((name, *case) for name in ("a.csv", "a.tsv.gz") for case in (TYPED | AS_TEXT | SPELLED).items()),
    ],
)
def test_a_condition_may_compare_text_that_looks_like_something_else(name, condition, rows, tmp_path):
    if name == "a.parquet":
        columns = {title: [line[at] for line in LINES] for at, title in enumerate(HEAD)}
        columns |= {"n": [1, 2, 3], "good": [True, True, False]}
        write_table(tmp_path / name, **columns)
    elif name == "a.csv":
        write(tmp_path / name, "\n".join(",".join(line) for line in [HEAD, *LINES]))
    else:
        text = "\n".join("\t".join(line) for line in [HEAD, *LINES])
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    texts = [text for text, _ in captions_of(tmp_path / name, where=condition)]
    assert texts == [LINES[row][0] for row in rows]


def test_a_condition_on_many_columns_that_cannot_be_computed_is_refused_soon(tmp_path, monkeypatch):
    """Every choice of columns as text was tried, which for 20 columns took ten minutes."""
    names, calls, mask = [f"n{number}" for number in range(12)], [], Condition.mask

    def counted(*arguments):
        calls.append(arguments)
        return mask(*arguments)

    monkeypatch.setattr(Condition, "mask", counted)
    path = write(tmp_path / "a.csv", f"TEXT,{','.join(names)}\na boat{',1' * len(names)}\n")
    condition = " and ".join(f"{name} > 0" for name in names) + " and abs(TEXT) > 0"
    with pytest.raises(ValueError, match=r"a\.csv: captions\.where is "):
        captions_of(path, where=condition)
    assert len(calls) <= 2 * len(names)
