"""What a policy draws exactly as the reference did is neither decoded nor measured again."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation import drawing
from dalle_ppo.evaluation.drawing import Setup, draw_side, measured_alone
from dalle_ppo.evaluation.measures import Measures

CAPTIONS = [CaptionRecord(f"caption {number}", "UNTAGGED", f"{number:016x}") for number in range(12)]
CONFIG = changed(TINY_CONFIG, {"evaluation.samples_per_caption": 2, "evaluation.batch_size": 8})


class Counted:
    """A reward, and how many images it has seen."""

    def __init__(self, reward):
        self.reward, self.seen = reward, 0

    def __call__(self, images, captions, metadata):
        self.seen += len(images)
        return self.reward(images, captions, metadata)


@pytest.fixture(scope="module")
def trainer():
    return tiny_trainer(CONFIG)


def moved(decoder, by):
    """The reference with a slightly different head, which draws some of its images."""
    policy = copy.deepcopy(decoder)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        weight = policy.lm_head.weight
        weight += by * torch.randn(weight.shape, generator=generator)
    return policy


def setup_of(trainer, folder, config=CONFIG):
    reward = Counted(trainer.reward)
    shared = trainer.networks.reference, trainer.family, Measures(reward), CAPTIONS
    return Setup(config, *shared, folder, {}), reward


def test_columns_are_those_of_measuring_everything(trainer, tmp_path):
    reference = trainer.networks.reference
    policy = moved(reference, 0.02)
    setup, reward = setup_of(trainer, tmp_path / "some")
    before = draw_side("reference", reference, setup)
    assert reward.seen == 24
    after = draw_side("policy", policy, setup, before)
    whole = draw_side("policy", policy, setup_of(trainer, tmp_path / "all")[0])
    equal = (before.columns["tokens"] == whole.columns["tokens"]).all(axis=1)
    assert 0 < equal.sum() < 24 and reward.seen == 24 + (~equal).sum()
    assert after.columns.keys() == whole.columns.keys()
    for name, column in whole.columns.items():
        np.testing.assert_allclose(after.columns[name], column, rtol=1e-5, atol=1e-6, err_msg=name)
    # KL and entropy belong to the policy, also where its image is the reference's.
    assert (after.columns["kl"][equal & ~np.isnan(after.columns["kl"])] > 0).all()


def test_only_what_is_new_is_decoded_in_the_parts_that_fit(trainer, tmp_path, monkeypatch):
    reference, given = trainer.networks.reference, []
    setup, _ = setup_of(trainer, tmp_path)
    before = draw_side("reference", reference, setup)
    vqgan = type(trainer.family.parts.vqgan)
    decode = vqgan.decode_uint8

    def limited(self, tokens, size=None):
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("injected")
        given.append(len(tokens))
        return decode(self, tokens, size)

    monkeypatch.setattr(vqgan, "decode_uint8", limited)
    draw_side("same", copy.deepcopy(reference), setup, before)
    assert not given, "all of it is the reference's"
    policy = moved(reference, 0.5)
    with pytest.warns(UserWarning, match=r"out of memory while drawing .* A lower rollout\.memory_gb"):
        after = draw_side("policy", policy, setup, before)
    new = (before.columns["tokens"] != after.columns["tokens"]).any(axis=1).sum()
    assert sum(given) == new > 3


def test_a_part_that_one_of_both_does_not_report_is_missing_there(trainer, tmp_path):
    setup, reward = setup_of(trainer, tmp_path)
    reference, policy = trainer.networks.reference, moved(trainer.networks.reference, 0.02)
    before = draw_side("reference", reference, setup)
    drawn = setup.collect(policy, CAPTIONS, 2)
    inner = reward.reward

    def other(images, captions, metadata):
        found = inner(images, captions, metadata)
        return replace(found, parts={"new": found.total})

    reward.reward = other
    known = {key: values for key, values in before.columns.items() if key not in drawing.POLICY_COLUMNS}
    columns = drawing.measure_changed(policy, drawn, known, setup)
    anew = (drawn.tokens.numpy() != before.columns["tokens"]).any(axis=1)
    assert np.array_equal(np.isnan(columns["reward/new"]), ~anew)
    old = next(key for key in known if key.startswith("reward/") or key in ("nsfw_probability",))
    assert np.isnan(columns[old][anew]).all() and not np.isnan(columns[old][~anew]).any()
    assert not np.isnan(known[old]).any(), "the reference's own columns stay as they are"


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({}, True),
        ({"reward.terms": [{"name": "diversity"}], "rollout.samples_per_caption": 2}, False),
        ({"reward.terms": [{"name": "my_rewards:colourful"}]}, False),
        ({"reward.terms": [{"name": "jpeg_size", "task": "compressible"}]}, True),
        ({"evaluation.judges": ["my_rewards:contrast"]}, False),
    ],
)
def test_rewards_that_may_compare_images_see_all_of_them(settings, alone):
    assert measured_alone(changed(Config(), settings)) is alone


def test_then_everything_is_measured(trainer, tmp_path):
    config = changed(CONFIG, {"reward.terms": [{"name": "my_rewards:colourful"}]})
    setup, reward = setup_of(trainer, tmp_path, config)
    before = draw_side("reference", trainer.networks.reference, setup)
    draw_side("policy", copy.deepcopy(trainer.networks.reference), setup, before)
    assert reward.seen == 2 * 24
