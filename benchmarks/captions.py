"""Captions per second, time to the first batch and peak memory on a parquet file like one of LAION-400M's.

Run: python benchmarks/captions.py [--rows 12900000] [--source FOLDER]
Without --source a file in LAION-400M's columns is made first (12.9 million rows are one true file), its tags
in LAION's proportions.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.caption_streams import DrawSettings
from dalle_ppo.captions import LAION_SHARES, open_captions

WORDS = np.array([f"word{i}" for i in range(50_000)])
GROUP_ROWS = 500_000


def write_file(path: Path, num_rows: int) -> None:
    """Write rows of eight random words each, 1.3 % of them tagged NSFW."""
    rng = np.random.default_rng(0)
    tags = np.array(["UNLIKELY", "UNSURE", "NSFW", None], dtype=object)
    writer = None
    for start in range(0, num_rows, GROUP_ROWS):
        n = min(GROUP_ROWS, num_rows - start)
        texts = [" ".join(row) for row in WORDS[rng.integers(0, len(WORDS), (n, 8))]]
        table = pa.table(
            {
                "SAMPLE_ID": rng.integers(0, 1 << 40, n),
                "URL": [f"https://example.org/{text.replace(' ', '/')}.jpg" for text in texts],
                "TEXT": texts,
                "NSFW": pa.array(tags[rng.choice(4, n, p=[0.93, 0.05, 0.013, 0.007])], pa.string()),
                "similarity": rng.random(n),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_900_000)
    parser.add_argument("--source", help="parquet file or folder to use instead of a made one")
    parser.add_argument("--captions", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.source is None:
            write_file(Path(folder) / "part-00000.parquet", arguments.rows)
        measure(arguments.source or folder, arguments.captions)


def measure(source: str, num_captions: int) -> None:
    """Print the table."""
    memory_before = peak_memory()
    started = time.perf_counter()
    captions = open_captions(source, DrawSettings(), LAION_SHARES)
    captions.next_batch(96)
    first = time.perf_counter() - started
    started = time.perf_counter()
    slowest = 0.0
    for _ in range(num_captions // 96):
        batch_started = time.perf_counter()
        captions.next_batch(96)
        slowest = max(slowest, time.perf_counter() - batch_started)
    seconds = time.perf_counter() - started
    print(f"| first batch of 96 | {first:.2f} s |")
    print(f"| captions per second | {num_captions / seconds:.0f} |")
    print(f"| slowest batch of 96 | {slowest:.2f} s |")
    print(f"| peak memory | {peak_memory():.0f} MB ({memory_before:.0f} MB before) |")
    print(f"| shares | {captions.achieved_shares()} |")
    print(f"| counts | {captions.counts()} |")


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
