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


@pytest.mark.parametrize("objective", ["ppo", "reinforce"])
def test_a_table_of_logits_reaches_its_optimum(objective, tmp_path):
    """For independent tokens, reward minus KL is largest at pi_ref exp(worth / kl_coef), token by token."""
    changes = SETTINGS | {"objective": objective}
    if objective == "reinforce":
        changes |= {"update.minibatch_size": None}
    family, start = TableFamily(), torch.tensor([[0.0, 0.5, -0.5, 1.0], [1.0, 0.0, 0.0, -1.0]])
    actor, reference = Table(start), Table(start).requires_grad_(False)
    (tmp_path / "captions.txt").write_text("\n".join(f"caption {i}" for i in range(300)), encoding="utf-8")
    captions = open_captions(str(tmp_path / "captions.txt"), CaptionRequest(DrawSettings(split=None)))
    trainer = Trainer(
        changed(Config(), changes),
        tmp_path,
        Networks(family, actor, reference, family.new_critic(actor)),
        lambda images, captions, metadata: RewardResult(worth(images, captions)),
        captions,
        captions.next_batch(4),
    )
    trainer.run()
    optimum = (start.log_softmax(-1) + WORTH / KL_COEF).softmax(-1)
    distance = (actor.values.detach().softmax(-1) - optimum).abs().sum(-1) / 2
    moved = (start.softmax(-1) - optimum).abs().sum(-1) / 2
    assert (moved > 0.2).all() and (distance < 0.03).all(), (distance, moved)
