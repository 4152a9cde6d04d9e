"""One iteration of TRL's experimental PPOTrainer with a random decoder; `iteration.py` runs it.

Prints one line of JSON: parameters, wall and CPU seconds of `train`, and the process's peak of memory.
"""

import argparse
import json
import resource
import tempfile
import time
from types import SimpleNamespace

import torch
from datasets import Dataset
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Nothing(nn.Module):
    """A reward model that costs nothing: the last token's number."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = lambda input_ids, **_: SimpleNamespace(hidden_states=[input_ids[..., None].float()])

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """One number per token."""
        return hidden * 1e-4


def config_of(a: argparse.Namespace) -> LlamaConfig:
    """A decoder of about `a.parameters` parameters; the width of the gate is what is chosen."""
    vocabulary = a.codes + 2  # and a start and a padding token
    in_layers = a.parameters - 2 * vocabulary * a.width
    gate = round((in_layers / a.layers - 4 * a.width**2) / (3 * a.width))
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=a.width,
        intermediate_size=gate,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        max_position_embeddings=a.prompt + a.tokens,
        tie_word_embeddings=False,
        bos_token_id=a.codes,
        eos_token_id=None,
        pad_token_id=a.codes + 1,
    )


def trainer_of(a: argparse.Namespace, folder: str) -> PPOTrainer:
    """A trainer of one iteration, with as many optimiser steps as asked for."""
    config = config_of(a)
    policy = LlamaForCausalLM(config)
    value = LlamaForSequenceClassification(LlamaConfig(**config.to_dict() | {"num_labels": 1}))
    arguments = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=a.images,
        gradient_accumulation_steps=1,  # with more, minibatches of a batch share a step
        num_mini_batches=a.images // a.minibatch,
        num_ppo_epochs=a.epochs,
        total_episodes=a.images,
        local_rollout_forward_batch_size=a.images,
        response_length=a.tokens,
        temperature=1.0,
        num_sample_generations=0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = torch.randint(a.codes, (a.images, a.prompt)).tolist()
    return PPOTrainer(
        args=arguments,
        processing_class=SimpleNamespace(pad_token_id=a.codes + 1, eos_token_id=a.codes),
        model=policy,
        ref_model=LlamaForCausalLM(config),
        reward_model=Nothing(),
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
    )


def time_drawing() -> list[float]:
    """A list that gets the CPU seconds of each call that draws."""
    draw, seconds = ppo_trainer.batch_generation, []

    def timed(*arguments, **options):
        began = time.process_time()
        drawn = draw(*arguments, **options)
        seconds.append(time.process_time() - began)
        return drawn

    ppo_trainer.batch_generation = timed
    return seconds


def main() -> None:
    """Runs the iteration."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("parameters", "layers", "heads", "width", "codes", "tokens", "prompt"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("images", "minibatch", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(a, folder)
        drawing = time_drawing()
        count = sum(p.numel() for p in trainer.policy_model.parameters())
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    numbers = {"parameters": count, "wall": wall, "cpu": cpu, "peak_gb": peak, "drawing": sum(drawing)}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
