"""The training loop: collect, score, update, log, save."""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle_ppo.base.halving import OutOfMemory
from dalle_ppo.base.stopping import StopSignals
from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.captions.prefetch import PrefetchedCaptions
from dalle_ppo.captions.source import CaptionRecord, CaptionSource
from dalle_ppo.config.settings import Config
from dalle_ppo.policy.rollout import NoiseSource, collect
from dalle_ppo.rewards.base import Reward, RewardResult, check_result
from dalle_ppo.rl.adaptive_kl import AdaptiveKL
from dalle_ppo.rl.advantages import PromptStatistics
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.checkpoints import Checkpoint, prune_checkpoints, save_checkpoint
from dalle_ppo.runs.metric_table import ITERATION_METRICS
from dalle_ppo.runs.metrics import METRICS_FILE, MetricsWriter, SilentWriter, newest_metrics
from dalle_ppo.runs.pictures import blur_unsafe, save_first_and_newest, save_grid, to_numpy
from dalle_ppo.runs.provenance import check_reference, weights_sha256
from dalle_ppo.training.best import check_metric, looked_for
from dalle_ppo.training.checkpointing import restore_learners, restored_progress, run_state, whole_learners
from dalle_ppo.training.credit import CreditState, credit_metrics
from dalle_ppo.training.guards import broken_updates, check_collapse, flagged_unsafe
from dalle_ppo.training.iteration_metrics import Stopwatch, peak_memory_gb, score_metrics
from dalle_ppo.training.objective import find_objective, needs_exact_kl
from dalle_ppo.training.optim import learning_rates, make_learner, set_learning_rate
from dalle_ppo.training.progress import Progress
from dalle_ppo.training.progress_bar import ProgressBar
from dalle_ppo.training.replay import ReplayBuffer, joined, replay_metrics, with_credit
from dalle_ppo.training.scoring import Networks, policy_metrics
from dalle_ppo.training.sharing import (
    check_divides,
    check_equal_weights,
    fingerprint,
    means_of,
    reuses_states,
    shared_reward,
    shared_score_passes,
)
from dalle_ppo.training.stopping import Clock, saved_if_it_ends
from dalle_ppo.training.term_scales import normalised_sum
from dalle_ppo.training.update import Step, order_generator, run_update, scoring_order

# With reward.bad_result "skip", a reward that fails this often in a row is broken, not unlucky.
MAX_BATCHES_LEFT_OUT = 3
# Added to the seed that orders an iteration's images, for the choice of those that are replayed.
REPLAY_STREAM = 2**62


class Trainer:
    """Trains one policy with one objective.

    Args:
        config: all settings.
        run_dir: the run's folder, ready to be written to.
        networks: actor, frozen reference, critic, and the family they belong to.
        reward: what is maximised.
        captions: the prompts.
        sample_captions: captions drawn with the same noise at each checkpoint, to look at.
        team: the processes that train together.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        networks: Networks,
        reward: Reward,
        captions: CaptionSource | PrefetchedCaptions,
        sample_captions: list[CaptionRecord],
        team: Team = ALONE,
    ):
        check_divides(config, team)
        self.config, self.run_dir, self.networks, self.team = config, run_dir, networks, team
        self.reward, self.captions, self.sample_captions = reward, captions, sample_captions
        self.family, self.objective = networks.family, find_objective(config.objective)
        self.draws_from_reference = self.objective.draws_from_reference(config.objective_settings)
        self.reference_fingerprint = fingerprint(networks.reference)
        self.reference_sha256 = networks.reference_sha256 or weights_sha256(networks.reference)
        actor, critic = config.actor, config.critic
        self.actor = make_learner(networks.actor, actor)
        self.critic = make_learner(networks.critic, critic) if networks.critic else None
        schedule = (actor.warmup_iterations, actor.schedule, config.num_iterations)
        self.first_actor_iteration = critic.warmup_iterations if networks.critic else 0
        self.learning_rate = learning_rates(actor.learning_rate, *schedule, self.first_actor_iteration)
        self.critic_learning_rate = learning_rates(critic.learning_rate, *schedule)
        statistics = PromptStatistics(config.credit.prompt_buffer_size, config.credit.prompt_min_count)
        state = CreditState(kl_coef=config.kl.kl_coef, prompt_statistics=statistics)
        drawn = len(networks.anchor.images) if networks.anchor else 0
        self.progress = Progress(images=drawn, credit=state)
        self.buffer = ReplayBuffer()
        self.after_phase, self.detect = lambda seconds, images: None, None
        self.signals, self.clock = StopSignals(team), Clock(config.checkpoint_minutes)
        self.means = means_of(networks, team)
        check_metric(config.keep_best, config)

    def run(self) -> None:
        """Trains to `num_iterations`, from the current iteration.

        Raises:
            ValueError: a reward is not usable, the policy has collapsed, updates are not finite or memory is
                short; what was learned up to then is saved first.
            Stopped: a signal came; likewise.
        """
        start, networks = self.progress.iteration, 3 if self.critic else 2
        first = self.team.is_first
        earlier = newest_metrics(self.run_dir / METRICS_FILE, start) if first else []
        bar = ProgressBar(self.config, earlier, len(self.sample_captions), networks, first, start)
        self.after_phase, looked = bar.after_phase, False
        with MetricsWriter(self.run_dir, start) if first else SilentWriter() as writer, bar:
            # A kill may have come between this checkpoint and its samples.
            if start > 0 and self.is_due(start):
                self.check_policy(self.draw_samples(writer))
            while self.progress.iteration < self.config.num_iterations:
                with saved_if_it_ends(self):
                    self.signals.check_together()
                    if self.progress.iteration == 0:
                        self.draw_samples(writer)
                    metrics = self.iterate(writer)
                writer.write(metrics)
                self.progress.best = self.progress.best.after(metrics, self.config.keep_best)
                looked = looked or looked_for(self.config.keep_best, metrics)
                bar.finished(metrics)
                broken = broken_updates(metrics, self.config)
                if broken is not None:
                    self.save(spare=1)
                    raise ValueError(broken)
                if self.is_due(self.progress.iteration):
                    with bar.writing_checkpoint():
                        self.checkpoint(writer)
                elif self.team.on_first(self.clock.due):
                    writer.flush()
                    self.save(spare=1)

    def is_due(self, iteration: int) -> bool:
        """Whether a checkpoint is due after so many iterations."""
        return iteration % self.config.checkpoint_every == 0 or iteration == self.config.num_iterations

    def checkpoint(self, writer: MetricsWriter) -> None:
        """Saves, draws samples and checks the policy on them.

        Raises:
            ValueError: the policy has collapsed, or the samples have no usable reward. It is saved
                anyway, without replacing an earlier checkpoint.
        """
        progress = self.progress
        progress.best = progress.best.at_checkpoint(progress.iteration, self.config.keep_best)
        writer.flush()  # a resumed run does not write again what is older than its checkpoint
        self.save(spare=1)
        self.check_policy(self.draw_samples(writer))
        if self.team.is_first:
            prune_checkpoints(self.run_dir, progress.iteration, self.config.keep_checkpoints)

    def check_policy(self, drawn: Experience) -> None:
        """Raises if the policy has collapsed, judging by images it has just drawn.

        Raises:
            ValueError: the policy has collapsed.
        """
        networks, size = replace(self.networks, critic=None), self.config.update.microbatch_size
        scored = shared_score_passes(networks, drawn, size, False, self.means)
        check_collapse(policy_metrics(scored), self.config, self.progress.iteration)

    def iterate(self, writer: MetricsWriter) -> dict[str, Any]:
        """One iteration; returns its metrics."""
        config, progress, iteration = self.config, self.progress, self.progress.iteration
        watch = self.stopwatch(config.rollout.rollout_batch_size)
        with watch.phase("rollout"), self.signals.interruptible():
            experience = self.collect()
        progress.captions_truncated += experience.num_truncated
        with watch.phase("reward"), self.signals.interruptible():
            result = self.score(experience)
        if result is None:
            return self._leave_out(experience, watch)
        with watch.phase("scoring"), self.signals.interruptible():
            experience = replace(experience, scores=result.total, reward_parts=result.parts)
            experience = self.score_passes(experience)
            described = policy_metrics(experience, self.draws_from_reference)
            check_collapse(described, config, iteration)
            if not config.update.recompute_log_probs:
                experience = replace(experience, old_log_probs=experience.sampler_log_probs)
        with watch.phase("update"):
            weighed, of_terms = self.normalise(result)
            experience = replace(experience, scores=weighed)
            experience, progress.credit = self.objective.credit(experience, config, progress.credit)
            numbers = credit_metrics(experience, config, progress.credit.kl_coef)
            batch, replayed = self.learned_batch(experience)
            updates = self.update(batch) | replayed
        experience = replace(experience, scores=result.total)
        self._end_iteration(experience)
        metrics = {
            "iteration": iteration,
            "images": progress.images,
            **score_metrics(experience, config),
            **described,
            **numbers,
            **of_terms,
            **updates,
            "batches_left_out": 0,
            "reference_changes": self.reference_changes(),
            "captions_truncated": experience.num_truncated / config.captions_per_iteration,
            **self.captions.metrics(),
            **watch.metrics(len(experience)),
            "memory_gb": peak_memory_gb(self.family.device),
        }
        values = {"reward": experience.scores, **experience.reward_parts}
        writer.write_histograms(iteration, {name: value.cpu().numpy() for name, value in values.items()})
        return metrics

    def normalise(self, result: RewardResult) -> tuple[Tensor, dict[str, float]]:
        """The scores to learn from, [B], as `reward.normalise` says, and metrics of each term."""
        reward, progress = self.config.reward, self.progress
        if reward.normalise is None:
            return result.total, {}
        moments = progress.term_moments
        weighed, progress.term_moments, metrics = normalised_sum(result.values, reward.parsed, moments)
        return weighed, metrics

    def stopwatch(self, images: int) -> Stopwatch:
        """Measures the phases that images go through, and tells the progress bar."""
        return Stopwatch(self.family.device, lambda seconds: self.after_phase(seconds, images))

    def collect(self) -> Experience:
        """Draws the iteration's images from the policy, or the reference if the objective says so."""
        config, rollout = self.config, self.config.rollout
        records = self.team.on_first(lambda: self.captions.next_batch(config.captions_per_iteration))
        noise = NoiseSource(config.seed, "rollout", self.progress.iteration)
        means = replace(self.means, remember=reuses_states(config, self.team))
        drawer = self.networks.reference if self.draws_from_reference else self.actor.module
        weights, per_caption = self.family.sampler_weights(drawer, rollout.dtype), rollout.samples_per_caption
        return collect(self.family, weights, records, per_caption, noise, rollout.memory_gb, means)

    def score_passes(self, experience: Experience) -> Experience:
        """Scores the images with actor, reference and critic."""
        size, keep_reference = self.config.update.microbatch_size, needs_exact_kl(self.config, self.objective)
        order = scoring_order(experience, self.objective, self.config, self.progress.iteration, self.team)
        return shared_score_passes(self.networks, experience, size, keep_reference, self.means, order)

    def reference_changes(self) -> int:
        """How many tensors of the reference have changed since the start, bit for bit."""
        now = fingerprint(self.networks.reference)
        return sum(a != b for a, b in zip(now, self.reference_fingerprint, strict=True))

    def memory_plan(self) -> Any:
        """What a rollout holds in memory, and how it is split to fit `rollout.memory_gb`; prints as one line.

        Raises:
            ValueError: not even one image fits.
        """
        rollout = self.config.rollout
        budget = math.inf if rollout.memory_gb is None else rollout.memory_gb
        own = rollout.rollout_batch_size // self.team.size
        return self.family.plan(self.actor.module, own, budget, rollout.dtype)

    def score(self, experience: Experience) -> RewardResult | None:
        """The reward's result; None if it is not usable and `reward.bad_result` says to skip the batch.

        Raises:
            ValueError: it is not usable, and the run must stop or has just left out other batches.
        """
        try:
            result = shared_reward(self.reward, self.config, experience, self.means)
            return check_result(result, len(experience), "of this run")
        except ValueError as error:
            left_out = self.progress.left_out + 1
            stop = self.config.reward.bad_result == "stop" or isinstance(error, OutOfMemory)
            if stop or left_out >= MAX_BATCHES_LEFT_OUT:
                raise
            warnings.warn(f"iteration {self.progress.iteration}: batch left out: {error}", stacklevel=2)
            return None

    def _leave_out(self, batch: Experience, watch: Stopwatch) -> dict:
        """Ends an iteration that learns nothing; returns the metrics it has."""
        progress = self.progress
        progress.iteration += 1
        progress.images += len(batch)
        progress.left_out += 1
        return {
            **dict.fromkeys(ITERATION_METRICS),
            "iteration": progress.iteration - 1,
            "images": progress.images,
            "batches_left_out": 1,
            **self.captions.metrics(),
            **watch.metrics(len(batch)),
            "memory_gb": peak_memory_gb(self.family.device),
        }

    def update(self, experience: Experience) -> dict[str, Any]:
        """The optimiser steps of the iteration; returns their metrics."""
        config, iteration = self.config, self.progress.iteration
        rates = {"learning_rate": self.learning_rate(iteration)}
        set_learning_rate(self.actor.optimizer, rates["learning_rate"])
        if self.critic is not None:
            rates["critic_learning_rate"] = self.critic_learning_rate(iteration)
            set_learning_rate(self.critic.optimizer, rates["critic_learning_rate"])
        step = Step(
            self.actor,
            self.critic,
            self.progress.credit.kl_coef,
            iteration >= self.first_actor_iteration,
            order_generator(config.seed, iteration),
            self.means,
            self.signals,
        )
        return rates | run_update(self.networks, experience, self.objective, config, step)

    def learned_batch(self, experience: Experience) -> tuple[Experience, dict[str, Any]]:
        """The images that the update learns from: new ones, perhaps not all, and earlier ones; metrics."""
        config, objective = self.config, self.objective
        new = objective.select(experience, config)
        if not objective.replays:
            return new, {"images_replayed": None, "replay_kl": None}
        seed = config.seed * 1_000_003 + self.progress.iteration + REPLAY_STREAM
        generator = torch.Generator().manual_seed(seed)
        drawn = self.buffer.draw(config.objective_settings.replay_images, generator, self.family)
        if drawn is None:
            return new, replay_metrics(None, None)
        scored = self.score_passes(drawn)
        metrics = replay_metrics(drawn, scored)
        scored = replace(scored, old_log_probs=drawn.old_log_probs)
        replayed = with_credit(scored, new, objective, config, self.progress.credit)
        return joined(new, replayed, self.family), metrics

    def _end_iteration(self, experience: Experience) -> None:
        progress, kl = self.progress, self.config.kl
        trained_actor = progress.iteration >= self.first_actor_iteration
        progress.iteration += 1
        progress.images += len(experience)
        progress.left_out = 0
        if self.objective.replays:
            self.buffer = self.buffer.add(experience, self.config.objective_settings.buffer_images)
        if kl.target is not None and trained_actor:
            controller = AdaptiveKL(progress.credit.kl_coef, kl.target, kl.horizon)
            measured = float(experience.kl.sum(dim=1).mean())
            kl_coef = controller.update(measured, len(experience)).kl_coef
            progress.credit = replace(progress.credit, kl_coef=kl_coef)

    @torch.no_grad()
    def draw_samples(self, writer: MetricsWriter) -> Experience:
        """Draws the same captions with the same noise as last time, into `samples/` and TensorBoard."""
        noise, memory_gb = NoiseSource(self.config.seed, "samples"), self.config.rollout.memory_gb
        weights = self.family.sampler_weights(self.actor.module)
        watch = self.stopwatch(len(self.sample_captions))
        with watch.phase("rollout"), self.signals.interruptible():
            drawn = collect(self.family, weights, self.sample_captions, 1, noise, memory_gb, self.means)
        with watch.phase("reward"), self.signals.interruptible():
            result = self.score(drawn)
        if result is None or not self.team.is_first:
            return drawn
        flagged = flagged_unsafe(drawn.images, result, self.config, self.detect)
        images = blur_unsafe(to_numpy(drawn.images), flagged)
        done = self.progress.iteration
        save_grid(self.run_dir / "samples" / f"step_{done:06d}.png", images, columns=8, enlarge=2)
        if done > 0:
            save_first_and_newest(self.run_dir / "samples", done)
        writer.write_images(done, "samples", images, columns=8)
        writer.flush()
        return drawn

    def save(self, spare: int = 0) -> Path | None:
        """Writes a checkpoint of everything needed to resume; no process goes on before it stands.

        Args:
            spare: how many to keep beyond `keep_checkpoints`, so that the last one of a run that went wrong
                replaces neither a good one nor the best.
        """
        check_equal_weights(self.networks, self.team)
        learners = whole_learners(self.actor, self.critic, self.team)
        written = None
        if learners is not None:
            tensors, state = run_state(self, learners)
            keep = self.config.keep_checkpoints, spare
            written = save_checkpoint(self.run_dir, self.progress.iteration, tensors, state, *keep)
        self.team.gather(None)
        self.clock.restart()
        return written

    def load(self, checkpoint: Checkpoint) -> None:
        """Restores what `save` wrote, with the current settings, even where the checkpoint records others.

        Raises:
            ValueError: the reference is now a different one, or there is no critic to continue with.
        """
        check_reference(checkpoint.state, self.reference_sha256, self.config.model.path)
        restore_learners(checkpoint, self.actor, self.critic)
        self.progress = restored_progress(checkpoint, self.config)
        self.captions.load_state_dict(checkpoint.state["captions"])
        self.buffer = ReplayBuffer.restored(checkpoint, self.config.policy.top_k, self.family.device)
