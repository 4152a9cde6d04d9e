"""How much of the caption is in a model's description; its settings are in `config/terms/caption_match.py`.

Source: the prompt-image alignment task of https://arxiv.org/abs/2305.13301, with the question and
    the reference of `llava_bertscore` in https://github.com/kvablack/ddpo-pytorch.
"""

import torch
from torch import Tensor

from dalle_ppo.rewards.asking import shown, to_pil
from dalle_ppo.rewards.base import Reward, RewardFailure, RewardResult
from dalle_ppo.rewards.shared import Shared
from dalle_ppo.rewards.vision import load_vision, need_package

LONGEST_TEXT = 512
"""Tokens that are compared where neither tokenizer nor model states how many they read."""


def load(options, shared: Shared) -> Reward:
    """Loads both models, or connects to the one that describes.

    Args:
        options: the term's settings.
        shared: says on which device.

    Raises:
        ValueError: a package is missing, or a model cannot be loaded.
    """
    need_package("bert_score", "caption_match", "bert-score")
    scorer = load_bert_score(options.bert, options.bert_layer, shared.device)
    ask = load_vision(options, shared.device, "caption_match")

    def reward(images: Tensor, captions: list[str]) -> RewardResult:
        answers = ask(to_pil(images), [options.ask] * len(captions))
        described = [i for i, answer in enumerate(answers) if answer.strip()]
        if not described:
            raise RewardFailure(f"all {len(answers)} descriptions by {options.model} are empty")
        recall = torch.zeros(len(captions))
        references = [options.reference.replace("{caption}", captions[i]) for i in described]
        # BERTScore would warn and score 0 for an empty description too.
        recall[described] = scorer.score([answers[i] for i in described], references)[1].float().cpu()
        return RewardResult(recall, {"caption_match": recall})

    return reward


def load_bert_score(model: str, layer: int | None, device: torch.device):
    """A BERTScorer whose tokenizer states how long a text may be.

    bert-score 0.3.13 hands the tokenizer's maximum length on to truncation. Where the tokenizer states none,
    transformers says 10^30, which the fast tokenizers of transformers 5 refuse with an OverflowError.

    Args:
        model: a folder or a name on the hub.
        layer: the layer to compare; None is the recommended one.
        device: where it runs.

    Raises:
        ValueError: it cannot be loaded, or there is no recommended layer.
    """
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    if layer is None and model not in model2layers:
        raise ValueError(
            f"reward.terms: bert of caption_match is {model}, for which BERTScore recommends no layer; set "
            "bert_layer"
        )
    try:
        scorer = BERTScorer(model_type=model, num_layers=layer, device=str(device))
    except (OSError, ValueError, AssertionError, KeyError, ImportError) as error:
        raise ValueError(
            f"reward.terms: bert of caption_match is {model}, which cannot be loaded ({shown(error)})"
        ) from None
    tokenizer, positions = scorer._tokenizer, getattr(scorer._model.config, "max_position_embeddings", None)
    # RoBERTa's positions start at 2.
    limit = LONGEST_TEXT if positions is None else min(LONGEST_TEXT, max(8, positions - 2))
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return scorer
