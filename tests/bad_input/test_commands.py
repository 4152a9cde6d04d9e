"""Twenty bad inputs as commands: exit code 2, one line, nothing written."""

import subprocess
import sys

import pytest
from bad_input import configs

FILES = (
    "empty", "a list", "unclosed bracket", "not UTF-8", "a key twice", "an object of Python",
    "aliases that multiply", "5000 lists deep", "a class", "another file", "an unknown setting",
    "a word for a number", "a NUL in a path",
)  # fmt: skip
LINES = [
    *(("train", "--config", configs.FILES[name][0]) for name in FILES),
    ("train", "--config", None),
    ("train", "--no_such_setting", "1"),
    ("generate", "a boat", "--out", "a.boat"),
    ("generate", "a boat", "--out", "a.png", "--model", "nowhere"),
    ("evaluate", "nowhere"),
    ("export", "nowhere", "--out", "new", "--to", "safetensors"),
    ("captions", "nowhere.txt"),
]


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=[f"{n}-{line[0]}" for n, line in enumerate(LINES)])
def test_commands_end_with_one_line(line, tmp_path):
    program, *words = line
    if words[:1] == ["--config"] and words[1] is not None:
        content = words[1]
        (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        words = ["--config", "c.yaml"]
    words = [word for word in words if word is not None]
    before = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", f"dalle_ppo.{program}", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert {path.name for path in tmp_path.iterdir()} == before
