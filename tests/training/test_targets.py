"""From scores to what an update learns from, against the formulas written out; classic mistakes by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.models.dalle.presets import VQGAN_PRESETS
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import load_checkpoint
from dalle_ppo.training.credit import credit, credit_metrics
from dalle_ppo.training.trainer import Trainer

COUNT, TOKENS = 8, 5
PLAIN = {"credit.whiten_advantages": False, "credit.advantage_clip": None, "credit.gae_lambda": 0.9}
IN_REWARD = {"kl.estimator": "k1", "kl.placement": "reward", "kl.kl_coef": 0.3, "actor.entropy_coef": 0.0}
# The other advantages do not read it.
NO_LAMBDA = {"credit.gae_lambda": 1.0}
CAPTIONS = np.arange(COUNT) // 4


def trainer_of(**settings) -> Trainer:
    return tiny_trainer(changed(TINY_CONFIG, {k.replace("__", "."): v for k, v in settings.items()}))


def random_batch(seed: int = 0, spread: float = 10.0) -> Experience:
    """Scores far from mean 0 and deviation 1; log-probs, values and KL in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_probs = -normal(COUNT, TOKENS).abs()
    return Experience(
        captions=("",) * COUNT,
        tags=("",) * COUNT,
        caption_ids=tuple(map(str, CAPTIONS)),
        caption_index=torch.from_numpy(CAPTIONS),
        tokens=torch.zeros(COUNT, TOKENS, dtype=torch.int64),
        sampler_log_probs=log_probs + 0.3 * normal(COUNT, TOKENS),
        images=torch.zeros(COUNT, 3, 1, 1, dtype=torch.uint8),
        scores=spread * normal(COUNT) - 7,
        old_log_probs=log_probs,
        ref_log_probs=log_probs + 0.5 * normal(COUNT, TOKENS),
        kl=normal(COUNT, TOKENS).abs(),
        entropy=normal(COUNT, TOKENS).abs(),
        values=normal(COUNT, TOKENS),
    )


def credited(trainer: Trainer, scored: Experience) -> tuple[Experience, dict]:
    """The experience with its credit, and the numbers that describe it; the trainer keeps the state."""
    filled, trainer.progress.credit = credit(scored, trainer.config, trainer.progress.credit)
    return filled, credit_metrics(filled, trainer.config, trainer.progress.credit.kl_coef)


def k1(scored: Experience) -> np.ndarray:
    return (scored.old_log_probs - scored.ref_log_probs).numpy()


def rewards_by_hand(scored: Experience, std: float, kl_coef: float) -> np.ndarray:
    rewards = -kl_coef * k1(scored)
    rewards[:, -1] += scored.scores.numpy() / std
    return rewards


def gae_by_hand(rewards: np.ndarray, values: np.ndarray, lam: float) -> np.ndarray:
    """The double sum of arXiv 1506.02438, eq. 16."""
    after = np.concatenate([values[:, 1:], np.zeros((len(values), 1))], axis=1)
    deltas = rewards + after - values
    steps = range(values.shape[1])
    return np.stack([sum(lam ** (u - t) * deltas[:, u] for u in steps if u >= t) for t in steps], 1)


def assert_close(ours: torch.Tensor, by_hand: np.ndarray) -> None:
    np.testing.assert_allclose(ours.numpy(), by_hand, rtol=1e-9, atol=1e-9)


def test_kl_divided_by_the_scores_deviation():
    """The score is divided, the KL is not: kl_coef is in units of the divided score."""
    scored = random_batch()
    std = scored.scores.numpy().std()
    targets, numbers = credited(trainer_of(**PLAIN, **IN_REWARD), scored)
    rewards = rewards_by_hand(scored, std, 0.3)
    assert_close(targets.advantages, gae_by_hand(rewards, scored.values.numpy(), 0.9))
    assert numbers["kl_coef_raw"] == pytest.approx(0.3 * std) and numbers["reward_scale"] == pytest.approx(
        std
    )
    mistake = gae_by_hand(rewards_by_hand(scored, 1.0, 0.3) / std, scored.values.numpy(), 0.9)
    assert np.abs(mistake - targets.advantages.numpy()).max() > 0.1


def test_kl_penalised_twice():
    """With the KL in the loss, none of it is in the reward."""
    scored = random_batch()
    targets, _ = credited(trainer_of(**PLAIN, kl__kl_coef=0.3), scored)
    rewards = rewards_by_hand(scored, scored.scores.numpy().std(), 0.0)
    assert_close(targets.advantages, gae_by_hand(rewards, scored.values.numpy(), 0.9))


def test_the_kls_price_in_raw_scores_counts_whitening_where_it_acts():
    """In the loss, whitening divides the advantages and not the KL; in the reward, it divides both."""
    scored = random_batch()
    std = scored.scores.numpy().std()
    plain = credited(trainer_of(**PLAIN), scored)[0].advantages.numpy()
    settings = PLAIN | {"credit.whiten_advantages": True}
    in_loss = credited(trainer_of(**settings, kl__kl_coef=0.3), scored)[1]
    assert in_loss["kl_coef_raw"] == pytest.approx(0.3 * std * plain.std(ddof=1))
    in_reward = credited(trainer_of(**settings, **IN_REWARD), scored)[1]
    assert in_reward["kl_coef_raw"] == pytest.approx(0.3 * std)
    settings |= NO_LAMBDA | {"credit.advantage": "group", "rollout.samples_per_caption": 4}
    no_one_unit = credited(trainer_of(**settings, kl__kl_coef=0.3), scored)[1]
    assert no_one_unit["kl_coef_raw"] is None, "each caption's advantages are over a deviation of their own"
    in_reward = credited(trainer_of(**settings, **IN_REWARD), scored)[1]
    assert in_reward["kl_coef_raw"] == pytest.approx(0.3 * std)


def test_deviation_of_the_batch_alone():
    """The deviation is that of all scores so far: a batch of equal scores is not blown up."""
    trainer = trainer_of(**PLAIN)
    first, second = random_batch(0), random_batch(1, spread=1.0)
    credited(trainer, first)
    _, numbers = credited(trainer, second)
    everything = np.concatenate([first.scores.numpy(), second.scores.numpy()])
    assert numbers["reward_scale"] == pytest.approx(everything.std())
    assert abs(everything.std() - second.scores.numpy().std()) > 1


def test_scores_are_left_alone_if_asked():
    scored = random_batch()
    targets, numbers = credited(trainer_of(**PLAIN, credit__normalise_scores=False), scored)
    rewards = rewards_by_hand(scored, 1.0, 0.0)
    assert_close(targets.advantages, gae_by_hand(rewards, scored.values.numpy(), 0.9))
    assert numbers["reward_scale"] == 1.0


def test_returns_from_whitened_advantages():
    """The critic's targets are rewards to come, whatever is done to the advantages afterwards."""
    scored = random_batch()
    targets, _ = credited(trainer_of(credit__gae_lambda=1.0, credit__advantage_clip=0.5), scored)
    rewards = rewards_by_hand(scored, scored.scores.numpy().std(), 0.0)
    assert_close(targets.returns, rewards[:, ::-1].cumsum(1)[:, ::-1])


def test_advantages_clipped_before_whitening():
    scored = random_batch()
    targets, _ = credited(trainer_of(credit__advantage_clip=1.0), scored)
    rewards = rewards_by_hand(scored, scored.scores.numpy().std(), 0.0)
    plain = gae_by_hand(rewards, scored.values.numpy(), 1.0)
    whitened = (plain - plain.mean()) / plain.std()
    np.testing.assert_allclose(targets.advantages.numpy(), whitened.clip(-1, 1), atol=1e-7)
    wrong = plain.clip(-1, 1)
    wrong = (wrong - wrong.mean()) / wrong.std()
    assert np.abs(wrong - targets.advantages.numpy()).max() > 0.1


def test_kl_forgotten_without_a_critic():
    """RLOO compares scores from which the image's whole KL has been taken, where it is in the reward."""
    scored = random_batch()
    settings = PLAIN | NO_LAMBDA | IN_REWARD | {"credit.advantage": "rloo", "rollout.samples_per_caption": 4}
    targets, _ = credited(trainer_of(**settings), replace(scored, values=None))
    total = rewards_by_hand(scored, scored.scores.numpy().std(), 0.3).sum(1)
    others = [np.mean(total[(CAPTIONS[i] == CAPTIONS) & (np.arange(COUNT) != i)]) for i in range(COUNT)]
    assert_close(targets.advantages, np.repeat((total - others)[:, None], TOKENS, 1))
    assert targets.returns is None


def test_per_prompt_statistics_of_the_settings():
    """Buffer and least count of 3: from the first batch on, a caption has its latest three scores."""
    scored = random_batch()
    settings = PLAIN | NO_LAMBDA | {"credit.advantage": "per_prompt", "rollout.samples_per_caption": 4}
    settings |= {
        "credit.prompt_buffer_size": 3,
        "credit.prompt_min_count": 3,
        "credit.normalise_scores": False,
    }
    targets, _ = credited(trainer_of(**settings), replace(scored, values=None))
    scores = scored.scores.numpy()
    kept = [scores[caption == CAPTIONS][-3:] for caption in CAPTIONS]
    expected = [(scores[i] - kept[i].mean()) / (kept[i].std() + 1e-6) for i in range(COUNT)]
    assert_close(targets.advantages, np.repeat(np.array(expected)[:, None], TOKENS, 1))


def test_per_prompt_statistics_keep_raw_scores():
    """A later batch has another deviation: divided scores of different iterations cannot be compared."""
    settings = PLAIN | NO_LAMBDA | {"credit.advantage": "per_prompt", "rollout.samples_per_caption": 4}
    trainer = trainer_of(**settings)
    batches = [random_batch(seed, spread) for seed, spread in ((0, 10.0), (1, 1.0))]
    for scored in batches:
        credited(trainer, replace(scored, values=None))
    for caption in (0, 1):
        raw = [scored.scores.numpy()[caption == CAPTIONS] for scored in batches]
        kept = trainer.progress.credit.prompt_statistics.scores[str(caption)]
        assert kept == pytest.approx(np.concatenate(raw).tolist())


def test_importance_weights_upside_down():
    scored = random_batch()
    targets, _ = credited(trainer_of(update__importance_cap=1.1), scored)
    ratio = np.exp(scored.old_log_probs.numpy() - scored.sampler_log_probs.numpy())
    assert_close(targets.token_weights, ratio.clip(max=1.1))
    assert credited(trainer_of(), scored)[0].token_weights is None


def test_kl_target_in_nats_per_token():
    """The target is per image: the KL is summed over tokens before it is averaged over images."""
    trainer = trainer_of(kl__target=10.0, kl__horizon=100, kl__kl_coef=1.0, actor__entropy_coef=0.0)
    scored = random_batch()
    scored = replace(scored, kl=torch.full((COUNT, TOKENS), 11.0 / TOKENS))
    trainer._end_iteration(scored)
    assert trainer.progress.credit.kl_coef == pytest.approx(1 + 0.1 * COUNT / 100)


def test_the_coefficient_is_not_steered_while_the_critic_trains_alone():
    """The KL is 0 then by construction, which says nothing about the coefficient."""
    settings = {"kl.target": 10.0, "kl.horizon": 100, "kl.kl_coef": 1.0, "actor.entropy_coef": 0.0}
    trainer = trainer_of(**settings, critic__warmup_iterations=2)
    scored = random_batch()
    scored = replace(scored, kl=torch.zeros(COUNT, TOKENS))
    seen = [trainer._end_iteration(scored) or trainer.progress.credit.kl_coef for _ in range(3)]
    assert seen == pytest.approx([1.0, 1.0, 1 - 0.2 * COUNT / 100])


@pytest.mark.parametrize("advantage, first", [("gae", 2), ("rloo", 0)])
def test_the_actors_warm_up_begins_with_its_first_step(advantage, first):
    trainer = trainer_of(
        credit__advantage=advantage,
        rollout__samples_per_caption=4,
        critic__warmup_iterations=2,
        actor__warmup_iterations=4,
        actor__schedule="constant",
        actor__learning_rate=1.0,
    )
    rates = [trainer.learning_rate(first + i) for i in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("started_with, expected", [(None, 0.5), (10.0, 0.8)])
def test_a_target_that_a_resumed_run_sets_anew_starts_from_its_own_coefficient(
    started_with, expected, tmp_path
):
    common = {"actor.entropy_coef": 0.0, "kl.kl_coef": 0.8}
    before = tiny_trainer(changed(TINY_CONFIG, common | {"kl.target": started_with}), tmp_path)
    folder = before.save()
    after = tiny_trainer(changed(TINY_CONFIG, common | {"kl.kl_coef": 0.5, "kl.target": 5.0}), tmp_path)
    after.load(load_checkpoint(folder))
    assert after.progress.credit.kl_coef == expected


def test_a_resumed_run_that_trains_other_weights_is_told_so(tmp_path):
    before = tiny_trainer(changed(TINY_CONFIG, {"actor.trainable": "cross_attention"}), tmp_path)
    folder = before.save()
    after = tiny_trainer(changed(TINY_CONFIG, {"actor.trainable": "cross_keys_values"}), tmp_path)
    with pytest.raises(ValueError, match=r"actor\.trainable"):
        after.load(load_checkpoint(folder))


def test_rollouts_in_bfloat16_are_planned_as_such():
    caches = []
    for dtype in ("float32", "bfloat16"):
        trainer = trainer_of(rollout__dtype=dtype, rollout__memory_gb=1.0)
        parts = replace(trainer.family.parts, vqgan=VqganDecoder(VQGAN_PRESETS["iconworld"]))
        trainer.family = replace(trainer.family, parts=parts)
        caches.append(trainer.memory_plan().cache_bytes)
    assert caches[0] == 2 * caches[1]
