"""metrics.jsonl survives kills and resumes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_ppo.runs import metrics as metrics_module
from dalle_ppo.runs.metrics import MetricsWriter, count_metrics, newest_metrics, read_columns, read_metrics


def write_iterations(run_dir, numbers, resume_iteration=0, **extra):
    """Write the given iterations without TensorBoard."""
    with MetricsWriter(run_dir, resume_iteration=resume_iteration, tensorboard=False) as writer:
        for number in numbers:
            writer.write({"iteration": number, "reward_mean": float(number)} | extra)


def test_one_json_object_an_iteration(tmp_path):
    write_iterations(tmp_path, [1, 2, 3])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_missing_values_are_null(tmp_path, value):
    write_iterations(tmp_path, [1], kl=value)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"kl": null' in text


def test_scalars_of_numpy_and_torch_become_numbers(tmp_path):
    torch = pytest.importorskip("torch")
    write_iterations(tmp_path, [1], kl=torch.tensor(1.5), images=np.int64(96), entropy=np.float32(0.25))
    assert read_metrics(tmp_path / "metrics.jsonl")[0] | {} == {
        "iteration": 1,
        "reward_mean": 1.0,
        "kl": 1.5,
        "images": 96,
        "entropy": 0.25,
    }


def test_vectors_are_refused(tmp_path):
    with pytest.raises(TypeError, match="scalar"):
        write_iterations(tmp_path, [1], kl=[1.0, 2.0])


def test_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    write_iterations(tmp_path, [1, 2, 3, 4, 5])
    write_iterations(tmp_path, [3, 4], resume_iteration=2, kl=7.0)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    assert [record.get("kl") for record in records] == [None, None, 7.0, 7.0]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    write_iterations(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    write_iterations(tmp_path, [3], resume_iteration=2)
    assert [record["iteration"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resuming_past_the_end_is_refused_and_harms_nothing(tmp_path):
    write_iterations(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds 2 iterations, but the checkpoint is at 5"):
        MetricsWriter(tmp_path, resume_iteration=5, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\nnot json\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_starting_afresh_empties_the_file(tmp_path):
    write_iterations(tmp_path, [1, 2])
    write_iterations(tmp_path, [1])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_is_imported_only_when_used():
    code = (
        "import sys, tempfile; from dalle_ppo.runs.metrics import MetricsWriter;"
        "MetricsWriter(tempfile.mkdtemp(), tensorboard=False).close();"
        "assert not {'torch', 'tensorboard', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


YEAR = 20_000


@pytest.fixture
def year(tmp_path):
    """A long metrics.jsonl with a line that was cut at its end, and a count of the lines that are parsed."""
    lines = "".join(f'{{"iteration": {n}, "kl": {n}.5}}\n' for n in range(YEAR))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"iteration": 3, "k')
    return tmp_path / "metrics.jsonl"


def test_a_long_file_is_resumed_without_parsing_or_writing_it_again(year, monkeypatch):
    parsed, parse = [], metrics_module._parsed
    monkeypatch.setattr(metrics_module, "_parsed", lambda line: (parsed.append(len(line)), parse(line))[1])
    inode, size = year.stat().st_ino, year.stat().st_size
    earlier = newest_metrics(year, YEAR)
    assert [record["iteration"] for record in earlier] == list(range(YEAR - metrics_module.NEWEST, YEAR))
    with MetricsWriter(year.parent, YEAR, tensorboard=False) as writer:
        assert len(parsed) <= metrics_module.NEWEST + 10
        assert year.stat().st_ino == inode and year.stat().st_size == size - len('{"iteration": 3, "k')
        for n in range(YEAR, YEAR + 20):
            before = year.stat().st_size
            writer.write({"iteration": n, "kl": 1.0})
            assert year.stat().st_size - before < 100
    assert len(parsed) <= metrics_module.NEWEST + 10
    assert count_metrics(year) == YEAR + 20


def test_columns_are_what_the_records_say(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0, "kl": null, "x": 1}\n{"iteration": 1, "late": 2, "kl": 3}\n{"iter')
    columns = read_columns(path, lambda name: name != "x")
    assert columns.keys() == {"iteration", "kl", "late"}
    for name, column in columns.items():
        wanted = [record.get(name) for record in read_metrics(path)]
        np.testing.assert_array_equal(column, [np.nan if v is None else v for v in wanted])


def test_damage_in_the_lines_that_a_resumed_run_reads_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1, }\n{"iteration": 2}\n')
    for function in (lambda: newest_metrics(path, 3), lambda: read_metrics(path)):
        with pytest.raises(ValueError, match="line 2 is not a JSON object"):
            function()


def test_a_last_line_without_its_break_counts_and_gets_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}')
    assert len(read_metrics(path)) == count_metrics(path) == 2
    write_iterations(tmp_path, [2], resume_iteration=2)
    assert [record["iteration"] for record in read_metrics(path)] == [0, 1, 2]
