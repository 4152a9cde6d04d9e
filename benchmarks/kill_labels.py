"""The part of `kill_test.py` that kills a model's labelling: its phases, and what must be equal."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from killing import Command

ROOT = Path(__file__).resolve().parent.parent
PHASES = {
    "drawing": "dalle_ppo.preferences.drawing:Drawer.draw",
    "picture": "dalle_ppo.preferences.store:Store.add_image",
    "asking": "dalle_ppo.preferences.asking.endpoint:Endpoint.ask",
    "answer": "dalle_ppo.base.append:RowFile.append",
}
SETS, ORDERS = 6, 2
OWN = ("id", "time", "seconds")
"""Fields of an answer that another try may change."""


def judge(redness: list[float]) -> str:
    """The endpoint's reply: the reddest picture is best."""
    order = sorted(range(len(redness)), key=lambda place: -redness[place])
    return json.dumps({"ranks": [order.index(place) + 1 for place in range(len(redness))]})


class Labelling:
    """Runs `dalle_ppo.label RUN --by URL` against an endpoint of this process.

    Args:
        policy: a run with a checkpoint, which is copied for each labelling.
    """

    phases, size = PHASES, 1

    def __init__(self, policy: Path) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from fake_endpoint import FakeEndpoint

        self.policy, self.endpoint = policy, FakeEndpoint(judge)
        self.endpoint.__enter__()

    def commands(self, run_dir: Path, alone: bool) -> list[Command]:
        """The command, whose run is made here."""
        shutil.copytree(self.policy, run_dir)
        self.endpoint.requests.clear()
        options = ("--num_images", "3", "--sets", str(SETS), "--device", "cpu")
        argv = (str(run_dir), "--by", self.endpoint.url, "--model", "fake", *options)
        return [Command("label", argv, PHASES)]

    def again(self, command: Command) -> Command:
        """The same command goes on."""
        return command

    def contents(self, run_dir: Path, kills: int) -> dict[str, object]:
        """Everything that must be equal, by name; `kills` bounds what may have been asked again."""
        store = run_dir / "preferences"
        answers, torn = rows_of(store / "answers.jsonl")
        images, torn_images = rows_of(store / "images.jsonl")
        asked = len(self.endpoint.requests) - SETS * ORDERS
        files = sorted(path for path in store.rglob("*") if path.is_file() and path.suffix != ".jsonl")
        return {
            "answers": [{k: v for k, v in row.items() if k not in OWN} for row in answers],
            "images": sorted(images, key=lambda row: row["key"]),
            "torn rows beyond one for each kill": max(0, torn + torn_images - kills),
            "asked again beyond once for each kill": max(0, asked - kills),
        } | {str(f.relative_to(store)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows_of(path: Path) -> tuple[list[dict], int]:
    """The whole rows of a file, and how many are torn."""
    rows, torn = [], 0
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            torn += bool(line.strip())
    return rows, torn
