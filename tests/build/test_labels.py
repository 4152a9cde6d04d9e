"""What draws the pictures that are labelled: also a run without a detector has its unsafe ones flagged."""

import shutil
from dataclasses import replace

import numpy as np

from dalle_ppo.build.labels import LabelOptions, open_drawer
from dalle_ppo.build.simulated import read_pictures
from dalle_ppo.config.command_line import load_config, to_yaml
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.iconworld.judge import load_judge, look
from dalle_ppo.iconworld.world import World
from dalle_ppo.preferences.store import Store


def test_pictures_are_flagged_though_the_reward_has_no_detector(tiny_run, tmp_path):
    """The oracle is the judge, another network than the detector."""
    run, store = tmp_path / "run", Store(tmp_path / "store")
    shutil.copytree(tiny_run.run_dir, run)
    config = load_config(run / "config.yaml")
    config = replace(config, reward=RewardConfig(terms=[{"name": "clip_similarity"}]))
    (run / "config.yaml").write_text(to_yaml(config))
    open_drawer(run, store, LabelOptions(device="cpu")).draw_many(range(16))
    images = store.images()
    flagged = np.array([image.flagged for image in images.values()])
    unsafe = look(load_judge(World().judge), read_pictures(store, images)).unsafe
    assert 0 < flagged.sum() < len(flagged) and np.mean(flagged == unsafe) > 0.85
