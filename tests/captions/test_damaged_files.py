"""Files that are damaged, gone or others than before: what is skipped, and which positions are refused."""

import json
import os
import warnings

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from laion_tables import everything, laion_table, open_source

from dalle_ppo.captions import same_files
from dalle_ppo.captions.overview import as_text, every_caption, look_at
from dalle_ppo.captions.shards import ParquetShard, TableShard
from dalle_ppo.captions.source import CaptionRequest
from dalle_ppo.captions.streams import DrawSettings


@pytest.fixture
def folder(tmp_path):
    """Three parquet files of 400 rows, in row groups of 100."""
    for part in range(3):
        pq.write_table(laion_table(400, 400 * part), tmp_path / f"part-{part}.parquet", row_group_size=100)
    return tmp_path


def damage_inside(path, place=None):
    """The footer stays whole; without a place, the first pages are lost."""
    content = bytearray(path.read_bytes())
    place = 4 if place is None else place
    content[place : place + 1500] = b"\xff" * 1500
    path.write_bytes(content)


def damage_all(path):
    path.write_bytes(b"PAR1 no parquet at all PAR1")


def test_an_overview_goes_on_after_a_damaged_file_where_that_is_wanted(folder):
    damage_inside(folder / "part-1.parquet")
    with pytest.raises(ValueError, match=r"part-1\.parquet: cannot be read"):
        look_at(open_source(str(folder), everything()).contents, everything())
    skipping = everything(skip_bad_files=True)
    contents = open_source(str(folder), skipping).contents
    with pytest.warns(UserWarning, match=r"file skipped: .*part-1\.parquet"):
        seen = look_at(contents, skipping)
    assert [file.rows for file in seen.files] == [400, 400] and seen.unseen_rows == 0
    assert "left out: part-1.parquet: " in as_text(seen)
    with pytest.warns(UserWarning, match=r"file skipped: .*part-1\.parquet"):
        assert len(list(every_caption(contents.shards, skipping))) == 800


def test_a_file_that_cannot_be_opened_is_warned_of_once(folder):
    damage_all(folder / "part-1.parquet")
    skipping = everything(skip_bad_files=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        source = open_source(str(folder), skipping)
        seen = look_at(source.contents, skipping)
        assert len(list(every_caption(source.contents.shards, skipping))) == 800
        assert len({record.text for record in source.next_batch(801)}) == 800
    (warning,) = [str(warning.message) for warning in warned]
    assert warning.startswith(f"captions: file skipped: {folder / 'part-1.parquet'}: cannot be opened")
    assert [left.file for left in seen.left_out] == [str(folder / "part-1.parquet")]
    assert source.metrics()["captions/skipped_bad_files"] >= 1  # once in each pass


def test_rows_before_the_damage_are_counted_as_some_of_the_files(folder):
    path = folder / "part-0.parquet"
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    damage_inside(path, place)
    skipping = everything(skip_bad_files=True)
    with pytest.warns(UserWarning, match="file skipped"):
        seen = look_at(open_source(str(folder), skipping).contents, skipping)
    assert [(file.rows, file.complete) for file in seen.files] == [(200, False), (400, True), (400, True)]


def test_a_run_that_a_damaged_file_stopped_is_resumed_without_it(folder):
    strict = open_source(str(folder), everything())
    first = strict.next_batch(100)
    here = int(first[0].text.split()[1]) // 400
    damage_all(folder / f"part-{(here + 1) % 3}.parquet")
    with pytest.raises(ValueError, match=r"part-\d\.parquet: cannot be (read|opened)"):
        strict.next_batch(1100)
    position = json.loads(json.dumps(strict.state_dict()))
    with pytest.warns(UserWarning, match="file skipped"):
        again = open_source(str(folder), everything(skip_bad_files=True))
    again.load_state_dict(position)
    rest = again.next_batch(800 - strict.metrics()["captions/drawn"])
    ids = {record.id for record in rest}
    assert not ids & {record.id for record in first} and len(ids) == len(rest)
    assert again.metrics()["captions/skipped_bad_files"] == 1


@pytest.mark.parametrize("damaged", ["part-1.csv", "part-1.parquet"])
@pytest.mark.parametrize("lists_files", [True, False])
def test_a_damaged_file_with_a_copy_in_another_format(damaged, lists_files, folder):
    """Either the copy or the file itself is damaged, once the position has been saved."""
    texts = laion_table(400, 400)
    pyarrow.csv.write_csv(texts, folder / "part-1.csv")
    pq.write_table(laion_table(400, 1200), folder / "part-1.d.parquet")  # between the two by name
    source = open_source(str(folder), everything())
    first = [record.text for record in source.next_batch(100)]
    position = json.loads(json.dumps(source.state_dict()))
    if not lists_files:  # as in version 0.1
        del position["identity"]["files"]
    whole = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(b"\xff\xfe no captions")
    with pytest.warns(UserWarning, match=f"file skipped: .*{damaged}"):
        resumed = open_source(str(folder), everything(skip_bad_files=True))
    resumed.load_state_dict(position)
    assert resumed.next_batch(1000) and resumed.metrics()["captions/drawn"] == 1100
    if damaged == "part-1.csv":  # the very same captions, each once
        rest = {record.text for record in source.next_batch(1500)}
        resumed.load_state_dict(position)
        assert {record.text for record in resumed.next_batch(1500)} == rest and not rest & set(first)
    again = json.loads(json.dumps(resumed.state_dict()))
    (folder / damaged).write_bytes(whole)
    open_source(str(folder), everything()).load_state_dict(again)


def test_damaged_files_of_one_name_and_format_stay(folder):
    """In one format, files are never taken for copies."""
    pyarrow.csv.write_csv(laion_table(400, 1200), folder / "b.csv")
    pq.write_table(laion_table(400, 1200), folder / "b.parquet")
    (folder / "part-1.PARQUET").write_bytes((folder / "part-2.parquet").read_bytes())
    position = open_source(str(folder), everything()).state_dict()
    for name in ("part-1.PARQUET", "b.parquet", "b.csv"):
        damage_all(folder / name)
    with pytest.warns(UserWarning, match="file skipped"):
        open_source(str(folder), everything(skip_bad_files=True)).load_state_dict(position)


def refused(position, source, settings=None) -> str:
    with pytest.raises(ValueError) as raised:
        open_source(str(source), settings or everything()).load_state_dict(position)
    return str(raised.value)


def test_what_changed_about_files_is_named(folder, tmp_path):
    position = open_source(str(folder), everything()).state_dict()
    os.rename(folder / "part-1.parquet", folder / "other.parquet")
    assert "(missing: part-1.parquet, new: other.parquet)" in refused(position, folder)
    os.rename(folder / "other.parquet", folder / "part-1.parquet")
    open_source(str(folder), everything()).load_state_dict(position)
    pq.write_table(laion_table(401), folder / "part-1.parquet")
    assert "part-1.parquet has 401 rows, and had 400" in refused(position, folder)


def test_a_moved_folder_holds_the_same_files(folder):
    position = open_source(str(folder), everything()).state_dict()
    os.rename(folder, folder.with_name("moved"))
    open_source(str(folder.with_name("moved")), everything()).load_state_dict(position)


def test_positions_of_version_0_1_still_load_and_others_are_refused(folder):
    position = open_source(str(folder), everything()).state_dict()
    del position["identity"]["files"]
    # sha256 of the three names, one a line, by sha256sum
    assert position["identity"]["source"] == "4e062cc1d229392f"
    open_source(str(folder), everything()).load_state_dict(position)
    (folder / "part-2.parquet").unlink()
    assert "they were others, not part-0.parquet and 1 more" in refused(position, folder)


def in_folders(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(laion_table(10, 10 * number), root / name)


def test_local_files_of_equal_names_are_told_apart_by_their_folders(tmp_path):
    in_folders(tmp_path / "set", "a/0.parquet", "b/0.parquet")
    position = open_source(str(tmp_path / "set"), everything()).state_dict()
    assert position["identity"]["files"] == [["a/0.parquet", 10], ["b/0.parquet", 10]]
    os.renames(tmp_path / "set", tmp_path / "some" / "where")
    moved = tmp_path / "some" / "where"
    open_source(str(moved), everything()).load_state_dict(position)
    os.rename(moved / "a", moved / "c")
    assert "(b/0.parquet has taken the place of a/0.parquet)" in refused(position, moved)


def lazy(path):
    return ParquetShard(str(path), lambda: pa.OSFile(str(path)))


def test_a_source_of_ones_own_may_have_any_names_and_shards(folder):
    skipping = CaptionRequest(everything(skip_bad_files=True))
    for remote in (True, False):
        for name in ("mine", "colours:red", "a@b"):
            source = skipping.draw_from([TableShard(name, ["a boat"])], remote=remote)
            assert source.state_dict()["identity"]["files"] == [[name, None if remote else 1]]
    damage_all(folder / "part-1.parquet")
    source = skipping.draw_from([lazy(folder / f"part-{n}.parquet") for n in range(3)])
    listed = [[f"part-{n}.parquet", None if n == 1 else 400] for n in range(3)]
    assert source.state_dict()["identity"]["files"] == listed
    with pytest.warns(UserWarning, match="file skipped"):
        assert len({record.text for record in source.next_batch(801)}) == 800


@pytest.mark.parametrize("most", [1000, 1])
def test_folders_of_a_data_set_of_the_hub_tell_its_files_apart(most, monkeypatch, tmp_path):
    monkeypatch.setattr(same_files, "MOST_LISTED", most)

    def source(data_set, *names, remote=True):
        shards = [TableShard(f"{data_set}/{name}", ["a boat", "a tree"]) for name in names]
        return CaptionRequest(DrawSettings(split=None)).draw_from(shards, remote=remote)

    names = ("one/train/0000.parquet", "two/test/0000.parquet")
    position = source("o/n", *names).state_dict()
    for revision in ("@main", "@refs/convert/parquet", "@refs/pr/3"):
        source(f"o/n{revision}", *names).load_state_dict(position)
    with pytest.raises(ValueError, match="not the files of the saved position"):
        source("o/n", "one/train/0000.parquet", "three/test/0000.parquet").load_state_dict(position)
    if most == 1:
        return
    for saved in (["o/n/0000.parquet", None], ["0000.parquet", 2]):  # without folders, as for a short time
        position["identity"]["files"] = [saved, saved]
        source("o/n", *names).load_state_dict(position)
    position = source("o/n@a/b", *names).state_dict()
    source("o/n", *names).load_state_dict(position)
    source(str(tmp_path), *names, remote=False).load_state_dict(position)  # downloaded


@pytest.mark.parametrize("most", [1000, 1])
def test_data_sets_whose_files_have_equal_names_are_others(most, monkeypatch):
    monkeypatch.setattr(same_files, "MOST_LISTED", most)

    def source(name):
        shards = [TableShard(f"{name}/data/train-{n}.parquet", ["a boat", "a tree"]) for n in range(2)]
        return CaptionRequest(DrawSettings(split=None)).draw_from(shards, remote=True)

    position = source("a/x").state_dict()
    source("a/x").load_state_dict(position)
    source("a/x@main").load_state_dict(position)
    with pytest.raises(ValueError, match="not the files of the saved position"):
        source("b/y").load_state_dict(position)
