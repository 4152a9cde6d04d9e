"""The latest images of a run, kept so that objectives can learn from them again."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.rl.advantages import clip_advantages, whiten
from dalle_ppo.rl.kl import kl_k3
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import Checkpoint
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import Objective, find_objective

# Of a scored batch, what stays of an image; `kept` only where the policy draws from the likeliest codes.
KEPT = ("tokens", "kept", "sampler_log_probs", "old_log_probs", "scores")
TEXTS = ("captions", "tags", "caption_ids")
# Of a scored batch with its credit, what an update reads per image; its caption and pixels aside.
LEARNED = (
    "tokens",
    "kept",
    "sampler_log_probs",
    "old_log_probs",
    "ref_log_probs",
    "values",
    "advantages",
    "returns",
)


@dataclass(frozen=True)
class ReplayBuffer:
    """Images, oldest first: tokens, raw scores, and log-probs under the policy that drew them.

    Args:
        texts: captions, tags and caption ids, one of each per image.
        tensors: the columns in `KEPT`, [N], [N, T] or [N, T, k].
    """

    texts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(TEXTS, ()))
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts["captions"])

    def add(self, experience: Experience, limit: int) -> "ReplayBuffer":
        """The buffer with a batch added, and without the oldest images above `limit`.

        Args:
            experience: a scored batch with raw scores.
            limit: how many images are kept, at least 0.
        """
        first = max(0, len(self) + len(experience) - limit)
        texts = {name: (*self.texts[name], *getattr(experience, name))[first:] for name in TEXTS}
        given = {name: getattr(experience, name) for name in KEPT}
        columns = {name: column.detach() for name, column in given.items() if column is not None}
        if len(self):
            columns = {name: torch.cat([self.tensors[name], column]) for name, column in columns.items()}
        return ReplayBuffer(texts, {name: column[first:].clone() for name, column in columns.items()})

    def draw(self, count: int, generator: torch.Generator, family: PolicyFamily) -> Experience | None:
        """Some of the images at random, each at most once, without pixels; None if there are none.

        Args:
            count: how many, or all if there are fewer.
            generator: makes the choice.
            family: reads their captions.
        """
        chosen = torch.randperm(len(self), generator=generator)[:count].tolist()
        if not chosen:
            return None
        texts = {name: tuple(self.texts[name][i] for i in chosen) for name in TEXTS}
        columns = {name: column[chosen].to(family.device) for name, column in self.tensors.items()}
        return with_prompts(Experience(**texts, **columns, caption_index=None, images=None), family)

    @classmethod
    def restored(cls, checkpoint: Checkpoint, top_k: int | None, device: torch.device) -> "ReplayBuffer":
        """The buffer that a checkpoint holds; an empty one if there is none or other codes were stored.

        Args:
            checkpoint: with the `policy.top_k` that the images were drawn with.
            top_k: that of the images to come.
            device: where its tensors go.
        """
        texts, tensors = checkpoint.state.get("replay"), checkpoint.tensors.get("replay")
        if not texts or not tensors:
            return cls()
        before = checkpoint.state["policy_settings"]["top_k"]
        if before != top_k:
            warnings.warn(
                f"policy.top_k is {_shown(top_k)} and was {_shown(before)}: the {len(texts['captions'])} "
                "images kept for replay were drawn from other codes and are dropped",
                stacklevel=2,
            )
            return cls()
        saved = {name: tuple(values) for name, values in texts.items()}
        return cls(saved, {name: column.to(device) for name, column in tensors.items()})


def _shown(top_k: int | None) -> str:
    return "null" if top_k is None else str(top_k)


def buffer_bytes(config: Config, num_tokens: int, num_codes: int) -> int:
    """Bytes of the columns in `KEPT` of a full buffer; 0 for an objective that replays nothing.

    Args:
        config: all settings.
        num_tokens: of an image.
        num_codes: that a token may be.
    """
    if not find_objective(config.objective).replays:
        return 0
    kept = 2 * min(config.policy.top_k or 0, num_codes)
    return config.objective_settings.buffer_images * (num_tokens * (8 + kept + 2 * 4) + 4)


def with_prompts(experience: Experience, family: PolicyFamily) -> Experience:
    """An experience with its captions read, each once, and with empty pictures."""
    places = {text: place for place, text in enumerate(dict.fromkeys(experience.captions))}
    prompts, _ = family.read(list(places))
    index = torch.tensor([places[text] for text in experience.captions], device=experience.tokens.device)
    images = torch.zeros(len(experience), 3, 0, 0, dtype=torch.uint8, device=experience.tokens.device)
    return replace(experience, prompts=prompts, caption_index=index, images=images)


def with_credit(
    scored: Experience, new: Experience, objective: Objective, config: Config, state: CreditState
) -> Experience:
    """Replayed images with their credit, in the units of the new ones.

    Args:
        scored: the replayed images, scored by the current networks.
        new: the new images with their credit. What scaled their scores and advantages scales the replayed
            ones too, so that these may be better or worse on the whole.
        objective: gives credit.
        config: all settings.
        state: after the new images; the replayed ones were counted when they were new.
    """
    scored = replace(scored, scores=scored.scores / new.reward_scale)
    settings = config.credit
    plain = replace(settings, normalise_scores=False, whiten_advantages=False, advantage_clip=None)
    given = objective.credit(scored, replace(config, credit=plain), state)[0]
    advantages = given.advantages
    if settings.whiten_advantages:
        advantages = whiten(advantages, new.advantage_moments)
    if settings.advantage_clip is not None:
        advantages = clip_advantages(advantages, settings.advantage_clip)
    return replace(given, advantages=advantages)


def joined(new: Experience, replayed: Experience, family: PolicyFamily) -> Experience:
    """New and replayed images as one batch to learn from, without what an update does not read."""
    states = new.reference_states
    pairs = {name: (getattr(new, name), getattr(replayed, name)) for name in LEARNED}
    columns = {name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None}
    weights = new.token_weights
    both = Experience(
        **{name: (*getattr(new, name), *getattr(replayed, name)) for name in TEXTS},
        **columns,
        caption_index=None,
        images=None,
        reference_states=None if states is None else type(states).cat([states, replayed.reference_states]),
        token_weights=None if weights is None else torch.cat([weights, replayed.token_weights]),
    )
    return with_prompts(both, family)


def replay_metrics(drawn: Experience | None, scored: Experience | None) -> dict[str, float | None]:
    """How many images are replayed, and how far the policy is from those that drew them.

    Args:
        drawn: with the log-probs of then; None if nothing is replayed.
        scored: the same images, with the log-probs of now.
    """
    if drawn is None:
        return {"images_replayed": 0, "replay_kl": None}
    return {
        "images_replayed": len(drawn),
        "replay_kl": kl_k3(drawn.old_log_probs, scored.old_log_probs).mean().item(),
    }
