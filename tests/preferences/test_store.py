"""The store: several writers, a kill in mid-row, torn rows, undo, pairs, what is refused."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from PIL import Image as Picture

from dalle_ppo.base.append import RowFile
from dalle_ppo.preferences.store import Answer, Store, find_store

KEYS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(4)]
WRITER = """
import sys, time
from dalle_ppo.preferences.store import Answer, Store
store, name = Store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    store.append(Answer("a red boat " * 50, sys.argv[4:], "ranking", name, "person", str(n), (1, 2)))
    print(n, flush=True)
    time.sleep(0.005)  # lets the other one have the lock
"""


def png(colour, size=8):
    buffer = io.BytesIO()
    Picture.new("RGB", (size, size), colour).save(buffer, "png")
    return buffer.getvalue()


def ranking(ranks, rater="ann", images=None, **more):
    images = KEYS[: len(ranks)] if images is None else images
    return Answer("a boat", images, "ranking", rater, "person", "set", ranks=ranks, **more)


def writer(folder, name, n):
    # dalle_ppo.preferences.store imports nothing heavy, so a process starts at once
    command = [sys.executable, "-c", WRITER, str(folder), name, str(n), *KEYS[:2]]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def start(process):
    process.stdin.write("go\n")
    process.stdin.close()


def test_two_processes_append_at_once_and_every_row_is_whole(tmp_path):
    writers = [writer(tmp_path, name, 60) for name in ("ann", "bob")]
    for process in writers:
        start(process)
    assert [process.wait() for process in writers] == [0, 0]
    for process in writers:
        process.stdout.close()
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    by_rater = {name: [int(row["set_id"]) for row in rows if row["rater"] == name] for name in ("ann", "bob")}
    assert by_rater == {"ann": list(range(60)), "bob": list(range(60))}
    raters = [row["rater"] for row in rows]
    assert sum(a != b for a, b in pairwise(raters)) > 1, "they did write at once"
    assert Store(tmp_path).report().torn == 0


def test_a_kill_loses_at_most_the_row_being_written(tmp_path):
    process = writer(tmp_path, "ann", 100_000)
    start(process)
    printed = [process.stdout.readline()]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    printed += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    found = [int(answer.set_id) for answer in Store(tmp_path).answers()]
    assert found[: len(printed)] == [int(n) for n in printed], "what append said was done is there"
    assert len(found) <= len(printed) + 1


@pytest.mark.parametrize("cut", [1, 30, -2])
def test_a_torn_last_row_is_skipped_reported_and_not_glued_to_the_next(tmp_path, cut):
    """The writer was killed after a part of the row was on disk."""
    store = Store(tmp_path)
    store.append(ranking((1, 2), "ann"))
    store.append(ranking((1, 2), "bob"))
    file = tmp_path / "answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:cut])
    reader = Store(tmp_path)
    assert [answer.rater for answer in reader.answers()] == ["ann"]
    assert reader.report().torn == 1 and any("torn" in line for line in reader.report().lines())
    store.append(ranking((2, 1), "eve"))
    for after in (reader, store, Store(tmp_path)):  # one that has read before, and a fresh one
        assert [answer.rater for answer in after.answers()] == ["ann", "eve"]
        assert after.report().torn == 1


def test_a_row_that_lacks_only_its_line_break_counts_once(tmp_path):
    store = Store(tmp_path)
    store.append(ranking((1, 2)))
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    reader = Store(tmp_path)
    assert len(reader.answers()) == 1
    store.append(ranking((2, 1)))
    assert [answer.ranks for answer in reader.answers()] == [(1, 2), (2, 1)]
    assert reader.report().torn == 0


def test_rows_that_break_the_rules_are_counted_and_lose_nothing_else(tmp_path):
    store = Store(tmp_path)
    store.append(ranking((1, 2)))
    row = json.loads((tmp_path / "answers.jsonl").read_text())
    with (tmp_path / "answers.jsonl").open("a") as file:
        for change in ({"ranks": [1]}, {"from_the_future": 1}, {"images": ["../../etc/passwd", KEYS[0]]}):
            file.write(json.dumps({**row, **change}) + "\n")
        file.write("[1, 2]\n")
    store.append(ranking((2, 1)))
    assert [answer.ranks for answer in store.answers()] == [(1, 2), (2, 1)]
    assert store.report().unreadable == 3 and store.report().torn == 1


def test_a_disk_that_fills_up_is_an_error_and_the_next_row_is_whole(tmp_path, monkeypatch):
    store, write = Store(tmp_path), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        with pytest.raises(OSError, match="part of a row"):
            store.append(ranking((1, 2)))
    store.append(ranking((2, 1)))
    assert [answer.ranks for answer in Store(tmp_path).answers()] == [(2, 1)]


def test_an_answer_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path)
    caption = "un bateau « rouge »\nà voile"
    given = Answer(
        caption, KEYS[:3], "ranking", "m", "model", "s", (2, 1, 1), harm=(0.1, 0, 1), seconds=1.5, model="m"
    )
    store.append(given)
    assert Store(tmp_path).answers() == [given]


def test_undo_takes_back_only_the_raters_own_answer(tmp_path):
    store = Store(tmp_path)
    mine, yours = ranking((1, 2), "ann"), ranking((2, 1), "bob")
    store.append_all([mine, yours])
    for answer in (mine, yours):
        store.append(Answer("a boat", (), "undo", "ann", "person", "set", undoes=answer.id))
    assert store.answers() == [yours]
    assert len(store.answers(undone=True)) == 4 and store.report().undone == 1


def test_images_are_kept_once_by_hash(tmp_path):
    store = Store(tmp_path)
    red = png("red")
    keys = {store.add_image(red, "a boat", noise={"seed": 1}), Store(tmp_path).add_image(red, "another")}
    assert keys == {hashlib.sha256(red).hexdigest()}
    (key,) = keys
    assert store.image_path(key).read_bytes() == red
    assert store.images()[key].caption == "a boat" and len(list(tmp_path.rglob("*.png"))) == 1
    with pytest.raises(ValueError, match="not a PNG"):
        store.add_image(b"GIF89a", "a boat")
    with pytest.raises(ValueError, match="SHA-256"):
        store.image_path("../" * 20 + "etc/passwd")


def test_a_picture_that_is_gone_is_reported(tmp_path):
    store = Store(tmp_path)
    keys = [store.add_image(png(colour), "a boat") for colour in ("red", "blue")]
    store.append(ranking((1, 2), images=keys))
    store.image_path(keys[0]).unlink()
    assert store.report().missing == 1


def test_pairs_that_rankings_imply(tmp_path):
    a, b, c, d = KEYS
    wanted = {("a boat", b, a), ("a boat", b, c), ("a boat", b, d), ("a boat", a, d), ("a boat", c, d)}
    assert set(Store(tmp_path).pairs([ranking((2, 1, 2, 3))])) == wanted, "the tie of a and c says nothing"
    assert Store(tmp_path).pairs([ranking((1, 1), all_bad=True)]) == []


def test_contradictory_rankings_are_reported(tmp_path):
    store = Store(tmp_path)
    store.append_all([ranking((1, 2)), ranking((2, 1), "bob"), ranking((1, 2), images=KEYS[2:])])
    assert store.report().contradictions == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "guess"}, "kind"),
        ({"ranks": (1, 2, 3)}, "ranks"),
        ({"ranks": (0, 1)}, "ranks"),
        ({"ranks": (1.5, 2)}, "ranks"),
        ({"ranks": None}, "ranks"),
        ({"ratings": (1, 2)}, "ratings"),
        ({"harm": (0.5,)}, "harm"),
        ({"rater": " "}, "rater"),
        ({"source": "cat"}, "source"),
        ({"undoes": "x"}, "undoes"),
        ({"images": ("x", "y")}, "images"),
        ({"seconds": float("nan")}, "seconds"),
    ],
)
def test_answers_that_break_the_rules_are_refused(change, words):
    right = dict(caption="a", images=KEYS[:2], kind="ranking", rater="ann", source="person", set_id="s")
    with pytest.raises(ValueError, match=words):
        Answer(**({**right, "ranks": (1, 2)} | change))


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"answers\.jsonl; label pictures"):
        find_store(tmp_path)
    Store(tmp_path / "preferences").append(ranking((1, 2)))
    assert len(find_store(tmp_path).answers()) == len(find_store(tmp_path / "preferences").answers()) == 1


def test_another_file_in_its_place_is_read_from_the_start(tmp_path):
    file = RowFile(tmp_path / "rows.jsonl", dict)
    file.append([{"n": 1}, {"n": 2}])
    assert file.read() == [{"n": 1}, {"n": 2}]
    file.path.write_text('{"n": 3}\n')
    assert file.read() == [{"n": 3}]


def test_what_killed_writers_left_goes_when_the_picture_is_written(tmp_path):
    store, red = Store(tmp_path), png("red")
    path = store.image_path(hashlib.sha256(red).hexdigest())
    path.parent.mkdir(parents=True)
    left, of_others = path.with_name(f".{path.stem}.123.new.png"), path.with_name(".other.123.new.png")
    for file in (left, of_others):
        file.write_bytes(red[:20])
    store.add_image(red, "a boat")
    assert path.read_bytes() == red and not left.exists() and of_others.exists()


def test_what_a_writer_left_that_was_killed_before_it_cleared_up_goes_too(tmp_path):
    """Three kills in a row: two before the picture was renamed, one between that and the clearing up."""
    store, red = Store(tmp_path), png("red")
    path = store.image_path(store.add_image(red, "a boat"))
    left = path.with_name(f".{path.stem}.123.new.png")
    left.write_bytes(red[:20])
    Store(tmp_path).add_image(red, "a boat")
    assert path.read_bytes() == red and not left.exists()


def test_a_writer_whose_temporary_file_is_cleared_up_finds_the_picture_written(tmp_path, monkeypatch):
    """Two processes write the same picture, and one clears up while the other is about to rename."""
    store, other, red = Store(tmp_path), Store(tmp_path), png("red")
    replace = os.replace

    def overtaken(source, target):
        monkeypatch.setattr(os, "replace", replace)
        other.add_image(red, "a boat")
        os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    key = store.add_image(red, "a boat")
    assert store.image_path(key).read_bytes() == red and list(Store(tmp_path).images()) == [key]


def test_a_folder_that_is_moved_while_it_is_written_to_is_not_made_again(tmp_path):
    store = Store(tmp_path / "preferences")
    store.append(ranking((1, 2)))
    store.add_image(png("red"), "a boat")
    os.rename(tmp_path / "preferences", tmp_path / "moved")
    for write in (
        lambda: store.append(ranking((2, 1))),
        lambda: store.add_image(png("blue"), "a boat"),
        lambda: store.add_prompt("which is best?"),
    ):
        with pytest.raises(
            OSError, match=r"preferences has been moved or removed.*start the command again"
        ) as e:
            write()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "preferences").exists()
    assert len(Store(tmp_path / "moved").answers()) == 1
