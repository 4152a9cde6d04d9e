"""The same captions in several formats are read once; looking for copies costs little."""

import json
import time

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dalle_ppo.captions.local_files import open_files
from dalle_ppo.captions.overview import as_text, look_at
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import Contents
from dalle_ppo.captions.streams import DrawSettings

ROWS = pa.table(
    {
        "TEXT": [f"a boat {n}" for n in range(3000)],
        "width": pa.array(range(3000), pa.int64()),
        "NSFW": ["UNLIKELY", "UNSURE", "NSFW"] * 1000,
    }
)


def read(folder, **reading) -> list[str]:
    """The names of the files that are read."""
    shards, _ = open_files(str(folder), ReadSettings(**reading))
    return [shard.name.rpartition("/")[2] for shard in shards]


@pytest.mark.parametrize("reading", [{}, {"where": "width < 2000"}, {"where": "width >= 100"}])
def test_a_copy_is_found_whatever_the_row_groups_and_the_condition(reading, tmp_path):
    pq.write_table(ROWS, tmp_path / "a.parquet", row_group_size=1000)
    pyarrow.csv.write_csv(ROWS, tmp_path / "a.csv")
    assert read(tmp_path, **reading) == ["a.parquet"]


def test_a_copy_is_found_if_rows_hold_lists_or_nothing(tmp_path):
    lists = [["a boat", "a red boat"], ["a tree"]] * 10
    pq.write_table(pa.table({"TEXT": lists}), tmp_path / "a.parquet", row_group_size=3)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"TEXT": texts}) + "\n" for texts in lists))
    pq.write_table(pa.table({"TEXT": ["a sea", None, "a lake"]}), tmp_path / "b.parquet")
    (tmp_path / "b.csv").write_text("TEXT,n\na sea,1\n,2\na lake,3\n")
    assert read(tmp_path) == ["a.parquet", "b.parquet"]


def test_files_that_differ_late_or_in_length_are_no_copies(tmp_path):
    pq.write_table(ROWS, tmp_path / "a.parquet", row_group_size=1000)
    pyarrow.csv.write_csv(ROWS.slice(0, 2500), tmp_path / "a.csv")
    last = pa.concat_tables([ROWS.slice(0, 2999), ROWS.slice(0, 1)])
    pq.write_table(ROWS, tmp_path / "b.parquet", row_group_size=1000)
    pyarrow.csv.write_csv(last, tmp_path / "b.csv")
    assert read(tmp_path) == ["a.csv", "a.parquet", "b.csv", "b.parquet"]


def test_opening_a_folder_takes_time_in_proportion_to_its_files(tmp_path):
    """Each file was compared with every other, 800 files for 4 seconds."""

    def seconds(count) -> float:
        folder = tmp_path / str(count)
        folder.mkdir()
        for n in range(count):
            (folder / f"{n}.txt").write_text(f"a boat {n}")
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            shards, left_out = open_files(str(folder), ReadSettings())
            as_text(look_at(Contents(shards, left_out), DrawSettings()))
            best = min(best, time.process_time() - start)
        return best

    assert seconds(800) < 8 * seconds(200)
