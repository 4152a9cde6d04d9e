"""The part of `kill_test.py` that kills an alignment: its phases, and what must be equal."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from kill_labels import OWN, rows_of
from killing import Command
from safetensors.numpy import load_file

PHASES = {
    "drawing": "dalle_ppo.build.alignment:draw_sets",
    "picture": "dalle_ppo.preferences.store:Store.add_image",
    "answers": "dalle_ppo.build.simulated:simulated_answers",
    "check": "dalle_ppo.build.alignment:check_model",
    "reward model": "dalle_ppo.build.alignment:train_reward_model",
    "training": "dalle_ppo.build.alignment:train_policy",
}
SETTINGS = {
    "rater": "simulated", "rounds": 2, "answers": 60, "num_images": 4, "iterations": 2, "members": 2,
    "choose": "disagreement", "min_accuracy": 0,
}  # fmt: skip


class Aligning:
    """Runs `dalle_ppo.align` with the simulated rater; its training is a process of its own, killed with it.

    Args:
        settings: of the training.
        contents: everything of a finished run that must be equal, by name.
    """

    phases, size = PHASES, 1

    def __init__(self, settings: dict[str, object], contents: Callable[[Path], dict[str, object]]) -> None:
        self.settings, self.run_contents = settings, contents

    def commands(self, run_dir: Path, alone: bool) -> list[Command]:
        """The command."""
        settings = self.settings | SETTINGS | {"run_dir": run_dir}
        argv = tuple(text for name, value in settings.items() for text in (f"--{name}", str(value)))
        return [Command("align", argv, PHASES)]

    def again(self, command: Command) -> Command:
        """The same command goes on."""
        return command

    def contents(self, run_dir: Path, kills: int) -> dict[str, object]:
        """Everything that must be equal, by name; a kill may tear one row of the store."""
        rounds = {
            str(path.relative_to(run_dir)): json.loads(path.read_text())
            for name in ("sets.json", "round.json")
            for path in run_dir.glob(f"align/*/{name}")
        }
        answers, torn = rows_of(run_dir / "preferences" / "answers.jsonl")
        images, torn_images = rows_of(run_dir / "preferences" / "images.jsonl")
        found = self.run_contents(run_dir)
        found["evaluation"].pop("reward_model_sha256")  # of a file that names its answers, and so their times
        return found | {
            "rounds": rounds,
            "reward models": [
                hashlib.sha256(array.tobytes()).hexdigest()
                for path in sorted(run_dir.glob("align/*/reward_model.safetensors"))
                for _, array in sorted(load_file(path).items())
            ],
            "answers": [{k: v for k, v in row.items() if k not in OWN} for row in answers],
            "images": sorted(images, key=lambda row: row["key"]),
            "torn rows beyond one for each kill": max(0, torn + torn_images - kills),
        }
