"""Captions per second, time to the first batch and peak memory on a parquet file like one of LAION-400M's.

Run: python benchmarks/captions.py [--rows 12900000] [--source FOLDER]
Without --source, it first makes a file with LAION-400M's columns and tag proportions: 12.9 million rows, as
in a real file, 1.5 GB.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.captions.source import CaptionRequest, open_captions
from dalle_ppo.captions.sources.hub import LAION_SHARES
from dalle_ppo.captions.streams import DrawSettings

NUM_WORDS = 50_000
WORDS_PER_CAPTION = 9
GROUP_ROWS, PIECE_ROWS = 1_000_000, 100_000
BATCH = 96
ROLLOUT_CAPTIONS_PER_SECOND = 100.0  # more than a rollout of DALL·E mini reaches on one GPU


def write_file(path: Path, num_rows: int) -> None:
    """Write rows of random words, 1.3 % of them tagged NSFW, in row groups of a million."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, num_rows, GROUP_ROWS):
        stop = min(num_rows, start + GROUP_ROWS)
        sizes = [min(PIECE_ROWS, stop - at) for at in range(start, stop, PIECE_ROWS)]
        group = pa.concat_tables([random_rows(rng, size) for size in sizes]).combine_chunks()
        writer = writer or pq.ParquetWriter(path, group.schema)
        writer.write_table(group, row_group_size=GROUP_ROWS)
    writer.close()


def random_rows(rng: np.random.Generator, n: int) -> pa.Table:
    """`n` rows with LAION-400M's columns."""
    vocabulary = pa.array([f"word{i}" for i in range(NUM_WORDS)])
    words = [vocabulary.take(pa.array(rng.integers(0, NUM_WORDS, n))) for _ in range(WORDS_PER_CAPTION)]
    tags = pa.array(["UNLIKELY", "UNSURE", "NSFW", None])
    return pa.table(
        {
            "SAMPLE_ID": rng.integers(0, 1 << 40, n),
            "URL": pc.binary_join_element_wise("https://example.org", *words, "/"),
            "TEXT": pc.binary_join_element_wise(*words, " "),
            "HEIGHT": rng.integers(100, 2000, n, dtype=np.int32),
            "WIDTH": rng.integers(100, 2000, n, dtype=np.int32),
            "LICENSE": pa.array(["?"] * n),
            "NSFW": tags.take(pa.array(rng.choice(4, n, p=[0.93, 0.05, 0.013, 0.007]))),
            "similarity": rng.random(n),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_900_000)
    parser.add_argument("--source", help="parquet file or folder to use instead of a generated file")
    parser.add_argument("--captions", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.source is None:
            path = Path(folder) / "part-00000.parquet"
            # In its own process, so that its memory does not count.
            writer = multiprocessing.get_context("spawn").Process(
                target=write_file, args=(path, arguments.rows)
            )
            writer.start()
            writer.join()
            print(f"| file | {arguments.rows} rows, {path.stat().st_size / 1e9:.2f} GB |")
        source = arguments.source or folder
        measure_drawing(source, arguments.captions)
        measure_waiting(source)
    print(f"| peak memory | {peak_memory():.0f} MB |")


def measure_drawing(source: str, num_captions: int) -> None:
    """How fast captions can be drawn."""
    print(f"| memory before | {peak_memory():.0f} MB |")
    started = time.perf_counter()
    captions = open_captions(source, CaptionRequest(DrawSettings(), LAION_SHARES))
    captions.next_batch(BATCH)
    print(f"| first batch of {BATCH} | {time.perf_counter() - started:.2f} s |")
    times, processor_started = [], time.process_time()
    for _ in range(num_captions // BATCH):
        started = time.perf_counter()
        captions.next_batch(BATCH)
        times.append(time.perf_counter() - started)
    drawn = len(times) * BATCH
    processor_rate = drawn / (time.process_time() - processor_started)
    for name, rate in (("second", drawn / sum(times)), ("second of processor time", processor_rate)):
        worth = rate / ROLLOUT_CAPTIONS_PER_SECOND
        print(f"| captions per {name} | {rate:.0f}, {worth:.0f} times what a rollout uses |")
    print(f"| slowest batch of {BATCH} | {max(times):.3f} s |")
    print(f"| metrics | {captions.metrics()} |")


def measure_waiting(source: str, num_batches: int = 40) -> None:
    """The longest wait when captions are used as fast as by a rollout, and drawn ahead."""
    captions = PrefetchedCaptions(open_captions(source, CaptionRequest(DrawSettings(seed=1), LAION_SHARES)))
    captions.next_batch(BATCH)
    times = []
    for _ in range(num_batches):
        time.sleep(BATCH / ROLLOUT_CAPTIONS_PER_SECOND)
        started = time.perf_counter()
        captions.next_batch(BATCH)
        times.append(time.perf_counter() - started)
    print(f"| longest wait for a batch drawn ahead | {1000 * max(times):.1f} ms |")


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
