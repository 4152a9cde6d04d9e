"""The trainer knows no networks: a table of logits, a family of ten lines, reaches its known optimum."""

import pytest
import torch
from tiny_trainer import changed
from torch import nn

from dalle_ppo.captions.source import CaptionRequest, open_captions
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import Drawing, token_scores
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.rl.noise import gumbel_noise
from dalle_ppo.training.scoring import Networks
from dalle_ppo.training.trainer import Trainer

TOKENS, CODES, KL_COEF = 2, 4, 0.5
WORTH = torch.tensor([[0.0, 1.0, 0.5, -1.0], [0.3, -0.5, 0.8, 0.0]])
START = torch.tensor([[0.0, 0.5, -0.5, 1.0], [1.0, 0.0, 0.0, -1.0]])


class Table(nn.Module):
    """The same distribution for every image, or the same values."""

    def __init__(self, values: torch.Tensor):
        super().__init__()
        self.values = nn.Parameter(values.clone())


class TableFamily:
    device = torch.device("cpu")

    def read(self, captions):
        return None, 0

    def draw(self, weights, prompts, keys, plan=None):
        log_pi = weights.values.log_softmax(-1)
        noise = torch.stack([gumbel_noise(keys, t, CODES) for t in range(TOKENS)], dim=1)
        tokens = (log_pi + noise).argmax(-1)
        return Drawing(
            tokens, log_pi.expand_as(noise).gather(-1, tokens[..., None])[..., 0], self.decode(tokens)
        )

    def decode(self, tokens):
        return tokens.to(torch.uint8)[:, None, None, :].expand(-1, 3, 1, -1).contiguous()

    def remember(self, policy, experience):
        return None

    def score(self, policy, experience, *, entropy=False, reference=None, extra=None):
        shape = (len(experience), TOKENS, CODES)
        log_pi = policy.values.log_softmax(-1).expand(shape)
        ref_log_pi = None if reference is None else reference.values.detach().log_softmax(-1).expand(shape)
        return token_scores(log_pi, experience.tokens, ref_log_pi, entropy, extra)

    def new_critic(self, policy):
        return Table(torch.zeros(TOKENS))

    def values(self, critic, experience):
        return critic.values.expand(len(experience), TOKENS)

    def sampler_weights(self, actor, dtype="float32"):
        return actor


def worth(images: torch.Tensor, captions) -> torch.Tensor:
    codes = (images[:, 0, 0] * 255).round().long()
    return WORTH.gather(1, codes.T).sum(0)


SETTINGS = {
    "num_iterations": 250,
    "rollout.rollout_batch_size": 128,
    "update.minibatch_size": 32,
    "credit.whiten_advantages": False,
    "credit.advantage_clip": None,
    "credit.normalise_scores": False,
    "actor.learning_rate": 0.1,
    "actor.entropy_coef": 0.0,
    "actor.min_entropy": None,
    "kl.kl_coef": KL_COEF,
    "critic.learning_rate": 0.05,
}


WHOLE = {"update.minibatch_size": None}
IN_EIGHTS = {"credit.advantage": "group", "rollout.samples_per_caption": 8, "grpo.divide_by_std": False}
OBJECTIVES = {
    "ppo": {},
    "reinforce": WHOLE,  # with a critic, as its advantage is gae
    "rloo": WHOLE | {"credit.advantage": "rloo", "rollout.samples_per_caption": 8},
    # An image's own score is in the mean it is compared with, which makes advantages 7/8 as large.
    "grpo": IN_EIGHTS | {"kl.kl_coef": KL_COEF * 7 / 8},
    "dpok": {"dpok.replay_images": 32, "dpok.buffer_images": 256},
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "grpo", "dpok")]


@pytest.mark.parametrize("objective", ["ppo", "reinforce", *SLOW])
def test_a_table_of_logits_reaches_its_optimum(objective, tmp_path):
    """For independent tokens, reward minus KL is largest at pi_ref exp(worth / kl_coef), token by token."""
    optimum, reached = trained(SETTINGS | {"objective": objective} | OBJECTIVES[objective], tmp_path)
    moved = (START.softmax(-1) - optimum).abs().sum(-1) / 2
    distance = (reached - optimum).abs().sum(-1) / 2
    assert (moved > 0.2).all() and (distance < 0.03).all(), (distance, moved)


@pytest.mark.parametrize(
    "objective, advantage, more",
    [("ddpo", "per_prompt", {}), ("grpo", "group", {}), ("grpo", "group", {"grpo.ratio": "image"})],
)
def test_without_a_kl_the_best_codes_are_left(objective, advantage, more, tmp_path):
    """Where scores are divided by each caption's deviation, no KL has a price in scores."""
    changes = SETTINGS | more | {"objective": objective, "credit.advantage": advantage, "kl.kl_coef": 0.0}
    changes |= {"num_iterations": 15, "rollout.samples_per_caption": 8, "credit.prompt_min_count": 8}
    changes |= {"actor.learning_rate": 0.3, "actor.warmup_iterations": 0, "checkpoint_every": 100}
    _, reached = trained(changes, tmp_path)
    assert torch.equal(reached.argmax(-1), WORTH.argmax(-1)) and reached.max(-1).values.min() > 0.9, reached


def trained(changes: dict, tmp_path) -> tuple[torch.Tensor, torch.Tensor]:
    """The regularised optimum, and the probabilities that training reaches."""
    family, actor, reference = TableFamily(), Table(START), Table(START).requires_grad_(False)
    critic = family.new_critic(actor) if changes.get("credit.advantage", "gae") == "gae" else None
    (tmp_path / "captions.txt").write_text("\n".join(f"caption {i}" for i in range(300)), encoding="utf-8")
    captions = open_captions(str(tmp_path / "captions.txt"), CaptionRequest(DrawSettings(split=None)))
    trainer = Trainer(
        changed(Config(), changes),
        tmp_path,
        Networks(family, actor, reference, critic),
        lambda images, captions, metadata: RewardResult(worth(images, captions)),
        captions,
        captions.next_batch(4),
    )
    trainer.run()
    optimum = (START.log_softmax(-1) + WORTH / KL_COEF).softmax(-1)
    return optimum, actor.values.detach().softmax(-1)
