"""Every setting of a run, with its default: the one place where defaults live.

A run's settings are one YAML file, overridden on the command line by the same dotted names
(`--ppo.learning_rate 1e-4`). The resolved settings are saved with the run.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from .models.policy import PolicySettings


@dataclass(frozen=True)
class ModelConfig:
    """Which text-to-image model is trained.

    Args:
        path: "builtin" for the built-in world's; "mini" or "mega" for DALL·E's weights from the hub, or a
            folder of them; a folder of `pretrain`; or a run's, whose policy is then the starting point and
            the reference. With mini and Mega set policy.guidance, too: 1.5 suits the built-in world, 10 to 16
            is usual for them.
        revision: commit of hub repository kuprel/min-dalle for "mini" and "mega"; null is its main branch.
    """

    path: str = "builtin"
    revision: str | None = None


@dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from, how they are mixed and which are left out.

    Args:
        source: "builtin" for the built-in world; "hub:OWNER/NAME" for a data set on the hub, read with the
            token of HF_TOKEN; "prompts:NAME" for simple_animals, animal_activities or counting; or a
            parquet, CSV, TSV, JSONL or text file, or a folder or glob of them.
        column: the caption column of a table; null looks for TEXT, caption, text and so on.
        tag_column: its column of tags; null looks for NSFW and tag. A missing tag is UNTAGGED.
        shares: share of each tag in a batch; OTHER is all tags not named. null is half UNLIKELY and a
            quarter each UNSURE and NSFW for "builtin", half NSFW and half OTHER for "hub:", and captions as
            they come for everything else.
        clean: repair mojibake, decode entities, drop HTML tags and control characters, collapse spaces.
        drop_duplicates: drop captions whose normalised text was drawn shortly before.
        min_chars: least length of a caption, in characters.
        max_chars: greatest length.
        min_latin_share: least share of Latin letters among its letters; 0 admits every script.
        blocklist: file with a phrase a line; captions with one of them are left out.
        allowlist: file with a phrase a line; captions with none of them are left out.
        skip_bad_files: leave out, with a warning and a count, files that cannot be read, instead of
            stopping.
        rank: of several runs that share the captions, this one's number, from 0. Each trains on captions of
            its own; together they have those of one run. Held-out captions are the same for all.
        world_size: how many runs share them.
    """

    source: str = "builtin"
    column: str | None = None
    tag_column: str | None = None
    shares: dict[str, float] | None = None
    clean: bool = False
    drop_duplicates: bool = True
    min_chars: int = 1
    max_chars: int = 2000
    min_latin_share: float = 0.0
    blocklist: str | None = None
    allowlist: str | None = None
    skip_bad_files: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "captions", "world_size")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"captions.rank is {self.rank}; it must lie between 0 and captions.world_size - 1 = "
                f"{self.world_size - 1}"
            )


@dataclass(frozen=True)
class ClipConfig:
    """The CLIP behind the reward.

    Args:
        model: "builtin", a folder in open_clip's layout, or a model name open_clip knows.
        pretrained: open_clip's tag of the weights; null for a folder.
    """

    model: str = "builtin"
    pretrained: str | None = None


@dataclass(frozen=True)
class ExtraReward:
    """A reward of one's own, added to the total.

    Args:
        call: "my_module:my_function", called as `(images [B, 3, H, W] in [0, 1], captions) -> RewardResult`
            or a float tensor [B].
        weight: its factor.
    """

    call: str
    weight: float = 1.0


@dataclass(frozen=True)
class RewardConfig:
    """Thresholded NSFW score plus CLIP similarity; an unsafe image earns nothing for its caption.

    Args:
        detector: "builtin"; one of LAION's by name, "laion-l14" or "laion-b32", downloaded once; or a file
            that `converters/keras_nsfw_to_torch.py` wrote.
        unsafe_threshold: above it an image is unsafe.
        unsure_threshold: above it, up to `unsafe_threshold`, it is suspicious.
        unsafe_penalty: score of an unsafe image; it earns nothing for matching its caption.
        unsure_penalty: score of a suspicious one; likewise.
        clean_threshold: below it an image gets `clean_bonus`.
        clean_bonus: added for a certainly clean image.
        clip_weight: factor of the cosine of image and caption, for images presumed safe.
        extra: rewards of one's own, as a list of {call, weight}.
    """

    detector: str = "builtin"
    unsafe_threshold: float = 0.4
    unsure_threshold: float = 0.1
    unsafe_penalty: float = -30.0
    unsure_penalty: float = -10.0
    clean_threshold: float = 0.01
    clean_bonus: float = 0.0
    clip_weight: float = 20.0
    extra: list[ExtraReward] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.clean_threshold <= self.unsure_threshold <= self.unsafe_threshold <= 1:
            raise ValueError(
                "reward thresholds must be ordered 0 <= clean_threshold <= unsure_threshold <= "
                f"unsafe_threshold <= 1, not {self.clean_threshold}, {self.unsure_threshold}, "
                f"{self.unsafe_threshold}"
            )


@dataclass(frozen=True)
class RolloutConfig:
    """How images are collected.

    Args:
        rollout_batch_size: images an iteration.
        samples_per_caption: images of each caption; divides `rollout_batch_size`.
    """

    rollout_batch_size: int = 96
    samples_per_caption: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "rollout", "rollout_batch_size", "samples_per_caption")
        if self.rollout_batch_size % self.samples_per_caption:
            raise ValueError(
                f"rollout.rollout_batch_size is {self.rollout_batch_size}; it must be a multiple of "
                f"rollout.samples_per_caption = {self.samples_per_caption}"
            )


@dataclass(frozen=True)
class PpoConfig:
    """The policy's update.

    Args:
        learning_rate: of the actor; decays linearly to zero after the warm-up.
        warmup_iterations: linear warm-up of the learning rate.
        epochs: passes over each batch.
        minibatch_size: images an optimiser step.
        microbatch_size: images a forward pass; changes memory, not numbers.
        objective: "clip" is PPO's; "score_function" is REINFORCE's, for one epoch of one minibatch.
        advantage: "gae" with the critic; without one "rloo" and "group" (several images a caption) or
            "per_prompt" (running statistics of each caption).
        clip_range: lower clip of the ratio, and upper unless `clip_range_high` is set.
        clip_range_high: upper clip; null is `clip_range`.
        dual_clip: bound on the loss at negative advantages; null is none, 3 is usual.
        gamma: discount.
        gae_lambda: of GAE. 1 is the default: over 64 or 256 tokens, 0.95 hides the score from the first
            tokens until the critic is good.
        whiten_advantages: to mean 0 and standard deviation 1 over the whole batch.
        advantage_clip: bound on whitened advantages; null is none.
        normalise_scores: divide scores by their running standard deviation.
        entropy_coef: weight of the entropy bonus, per token. Below 0 it is a penalty: with the exact KL in
            the loss, what the reward does not care about is then held not where the reference had it but at
            that distribution to the power kl_coef / (kl_coef + entropy_coef). The noise of the gradient
            flattens the policy, so that it draws more by mistake; this takes it back without noise.
        max_grad_norm: the actor's gradient is clipped to it.
        target_kl: stop an iteration's updates when KL(old, new) exceeds it, in nats a token; null is never.
        importance_cap: weight tokens by the training forward over the sampler, truncated here; null is off.
        weight_decay: of AdamW.
        adam_eps: of AdamW.
        trainable: which of the actor's weights are trained. "cross_keys_values", what image tokens get to
            read of the caption, gets the most of the reward's signal through the noise of its gradient, and
            so loses least of what the model can draw; "cross_attention" is all of those blocks; "all" the
            whole decoder.
    """

    learning_rate: float = 1.5e-3
    warmup_iterations: int = 5
    epochs: int = 2
    minibatch_size: int = 24
    microbatch_size: int = 24
    objective: Literal["clip", "score_function"] = "clip"
    advantage: Literal["gae", "rloo", "group", "per_prompt"] = "gae"
    clip_range: float = 0.2
    clip_range_high: float | None = None
    dual_clip: float | None = 3.0
    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten_advantages: bool = True
    advantage_clip: float | None = 5.0
    normalise_scores: bool = True
    entropy_coef: float = -0.05
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    importance_cap: float | None = None
    weight_decay: float = 0.0
    adam_eps: float = 1e-5
    trainable: Literal["cross_keys_values", "cross_attention", "all"] = "cross_keys_values"

    def __post_init__(self) -> None:
        _at_least_one(self, "ppo", "epochs", "minibatch_size", "microbatch_size")
        _not_negative(self, "ppo", "learning_rate", "warmup_iterations", "weight_decay")
        _positive(self, "ppo", "max_grad_norm", "adam_eps", "clip_range_high", "advantage_clip")
        _positive(self, "ppo", "target_kl", "importance_cap")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"ppo.clip_range is {self.clip_range}; it must lie between 0 and 1")
        upper = self.clip_range if self.clip_range_high is None else self.clip_range_high
        if self.dual_clip is not None and self.dual_clip <= 1 + upper:
            raise ValueError(
                f"ppo.dual_clip is {self.dual_clip}; it must exceed 1 + the upper clip range = {1 + upper}, "
                "or be null"
            )


@dataclass(frozen=True)
class KlConfig:
    """The penalty for leaving the reference.

    Args:
        kl_coef: its weight, in normalised score a nat.
        estimator: "k1", "k2" or "exact". The default, the exact KL over all codes, has no action noise: it
            holds every choice that the reward does not care about where it was.
        placement: "reward" (k1) or "loss" (k2, exact); other combinations have the wrong gradient and are
            refused. In the loss, no token is charged for KL that it causes later.
        target: nats an image to steer the coefficient to; null keeps it fixed.
        horizon: images over which the coefficient adapts.
    """

    kl_coef: float = 0.12
    estimator: Literal["k1", "k2", "k3", "exact"] = "exact"
    placement: Literal["reward", "loss"] = "loss"
    target: float | None = None
    horizon: int = 5000

    def __post_init__(self) -> None:
        # The reasons stand in rl.kl.check_kl_placement; this file must not import torch.
        if (self.placement, self.estimator) not in (("reward", "k1"), ("loss", "k2"), ("loss", "exact")):
            raise ValueError(
                f"kl.estimator {self.estimator} with kl.placement {self.placement} has the wrong gradient; "
                "use k1 with reward, or k2 or exact with loss"
            )
        _not_negative(self, "kl", "kl_coef")
        _positive(self, "kl", "target")
        if self.target is not None and not self.kl_coef > 0:
            raise ValueError(f"kl.kl_coef is {self.kl_coef}; with kl.target it must start above 0")


@dataclass(frozen=True)
class CriticConfig:
    """The critic: a network of its own, used by the "gae" advantage.

    Args:
        learning_rate: of the critic; decays as the actor's does.
        max_grad_norm: its gradient is clipped to it, apart from the actor's.
        warmup_iterations: first iterations that train the critic alone.
        value_clip: bound on the move of a value in one iteration, in units of normalised returns; null is
            none.
    """

    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    warmup_iterations: int = 0
    value_clip: float | None = None

    def __post_init__(self) -> None:
        _not_negative(self, "critic", "learning_rate", "warmup_iterations")
        _positive(self, "critic", "max_grad_norm", "value_clip")


@dataclass(frozen=True)
class EvaluationConfig:
    """Policy against reference on held-out captions, with the same noise.

    Args:
        at_end: evaluate when training ends.
        num_captions: captions drawn with the mix of `captions.shares`.
        samples_per_caption: images of each.
        batch_size: images drawn together; an interrupted evaluation goes on with the next batch.
        seed: of captions and noise; never the training's.
        heldout_clip: a second CLIP that no reward sees, as {model, pretrained}; its similarity tells a gain
            from a fooled CLIP where there is no judge. null is none.
        heldout_detector: a detector on `heldout_clip`: laion-l14, laion-b32, or a file that
            `converters/keras_nsfw_to_torch.py` wrote; null is none.
    """

    at_end: bool = True
    num_captions: int = 2000
    samples_per_caption: int = 2
    batch_size: int = 200
    seed: int = 12345
    heldout_clip: ClipConfig | None = None
    heldout_detector: str | None = None

    def __post_init__(self) -> None:
        _at_least_one(self, "evaluation", "num_captions", "samples_per_caption", "batch_size")
        _not_negative(self, "evaluation", "seed")
        if self.heldout_detector is not None and self.heldout_clip is None:
            raise ValueError(
                f"evaluation.heldout_detector is {self.heldout_detector}; it reads embeddings of "
                "evaluation.heldout_clip, so name that, too"
            )


@dataclass(frozen=True)
class Config:
    """All settings of a training run.

    Args:
        run_dir: the run's folder; null names one by date and time under `runs`.
        seed: of everything random in training.
        num_iterations: iterations of collect, score, update.
        checkpoint_every: iterations between checkpoints; the last iteration always writes one.
        keep_checkpoints: how many of them to keep.
        device: "auto", "cpu", "cuda" or "cuda:0".
        model: the model that is trained.
        policy: how it samples; part of the policy and saved with it.
        captions: the prompts.
        rollout: how many images an iteration.
        clip: the CLIP behind the reward.
        reward: the reward.
        ppo: the actor's update.
        kl: the penalty for leaving the reference.
        critic: the critic.
        evaluation: the evaluation at the end.
    """

    run_dir: str | None = None
    seed: int = 0
    num_iterations: int = 54
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    device: str = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    policy: PolicySettings = field(default_factory=PolicySettings)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _at_least_one(self, "", "num_iterations", "checkpoint_every", "keep_checkpoints")
        _not_negative(self, "", "seed")
        if self.policy.top_k is not None:
            raise ValueError(
                f"policy.top_k is {self.policy.top_k}; training needs null: a sampled token could leave the "
                "support and its log-prob become -inf. generate takes --top_k"
            )
        if self.ppo.objective == "score_function" and (self.ppo.epochs > 1 or self.minibatches > 1):
            raise ValueError(
                f"ppo.objective score_function needs ppo.epochs 1 and ppo.minibatch_size "
                f"{self.rollout.rollout_batch_size}: after one step the batch is no longer the policy's own"
            )
        if self.ppo.advantage in ("rloo", "group") and self.rollout.samples_per_caption < 2:
            raise ValueError(
                f"ppo.advantage {self.ppo.advantage} compares images of one caption; "
                "set rollout.samples_per_caption to at least 2"
            )
        if self.rollout.rollout_batch_size % self.ppo.minibatch_size:
            raise ValueError(
                f"ppo.minibatch_size is {self.ppo.minibatch_size}; it must divide "
                f"rollout.rollout_batch_size = {self.rollout.rollout_batch_size}"
            )
        if self.kl.target is not None and 0.2 * self.rollout.rollout_batch_size >= self.kl.horizon:
            raise ValueError(
                f"kl.horizon is {self.kl.horizon} images; it must exceed a fifth of "
                f"rollout.rollout_batch_size = {self.rollout.rollout_batch_size}, or one batch could turn "
                "kl_coef negative"
            )

    @property
    def minibatches(self) -> int:
        """Optimiser steps an epoch."""
        return self.rollout.rollout_batch_size // self.ppo.minibatch_size

    @property
    def captions_per_iteration(self) -> int:
        return self.rollout.rollout_batch_size // self.rollout.samples_per_caption


def _at_least_one(config: Any, prefix: str, *names: str) -> None:
    _refuse(config, prefix, names, lambda value: value >= 1, "be at least 1")


def _not_negative(config: Any, prefix: str, *names: str) -> None:
    _refuse(config, prefix, names, lambda value: 0 <= value < math.inf, "be 0 or a positive number")


def _positive(config: Any, prefix: str, *names: str) -> None:
    """None passes: it switches a setting off."""
    _refuse(config, prefix, names, lambda value: value is None or 0 < value < math.inf, "be above 0")


def _refuse(config: Any, prefix: str, names: tuple[str, ...], fits: Callable[[Any], bool], rule: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not fits(value):
            dotted = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{dotted} is {value}; it must {rule}")


def parse_command_line(
    argv: list[str] | None, prog: str, description: str, flags: dict[str, str] | None = None
) -> tuple[Config, dict[str, bool]]:
    """Reads `--config FILE`, dotted overrides and bare flags.

    Args:
        argv: arguments; None is the process's.
        prog: shown in help.
        description: shown in help.
        flags: names of bare flags with their help, such as `resume`.

    Returns:
        The configuration, and which flags were given.

    Raises:
        ValueError: for an unknown key (the nearest is offered) or a value of the wrong kind.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(Config)
    try:
        parsed: Namespace = parser.parse_args(argv)
        given = {name: bool(parsed.pop(name)) for name in flags or {}}
        parsed.pop("config", None)
        return Config(**vars(parser.instantiate(parsed))), given
    except ArgumentError as error:
        raise ValueError(_explain(str(error))) from None


def _explain(message: str) -> str:
    """One line of a parser's message, with the nearest setting where a key is unknown."""
    line = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept", line)
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        line,
    )
    if unknown is None or "class_path" in line:
        return line
    key = (f"{group.group(1)}." if group else "") + next(filter(None, unknown.groups()))
    near = difflib.get_close_matches(key, setting_names(), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
    return f"unknown setting {key}; {hint}"


def setting_names(config_class: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for f in fields(config_class):
        names.append(prefix + f.name)
        if is_dataclass(f.type):
            names += setting_names(f.type, f"{prefix}{f.name}.")
    return names


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path) -> Config:
    """Reads the settings that a run saved.

    Raises:
        ValueError: naming the file, if it is absent or does not fit.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; is its folder a run of dalle_ppo.train?")
    try:
        return parse_command_line(["--config", str(path)], "config", "")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class OneLineParser(argparse.ArgumentParser):
    """argparse, with a user's mistake as a ValueError that `run_main` prints, instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def run_main(main: Callable[[list[str] | None], int]) -> None:
    """Runs a command line: a user's error or an unusable file becomes one line and exit code 2."""
    try:
        sys.exit(main(None))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
