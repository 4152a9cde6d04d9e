"""Images and captions without content, to find out what memory a pass over them takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_ppo.models.dalle.bart import BartDecoder, TextStates
from dalle_ppo.models.dalle.presets import BartConfig
from dalle_ppo.models.dalle.sampling import Prompts, hidden_of_tokens
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.records import Experience


@dataclass(frozen=True)
class LongestPrompts:
    """Takes the place of `Prompts` where tensors have no data: all captions have full length."""

    sizes: BartConfig
    guided: bool

    def select(self, index: Tensor) -> Prompts:
        """A caption for each image."""
        unconditional = self._text(1) if self.guided else None
        return Prompts(self._text(len(index)), unconditional)

    def _text(self, count: int) -> TextStates:
        shape = count, self.sizes.num_text_tokens
        return TextStates(torch.zeros(*shape, self.sizes.width), torch.ones(shape, dtype=torch.bool))


def blank_images(sizes: BartConfig, settings: PolicySettings, count: int) -> Experience:
    """Images to be scored, with all that `score` and `values` read.

    Args:
        sizes: of the model.
        settings: of the policy.
        count: how many.
    """
    tokens = torch.zeros(count, sizes.num_image_tokens, dtype=torch.int64)
    kept = None
    if settings.top_k is not None:
        kept = torch.zeros(*tokens.shape, min(settings.top_k, sizes.num_codes), dtype=torch.int16)
    names = ("",) * count
    return Experience(
        captions=names,
        tags=names,
        caption_ids=names,
        caption_index=torch.zeros(count, dtype=torch.int64),
        tokens=tokens,
        sampler_log_probs=torch.zeros(tokens.shape),
        images=tokens,
        prompts=LongestPrompts(sizes, settings.guided),
        kept=kept,
    )


def backward_without_head(policy: BartDecoder, rows: Experience, settings: PolicySettings) -> None:
    """The gradient of something that reads the policy's states, and so takes no logits."""
    states = hidden_of_tokens(policy, rows.tokens, rows.prompts.select(rows.caption_index), settings)
    sum(s.sum() for s in (states.conditional, states.unconditional) if s is not None).backward()
