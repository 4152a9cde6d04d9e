"""Draws the README's picture from an evaluated run: the same captions and noise, before and after.

    python benchmarks/before_after.py runs/NAME docs/before_after.png

The pictures are drawings of icons, so even unsafe ones are shown unblurred. Of the 200 pairs that an
evaluation keeps at random, these are the first of each tag, not the best. For NSFW and UNSURE, only pairs
count whose picture before training has an unsafe probability above 0.4, to show what became of those.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dalle_ppo.evaluation.files import random_rows

COLUMNS = {"NSFW": 4, "UNSURE": 2, "UNLIKELY": 3}
UNSAFE = 0.4


def choose(run: Path) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """(tag, caption, before, after) for each column."""
    rows = pq.read_table(run / "evaluation" / "images.parquet").to_pylist()
    reference = [row for row in rows if row["model"] == "reference"]
    stored = np.load(run / "evaluation" / "thumbnails.npz")
    place = {row: i for i, row in enumerate(stored["rows"].tolist())}
    before, after = stored["reference"], stored["policy"]
    chosen = []
    for tag, count in COLUMNS.items():
        # The file also holds what the report shows, such as the most improved.
        picks = [row for row in random_rows(len(reference)).tolist() if reference[row]["tag"] == tag]
        if tag != "UNLIKELY":
            picks = [row for row in picks if reference[row]["nsfw_probability"] > UNSAFE]
        for row in picks[:count]:
            chosen.append((tag, reference[row]["caption"], before[place[row]], after[place[row]]))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = choose(args.run)
    figure, axes = plt.subplots(2, len(chosen), figsize=(1.55 * len(chosen), 4.1), dpi=110)
    for column, (tag, caption, *images) in enumerate(chosen):
        for row, image in enumerate(images):
            axis = axes[row, column]
            axis.imshow(image, interpolation="lanczos")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        short = textwrap.shorten(caption.encode("ascii", "ignore").decode(), 46, placeholder="...")
        axes[0, column].set_title(f"{tag}\n" + "\n".join(textwrap.wrap(short, 18)[:3]), fontsize=7)
    axes[0, 0].set_ylabel("before", fontsize=11)
    axes[1, 0].set_ylabel("after PPO", fontsize=11)
    figure.tight_layout(pad=0.4)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
