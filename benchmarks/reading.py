"""How fast captions of files are read, compared with another commit.

    python benchmarks/reading.py 65870f2

makes parquet, CSV and JSONL files once, then alternates both sides, each in a process of its own, and prints
the median of five and the ratio (above 1: the working tree is faster).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, DRAWN, BATCH = 5, 60_000, 96
JOB = """
import sys, time
sys.path.insert(0, sys.argv[1])
path, drawn, batch = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
try:
    from dalle_ppo.captions.source import CaptionRequest, open_captions
    from dalle_ppo.captions.streams import DrawSettings
    make = lambda shares: open_captions(path, CaptionRequest(DrawSettings(), shares))
except ImportError:
    from dalle_ppo.captions import open_captions
    from dalle_ppo.caption_streams import DrawSettings
    make = lambda shares: open_captions(path, DrawSettings(), shares)
started = time.perf_counter()
source = make({"NSFW": 0.5, "OTHER": 0.5})
for _ in range(drawn // batch):
    source.next_batch(batch)
print(time.perf_counter() - started)
"""


def write_files(folder: Path, num_rows: int) -> dict[str, tuple[Path, int]]:
    """The files by name, each with the number of captions to draw from it."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(20_000)])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (num_rows, 9))]]
    tags = rng.choice(["UNLIKELY", "UNSURE", "NSFW"], num_rows, p=[0.6, 0.3, 0.1])
    table = pa.table({"TEXT": texts, "NSFW": tags, "WIDTH": rng.integers(1, 999, num_rows)})
    pq.write_table(table, folder / "a.parquet", row_group_size=num_rows // 4)
    pyarrow.csv.write_csv(table, folder / "b.csv")
    with (folder / "c.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    drawn = {"a.parquet": DRAWN, "b.csv": DRAWN // 10, "c.jsonl": DRAWN // 10}
    return {name: (folder / name, count) for name, count in drawn.items()}


def seconds(tree: Path, path: Path, drawn: int) -> float:
    call = [sys.executable, "-c", JOB, str(tree), str(path), str(drawn), str(BATCH)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(call, env=environment, cwd=tree, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what the working tree is compared with")
    parser.add_argument("--rows", type=int, default=400_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        call = ["git", "worktree", "add", "--detach", "--quiet", str(other), arguments.commit]
        subprocess.run(call, cwd=ROOT, check=True)
        try:
            print("| file | before, s | now, s | speed now / before |\n|---|---|---|---|")
            for name, (path, drawn) in write_files(Path(folder), arguments.rows).items():
                both = [(seconds(other, path, drawn), seconds(ROOT, path, drawn)) for _ in range(ROUNDS)]
                before, now = (statistics.median(times) for times in zip(*both, strict=True))
                print(f"| {name} | {before:.2f} | {now:.2f} | {before / now:.2f} |", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
