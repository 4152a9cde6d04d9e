"""Published layouts, written here as their authors describe them, and what a store makes of them."""

import io
import json

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from dalle_ppo.preferences import __main__ as command
from dalle_ppo.preferences.store import Answer, Store


def picture(red, size=(16, 16), kind="jpeg"):
    buffer = io.BytesIO()
    Picture.new("RGB", size, (red, 60, 60)).save(buffer, kind)
    return buffer.getvalue()


def shown(store, answer):
    """About the red of each picture, as it was made, in steps of 10."""
    pixels = [np.asarray(Picture.open(store.image_path(key)).convert("RGB")) for key in answer.images]
    return [int(round(float(image[..., 0].mean()), -1)) for image in pixels]


def pickapic(path, rows):
    """The columns of the data card; here 0 wins, 1 wins, a tie, and a row without label."""
    columns = {
        "are_different": [True for _ in rows],
        "best_image_uid": [f"uid{best}" for best, *_ in rows],
        "caption": ["a cat" for _ in rows],
        "created_at": [None for _ in rows],
        "has_label": [has for *_, has in rows],
        "image_0_uid": [f"a{n}" for n, _ in enumerate(rows)],
        "image_1_uid": [f"b{n}" for n, _ in enumerate(rows)],
        "jpg_0": [picture(20 + 10 * n) for n, _ in enumerate(rows)],
        "jpg_1": [picture(120 + 10 * n) for n, _ in enumerate(rows)],
        "label_0": [label for _, label, _ in rows],
        "label_1": [1 - label for _, label, _ in rows],
        "ranking_id": [7 for _ in rows],
        "user_id": [n % 2 for n, _ in enumerate(rows)],
    }
    pq.write_table(pa.table(columns), path)


def test_pick_a_pic(tmp_path, cli):
    pickapic(tmp_path / "p.parquet", [(0, 1.0, True), (1, 0.0, True), (2, 0.5, True), (3, 0.5, False)])
    outcome = cli(command.main, "import", "pickapic", tmp_path / "run", tmp_path / "p.parquet")
    assert outcome.code == 0 and "3 answers added" in outcome.out and "no label" in outcome.out
    store = Store(tmp_path / "run/preferences")
    answers = store.answers()
    assert [answer.ranks for answer in answers] == [(1, 2), (2, 1), (1, 1)]
    assert [shown(store, answer) for answer in answers] == [[20, 120], [30, 130], [40, 140]]
    assert {(a.source, a.caption, a.kind) for a in answers} == {("imported", "a cat", "ranking")}
    assert [answer.rater for answer in answers] == ["pickapic 0", "pickapic 1", "pickapic 0"]
    again = cli(command.main, "import", "pickapic", tmp_path / "run", tmp_path / "p.parquet")
    assert (
        "3 answers were there already" in again.out
        and len(Store(tmp_path / "run/preferences").answers()) == 3
    )


def folder_of_pictures(folder, n):
    (folder / "test").mkdir(parents=True)
    for i in range(n):
        (folder / f"test/{i}.jpg").write_bytes(picture(20 * i + 20))
    return [f"test/{i}.jpg" for i in range(n)]


def test_hpd_v2(tmp_path, cli):
    paths = folder_of_pictures(tmp_path / "HPD", 3)
    test = [
        {
            "prompt": "a cat",
            "image_path": paths,
            "rank": [2.5, 1, 3],
            "raw_annotations": [
                {"rank": [2, 1, 3], "user_hash": "u"},
                {"rank": [2, 0, 2], "user_hash": "v"},
            ],
        }
    ]
    train = [{"prompt": "a dog", "file_path": paths[:2], "human_preference": [0, 1], "user_hash": "w"}, {}]
    for name, entries in (("test", test), ("train", train)):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    files = (tmp_path / "test.json", tmp_path / "train.json")
    outcome = cli(command.main, "import", "hpdv2", tmp_path, *files, "--images", tmp_path / "HPD")
    assert "3 answers added" in outcome.out and "1 rows left out" in outcome.out
    store = Store(tmp_path / "preferences")
    assert [(a.rater, a.ranks) for a in store.answers()] == [
        ("hpdv2 u", (2, 1, 3)),
        ("hpdv2 v", (2, 1, 2)),
        ("hpdv2 w", (2, 1)),
    ]
    assert shown(store, store.answers()[0]) == [20, 40, 60]
    assert store.answers()[0].set_id == store.answers()[1].set_id, "two raters of one set"


def test_image_reward(tmp_path, cli):
    paths = folder_of_pictures(tmp_path / "images", 4)
    rankings = [{"id": "5-1", "prompt": "a cat", "generations": paths, "ranking": [1, 2, 5, 2]}]
    single = [
        {"image_path": path, "prompt_id": "8", "prompt": "a dog", "rank": rank, "overall_rating": 4}
        for path, rank in zip(paths[:3], [5, 1, 3], strict=True)
    ]
    (tmp_path / "rankings.json").write_text(json.dumps(rankings))
    (tmp_path / "train_1.json").write_text(json.dumps(single))
    files = (tmp_path / "rankings.json", tmp_path / "train_1.json")
    outcome = cli(command.main, "import", "imagereward", tmp_path, *files, "--images", tmp_path / "images")
    assert outcome.code == 0, outcome.err
    assert [(a.caption, a.ranks) for a in Store(tmp_path / "preferences").answers()] == [
        ("a cat", (1, 2, 3, 2)),
        ("a dog", (3, 1, 2)),
    ]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "run/preferences")
    keys = [store.add_image(picture(red, kind="png"), "a boat", flagged=red > 90) for red in (40, 80, 100)]
    store.append(Answer("a boat", keys, "ranking", "ann", "person", "s", ranks=(2, 1, 2), seconds=1.5))
    store.append(Answer("a boat", keys[:2], "ranking", "gpt", "model", "t", ranks=(1, 2), harm=(0, 0.5)))
    store.append(Answer("a boat", keys[:1], "rating", "ann", "person", "r", ratings=(4.0,)))
    store.append(Answer("a boat", keys[:2], "skip", "ann", "person", "t"))
    return store


@pytest.mark.parametrize("layout", ["pickapic", "hpdv2", "imagereward"])
def test_what_is_exported_says_the_same_when_imported(store, tmp_path, cli, layout):
    out = tmp_path / ("out.parquet" if layout == "pickapic" else "out.json")
    assert cli(command.main, "export", layout, tmp_path / "run", out).code == 0
    outcome = cli(command.main, "import", layout, tmp_path / "other", out)
    assert outcome.code == 0, outcome.err
    other = Store(tmp_path / "other/preferences")
    assert sorted(other.pairs(other.answers())) == sorted(store.pairs(store.answers()))
    if layout != "pickapic":
        assert [a.ranks for a in other.answers()] == [(2, 1, 2), (1, 2)]


def test_pick_a_pic_as_pick_scores_own_reader_takes_it(store, tmp_path, cli):
    """It reads label_0 as the probability that image 0 is better, and opens the bytes with Pillow."""
    cli(command.main, "export", "pickapic", tmp_path / "run", tmp_path / "out.parquet")
    table = pandas.read_parquet(tmp_path / "out.parquet")
    assert list(table.label_0) == [0.0, 0.5, 1.0, 1.0] and list(table.label_1) == [1.0, 0.5, 0.0, 0.0]
    red = [[Picture.open(io.BytesIO(row[name])).getpixel((0, 0))[0] for name in ("jpg_0", "jpg_1")]
           for _, row in table.iterrows()]  # fmt: skip
    assert red == [[40, 80], [40, 100], [80, 100], [40, 80]]
    assert list(table.best_image_uid[:1]) == list(table.image_1_uid[:1]) and pandas.isna(
        table.best_image_uid[1]
    )


def test_parquet_has_every_field_of_every_answer(store, tmp_path, cli):
    assert cli(command.main, "export", "parquet", tmp_path / "run", tmp_path / "all.parquet").code == 0
    table = pandas.read_parquet(tmp_path / "all.parquet")
    answers = store.answers()
    assert list(table.id) == [answer.id for answer in answers] and table.seconds[0] == 1.5
    assert [tuple(images) for images in table.images] == [answer.images for answer in answers]
    assert list(table.harm[1]) == [0, 0.5] and table.ratings[2][0] == 4.0
    assert list(table.flagged[0]) == [False, False, True] and list(table.sides[1]) == ["policy", "policy"]


def test_answers_whose_pictures_are_gone_are_left_out_of_layouts_with_pictures(store, tmp_path, cli):
    store.image_path(store.answers()[0].images[2]).unlink()
    cli(command.main, "export", "hpdv2", tmp_path / "run", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 1


def test_damaged_rows_are_counted_and_cost_no_other(tmp_path, cli):
    paths = folder_of_pictures(tmp_path, 2)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    secret = tmp_path.parent / f"{tmp_path.name}.jpg"
    secret.write_bytes(picture(200))
    good = {"prompt": "a", "image_path": paths, "rank": [1, 2]}
    bad = [
        {**good, "image_path": [paths[0], "gone.jpg"]},
        {**good, "image_path": [paths[0], "broken.jpg"]},
        {**good, "image_path": [paths[0], f"../{secret.name}"]},
        {**good, "image_path": [paths[0], paths[0]]},
        {**good, "rank": [1]},
        {**good, "rank": ["1", "2"]},
        {**good, "prompt": None},
        17,
    ]
    (tmp_path / "t.json").write_text("\n".join(json.dumps(entry) for entry in [*bad, good]))
    outcome = cli(command.main, "import", "hpdv2", tmp_path, tmp_path / "t.json")
    assert (
        "1 answers added" in outcome.out and "8 rows left out; the first: t.json: the picture" in outcome.out
    )


def test_large_pictures_are_shrunk(tmp_path, cli):
    (tmp_path / "a.png").write_bytes(picture(10, (900, 300), "png"))
    (tmp_path / "b.png").write_bytes(picture(200, (64, 64), "png"))
    entry = {"prompt": "a", "image_path": ["a.png", "b.png"], "rank": [1, 2]}
    (tmp_path / "t.json").write_text(json.dumps([entry]))
    cli(command.main, "import", "hpdv2", tmp_path, tmp_path / "t.json", "--size", "300")
    store = Store(tmp_path / "preferences")
    sizes = [Picture.open(store.image_path(key)).size for key in store.answers()[0].images]
    assert sizes == [(300, 100), (64, 64)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("import", "pickapic", "run", "gone.parquet"), "FILE gone.parquet does not exist"),
        (("import", "pickapic", "run", "t.json"), "is not parquet"),
        (("import", "pickapic", "run", "other.parquet"), "lacks the column caption"),
        (("import", "hpdv2", "run", "other.parquet"), "is not JSON"),
        (("import", "imagereward", "run", "t.json"), "no answer of t.json can be used"),
        (("import", "hpdv2", "run", "t.json", "--limit", "0"), "--limit is 0"),
        (("export", "parquet", "run", "o.parquet"), "holds no preferences/answers.jsonl"),
        (("report", "run"), "holds no preferences/answers.jsonl"),
    ],
)
def test_mistakes_cost_one_line(tmp_path, cli, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text('[{"prompt": "x"}]')
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    outcome = cli(command.main, *arguments)
    assert outcome.code == 2 and words in outcome.error


@pytest.mark.parametrize(
    "layout, name, words",
    [
        ("parquet", "out.json", "must end in .parquet"),
        ("hpdv2", "out.parquet", "must end in .json"),
        ("parquet", "there.parquet", "already exists"),
        ("parquet", "nowhere/o.parquet", "there is no folder"),
    ],
)
def test_outputs_that_are_refused(store, tmp_path, cli, layout, name, words):
    (tmp_path / "there.parquet").touch()
    assert words in cli(command.main, "export", layout, tmp_path / "run", tmp_path / name).error
