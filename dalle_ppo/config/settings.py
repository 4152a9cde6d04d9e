"""Every setting of a run: the record of all sections.

A run's settings are one YAML file, overridden on the command line by the same dotted names
(`--actor.learning_rate 1e-4`). The resolved settings are saved with the run. Each field is documented by the
text below it; `--help` and docs/settings.md show that text."""

from dataclasses import dataclass, field

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.anchor import AnchorConfig
from dalle_ppo.config.captions import CaptionsConfig
from dalle_ppo.config.clip import ClipConfig
from dalle_ppo.config.credit import CreditConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.judges import check_judges
from dalle_ppo.config.kl import KlConfig
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.objective import find_objective
from dalle_ppo.config.report import ReportConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.adaptive_kl import ERROR_CLIP

OBJECTIVE_FIELD = "objective_settings"
"""The field of `Config` that goes by the name of the chosen objective in files and on command lines."""


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    run_dir: str | None = None
    """The run's folder; null creates one under `runs`, named after the date and time."""
    seed: int = 0
    """Seed of everything random in training."""
    num_iterations: int = 90
    """Number of iterations; each draws images, scores them and updates the policy."""
    checkpoint_every: int = 20
    """Iterations between checkpoints; the last iteration always writes one."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep."""
    checkpoint_minutes: float | None = None
    """Minutes after which a checkpoint is written even if `checkpoint_every` is not due, at the end of an
    iteration. Such a checkpoint draws no samples. Null writes none. Set it when iterations are slow or
    machines are taken away: it bounds the work that a kill costs."""
    keep_best: str | None = None
    """A metric of an iteration, such as "reward_mean" or "unsafe_rate". Each checkpoint is rated by the
    metric's mean over the iterations since the previous checkpoint, and the best one is kept beside the
    newest. docs/metrics.md says whether higher or lower is better; without a direction, higher is. Only
    checkpoints that `checkpoint_every` wrote compete. Null keeps none."""
    device: str = "auto"
    """Where everything is computed: "cpu"; "cuda", or "cuda:1" for the second GPU; "auto" takes a GPU if
    there is one."""
    objective: str = "ppo"
    """The training objective. Clipped policy gradients: "ppo" (arXiv 1707.06347), "ddpo" (arXiv 2305.13301),
    "grpo" (arXiv 2402.03300). Policy gradients with one step per batch: "reinforce" (arXiv 2305.13301),
    "rloo" (arXiv 2402.14740). With replay: "dpok" (arXiv 2305.16381). Weighted likelihoods: "rwr",
    "best_of_n", "online_dpo", "dpok_sft". The name is enough: whatever you do not set gets a default that
    suits the objective. Its own settings are in the section of the same name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """How the model samples; part of the policy and saved with it."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Where captions come from."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How images are collected."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """The CLIP behind the reward."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What is maximised."""
    credit: CreditConfig = field(default_factory=CreditConfig)
    """How scores become advantages."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """Which weights of the policy are trained, and how."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """How a batch becomes optimiser steps."""
    objective_settings: object = None
    """The settings of the chosen objective; None means its defaults."""
    kl: KlConfig = field(default_factory=KlConfig)
    """The penalty for moving away from the reference."""
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    """Images of the reference on which the policy is held to it."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The critic."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The evaluation at the end."""

    report: ReportConfig = field(default_factory=ReportConfig)
    """The report."""

    def __post_init__(self) -> None:
        chosen = find_objective(self.objective)
        if self.objective_settings is None:
            object.__setattr__(self, OBJECTIVE_FIELD, chosen.settings())
        if type(self.objective_settings) is not chosen.settings:
            raise ValueError(
                f"objective is {self.objective}, but its settings are a {type(self.objective_settings)}; "
                f"give a {chosen.settings} or None"
            )
        if self.run_dir is not None and "\0" in self.run_dir:
            raise ValueError(f"run_dir is {self.run_dir!r}; a path holds no NUL: name a folder")
        if self.run_dir is not None and not self.run_dir.strip():
            raise ValueError(
                f"run_dir is {self.run_dir!r}, which would mean the current folder; name a folder, such as "
                "runs/a, or leave it out"
            )
        at_least_one(self, "", "num_iterations", "checkpoint_every", "keep_checkpoints")
        not_negative(self, "", "seed")
        positive(self, "", "checkpoint_minutes")
        if self.seed >= 2**40:
            raise ValueError(f"seed is {self.seed}; it must be below 2^40")
        check_sections(self)
        chosen.check(self)

    @property
    def minibatches(self) -> int:
        """Optimiser steps per epoch."""
        batch = self.rollout.rollout_batch_size
        return batch // (self.update.minibatch_size or batch)

    @property
    def captions_per_iteration(self) -> int:
        """Captions that an iteration draws images for."""
        return self.rollout.rollout_batch_size // self.rollout.samples_per_caption


def check_sections(config: Config) -> None:
    """Refuses settings of different sections that do not go together.

    Raises:
        ValueError: they do not; the message names both settings and the way out.
    """
    for check in (
        _check_policy,
        _check_precision,
        _check_shard,
        _check_advantage,
        _check_images_per_caption,
        _check_images_of_terms,
        _check_minibatches,
        _check_entropy,
        _check_horizon,
        _check_judges,
    ):
        check(config)


def _check_policy(config: Config) -> None:
    if config.policy.top_k == 1:
        raise ValueError(
            "policy.top_k is 1; training needs at least 2, or null for all codes: with one code to choose "
            "from there is nothing to learn. generate accepts --top_k 1"
        )


def _check_precision(config: Config) -> None:
    if config.model.frozen_dtype != "float32" and config.update.dtype == "float32":
        raise ValueError(
            f"model.frozen_dtype is {config.model.frozen_dtype}; it needs update.dtype bfloat16, or the "
            "reference would differ from the actor by rounding before anything is learned: set both"
        )


def _check_shard(config: Config) -> None:
    """Holding networks in parts is for training whole networks; what else saves memory does not add to it."""
    if config.update.shard == "none":
        return
    refused = {
        "actor.adapter": config.actor.adapter == "lora",
        "critic.adapter": config.critic.adapter == "lora",
        "actor.optimizer": config.actor.optimizer == "adamw_8bit",
        "critic.optimizer": config.critic.optimizer == "adamw_8bit",
        "anchor.coef": config.anchor.coef != 0,
    }
    for name, found in refused.items():
        if found:
            section, field_name = name.split(".")
            value = getattr(getattr(config, section), field_name)
            default = getattr(type(getattr(config, section))(), field_name)
            raise ValueError(
                f"update.shard is {config.update.shard} and {name} {value}, which do not go together; set "
                f"{name} to {default}, or update.shard to none"
            )


def _check_advantage(config: Config) -> None:
    chosen = find_objective(config.objective)
    if config.credit.advantage == "none" and chosen.defaults.get("credit.advantage") != "none":
        raise ValueError(
            f"credit.advantage is none; objective {config.objective} learns from advantages: set it to gae "
            "or another one"
        )


def _check_images_per_caption(config: Config) -> None:
    if config.credit.advantage in ("rloo", "group") and config.rollout.samples_per_caption < 2:
        raise ValueError(
            f"credit.advantage {config.credit.advantage} compares the images of one caption; "
            "set rollout.samples_per_caption to at least 2"
        )


def _check_images_of_terms(config: Config) -> None:
    compared, rollout, e = config.credit.advantage in ("rloo", "group"), config.rollout, config.evaluation
    drawn = {"rollout.samples_per_caption": (rollout.samples_per_caption, compared)}
    if e.at_end:
        drawn["evaluation.samples_per_caption"] = (e.samples_per_caption, False)
    for term in config.reward.parsed:
        for setting, (samples, together) in drawn.items():
            needed = term.own.images_needed(together)
            if samples < needed:
                beside = f" with credit.advantage {config.credit.advantage}" if together else ""
                raise ValueError(
                    f"{setting} is {samples}, but the reward term {term.label} compares the images of a "
                    f"caption{beside}; set it to at least {needed}"
                )
    for judge in e.parsed_judges:
        needed = judge.own.images_needed(False)
        if e.samples_per_caption < needed:
            raise ValueError(
                f"evaluation.judges: evaluation.samples_per_caption is {e.samples_per_caption}, but the "
                f"judge {judge.label} compares the images of a caption; set it to at least {needed}"
            )


def _check_minibatches(config: Config) -> None:
    batch, minibatch = config.rollout.rollout_batch_size, config.update.minibatch_size
    if minibatch is not None and batch % minibatch:
        raise ValueError(
            f"update.minibatch_size is {minibatch}; it must divide rollout.rollout_batch_size = {batch}, "
            "or be null"
        )


def _check_entropy(config: Config) -> None:
    """Only the KL balances an entropy penalty: without enough of it, every token becomes certain, whatever
    the reward."""
    entropy_coef, kl = config.actor.entropy_coef, config.kl
    if entropy_coef >= 0:
        return
    if kl.placement == "reward":
        raise ValueError(
            f"actor.entropy_coef is {entropy_coef:g} and kl.placement reward; advantages are whitened after "
            "the KL is subtracted, so it may not balance an entropy penalty: set actor.entropy_coef to 0"
        )
    if kl.kl_coef + entropy_coef <= 0:
        raise ValueError(
            f"kl.kl_coef is {kl.kl_coef:g} and actor.entropy_coef {entropy_coef:g}; their sum must be above "
            "0, or the policy's entropy collapses: set actor.entropy_coef to 0"
        )
    if kl.target is not None:
        raise ValueError(
            f"kl.target is {kl.target:g} and actor.entropy_coef {entropy_coef:g}; the target could make "
            "kl.kl_coef too small to balance an entropy penalty: set actor.entropy_coef to 0"
        )


def _check_horizon(config: Config) -> None:
    largest_step = ERROR_CLIP * config.rollout.rollout_batch_size
    if config.kl.target is not None and largest_step >= config.kl.horizon:
        raise ValueError(
            f"kl.horizon is {config.kl.horizon} images; with kl.target it must exceed {ERROR_CLIP} * "
            f"rollout.rollout_batch_size = {largest_step:g}, or one batch could turn kl_coef negative"
        )


def _check_judges(config: Config) -> None:
    check_judges(config.evaluation.parsed_judges, config.reward.parsed)
