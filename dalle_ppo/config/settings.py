"""Every setting of a run, with its default; those of the update are in `config_ppo`, the policy's in
`models.policy`.

A run's settings are one YAML file, overridden on the command line by the same dotted names
(`--ppo.learning_rate 1e-4`). The resolved settings are saved with the run.
"""

from dataclasses import dataclass, field
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.config.algorithm import CriticConfig, KlConfig, PpoConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.models.policy_settings import PolicySettings


@dataclass(frozen=True)
class ModelConfig:
    """Which text-to-image model is trained.

    Args:
        path: "builtin" for the built-in world's; "mini" or "mega" for DALL·E's weights from the hub, or a
            folder of them; a folder of `pretrain`; or a run's, whose policy is then the starting point and
            the reference. With mini and Mega set policy.guidance, too: 1.5 suits the built-in world, 10 to 16
            is usual for them.
        revision: commit of hub repository kuprel/min-dalle for "mini" and "mega"; null is its main branch. A
            run's config.yaml holds the commit that this led to, and every later step loads that one.
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
        at_least_one(self, "captions", "world_size")
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
class RolloutConfig:
    """How images are collected.

    Of each setting: its default, where it comes from, and when to change it.

    Args:
        rollout_batch_size: images an iteration. Default 96, our own, for the built-in world. Raise it where
            the gradient is noise: its noise falls with the square root.
        samples_per_caption: images of each caption; divides `rollout_batch_size`. Default 1, our own: with a
            critic, another caption tells more than another image. Use 4 or more with `ppo.advantage` rloo
            (arXiv 2402.14740) or group (arXiv 2402.03300).
        dtype: of the weights and caches that images are sampled with. Default float32, our own: the trained
            weights themselves. Use bfloat16 on a GPU: it halves what is read for each token; the images are
            then drawn by a slightly different policy (`sampler_log_prob_gap`), which `ppo.importance_cap`
            corrects for.
        memory_gb: for what sampling and decoding hold beside the weights; batches that need more are drawn in
            parts, also in evaluations. Default null, our own: no bound. Set it when drawing runs out of
            memory.
    """

    rollout_batch_size: int = 96
    samples_per_caption: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        at_least_one(self, "rollout", "rollout_batch_size", "samples_per_caption")
        positive(self, "rollout", "memory_gb")
        if self.rollout_batch_size % self.samples_per_caption:
            raise ValueError(
                f"rollout.rollout_batch_size is {self.rollout_batch_size}; it must be a multiple of "
                f"rollout.samples_per_caption = {self.samples_per_caption}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """Policy against reference on held-out captions, with the same noise.

    Args:
        at_end: evaluate when training ends.
        num_captions: captions to draw.
        shares: share of each tag among them, as `captions.shares`; null is the mix of training. To train on
            more suspicious captions than there are, give here the mix that results should speak of.
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
    shares: dict[str, float] | None = None
    samples_per_caption: int = 2
    batch_size: int = 200
    seed: int = 12345
    heldout_clip: ClipConfig | None = None
    heldout_detector: str | None = None

    def __post_init__(self) -> None:
        at_least_one(self, "evaluation", "num_captions", "samples_per_caption", "batch_size")
        not_negative(self, "evaluation", "seed")
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
        clip: the CLIP that reward terms read.
        reward: what images are scored by.
        ppo: the actor's update.
        kl: the penalty for leaving the reference.
        critic: the critic.
        evaluation: the evaluation at the end.
    """

    run_dir: str | None = None
    seed: int = 0
    num_iterations: int = 90
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
        at_least_one(self, "", "num_iterations", "checkpoint_every", "keep_checkpoints")
        not_negative(self, "", "seed")
        if self.seed >= 2**40:
            raise ValueError(f"seed is {self.seed}; it must be below 2^40")
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
        self._check_read_by_gae_alone()
        self._check_entropy_penalty()
        if self.rollout.rollout_batch_size % self.ppo.minibatch_size:
            raise ValueError(
                f"ppo.minibatch_size is {self.ppo.minibatch_size}; it must divide "
                f"rollout.rollout_batch_size = {self.rollout.rollout_batch_size}"
            )
        largest_step = self.kl.error_clip * self.rollout.rollout_batch_size
        if self.kl.target is not None and largest_step >= self.kl.horizon:
            raise ValueError(
                f"kl.horizon is {self.kl.horizon} images; it must exceed kl.error_clip * "
                f"rollout.rollout_batch_size = {largest_step:g}, or one batch could turn kl_coef negative"
            )

    def _check_read_by_gae_alone(self) -> None:
        for name in ("gamma", "gae_lambda"):
            value = getattr(self.ppo, name)
            if self.ppo.advantage != "gae" and value != 1:
                raise ValueError(
                    f"ppo.{name} is {value}, which only ppo.advantage gae reads; set it to 1 with "
                    f"ppo.advantage {self.ppo.advantage}"
                )

    def _check_entropy_penalty(self) -> None:
        """What holds a policy against an entropy penalty is the KL: without enough of it, every token becomes
        certain whatever the reward."""
        entropy_coef, kl = self.ppo.entropy_coef, self.kl
        if entropy_coef >= 0:
            return
        if kl.placement == "reward":
            raise ValueError(
                f"ppo.entropy_coef is {entropy_coef:g} and kl.placement reward; advantages are whitened "
                "after the KL is taken off, so it may not hold an entropy penalty: set ppo.entropy_coef to 0"
            )
        if kl.kl_coef + entropy_coef <= 0:
            raise ValueError(
                f"kl.kl_coef is {kl.kl_coef:g} and ppo.entropy_coef {entropy_coef:g}; their sum must be "
                "above 0, or nothing holds the policy's entropy: set ppo.entropy_coef to 0"
            )
        if kl.target is not None:
            raise ValueError(
                f"kl.target is {kl.target:g}: it moves kl.kl_coef, which a ppo.entropy_coef below 0 "
                f"({entropy_coef:g}) needs to stay above it; set ppo.entropy_coef to 0"
            )

    @property
    def minibatches(self) -> int:
        """Optimiser steps an epoch."""
        return self.rollout.rollout_batch_size // self.ppo.minibatch_size

    @property
    def captions_per_iteration(self) -> int:
        return self.rollout.rollout_batch_size // self.rollout.samples_per_caption
