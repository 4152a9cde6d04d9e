"""Plants each classic mistake in a copy of the project and shows the test that catches it.

    python benchmarks/planted_mistakes.py            # minutes; writes planted_mistakes.md beside it

Exits with 1 if a mistake goes unseen. The same tests must pass in an unchanged copy first: one that fails by
itself would seem to see every mistake. Needs the `test` extra.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".md")
HEADING = """# Mistakes that the tests see

`python benchmarks/planted_mistakes.py` plants each in a copy of the project, runs the tests and writes this
table.
"""


@dataclass(frozen=True)
class Mistake:
    """One line of the project, what stands there when it is made, and the tests that shall see it.

    Args:
        what: in words.
        file: below `dalle_ppo`.
        right: a piece of that file, found once.
        wrong: what is planted in its place.
        tests: pytest's name of a file or a test, below `tests`.
    """

    what: str
    file: str
    right: str
    wrong: str
    tests: str


RIGHT_RECURRENCE = "running = deltas[:, t] + GAMMA * gae_lambda * running"
SCORED_TOKENS = "log_probs, ref_log_probs, kl = gather_log_probs(log_pi, tokens), None, None"
SCORED_LOG_PI = "log_pi, ref_log_pi = log_pi_of_hidden(policy, hidden, every), None"
NOISE_WORDS = "|{iteration}|{caption}|{sample}"
PLANTED = (
    Mistake(
        "tokens are drawn again where the drawn ones should be scored",
        "models/family.py",
        SCORED_TOKENS,
        "drawn = torch.multinomial(log_pi.detach().exp().flatten(0, 1), 1).view_as(tokens)\n"
        "    log_probs, ref_log_probs, kl = gather_log_probs(log_pi, drawn), None, None",
        "training/test_update.py::test_resampled_tokens",
    ),
    Mistake(
        "log-probs without guidance of images drawn with it",
        "models/dalle/family.py",
        SCORED_LOG_PI,
        SCORED_LOG_PI.replace("every", "replace(every, guidance=1.0)"),
        "training/test_update.py::test_unguided_log_probs",
    ),
    Mistake(
        "temperature forgotten in the reference",
        "models/dalle/family.py",
        "ref_log_pi = log_pi_of_hidden(reference, ref_hidden, every)",
        "ref_log_pi = log_pi_of_hidden(reference, ref_hidden, replace(every, temperature=1.0))",
        "training/test_update.py::test_temperature_forgotten_in_the_reference",
    ),
    Mistake(
        "temperature divides before guidance's base is added",
        "models/dalle/sampling.py",
        "logits = _guided_logits(decoder, conditional, unconditional, settings)",
        "logits = _guided_logits(decoder, conditional / settings.temperature, unconditional, "
        "replace(settings, temperature=1.0)) * settings.temperature",
        "models/dalle/test_sampling.py::test_guided_log_pi_is_the_enumerated_distribution",
    ),
    Mistake(
        "the reward is added at every token",
        "rl/advantages.py",
        "rewards[:, -1] += scores",
        "rewards += scores[:, None]",
        "rl/test_advantages.py::test_reward_added_at_every_token",
    ),
    Mistake(
        "GAE's exponent is wrong",
        "rl/advantages.py",
        RIGHT_RECURRENCE,
        "running = deltas[:, t] + (GAMMA * gae_lambda) ** (deltas.shape[1] - t) * running",
        "rl/test_advantages.py::test_wrong_gae_exponent",
    ),
    Mistake(
        "GAE bootstraps from a value after the last token",
        "rl/advantages.py",
        "torch.zeros_like(values[:, :1])], dim=1)",
        "values[:, -1:]], dim=1)",
        "rl/test_advantages.py::test_gae_lambda_one_is_monte_carlo",
    ),
    Mistake(
        "advantages are whitened image by image",
        "rl/advantages.py",
        "centred = x - x.mean()",
        "centred = x - x.mean(dim=-1, keepdim=True)",
        "rl/test_advantages.py::test_per_sequence_whitening_erases_the_score",
    ),
    Mistake(
        "returns are made of whitened advantages",
        "training/credit.py",
        "return Given(advantages, advantages + experience.values, state.prompt_statistics)",
        "return Given(advantages, whiten(advantages) + experience.values, state.prompt_statistics)",
        "training/test_targets.py::test_returns_from_whitened_advantages",
    ),
    Mistake(
        "RLOO's baseline includes the image itself",
        "rl/advantages.py",
        "return total / (same.sum(1) - 1)",
        "return total / same.sum(1)",
        "rl/test_advantages.py::test_rloo_baseline_that_includes_the_image_itself",
    ),
    Mistake(
        "the clip is a minimum where losses are compared",
        "rl/losses.py",
        "loss = torch.maximum(free, bounded)",
        "loss = torch.minimum(free, bounded)",
        "rl/test_losses.py::test_clip_cases_on_both_signs_of_the_advantage",
    ),
    Mistake(
        "dual clip acts on positive advantages too",
        "rl/losses.py",
        "dual_clipped = (advantages < 0) & (loss > ceiling)",
        "dual_clipped = loss > ceiling",
        "rl/test_losses.py::test_dual_clip_on_the_wrong_sign",
    ),
    Mistake(
        "the value clip is relative, not in units of the returns",
        "rl/losses.py",
        "near = old_values + (values - old_values).clamp(-value_clip, value_clip)",
        "near = old_values + (values - old_values).clamp(-value_clip * old_values.abs(), "
        "value_clip * old_values.abs())",
        "rl/test_losses.py",
    ),
    Mistake(
        "gradient flows into the advantages",
        "rl/losses.py",
        "advantages = advantages.detach()",
        "advantages = advantages",
        "rl/test_losses.py::test_gradient_leaking_into_the_old_policy_or_the_advantages",
    ),
    Mistake(
        "images are replayed without importance weights",
        "rl/losses.py",
        "loss=-advantages.detach() * ratio.clamp(max=max_ratio) * log_probs,",
        "loss=-advantages.detach() * log_probs,",
        "training/test_objectives.py::test_truncated_tokens",
    ),
    Mistake(
        "replayed images are taken for new ones",
        "training/trainer.py",
        "scored = replace(scored, old_log_probs=drawn.old_log_probs)",
        "scored = replace(scored)",
        "training/test_replay.py::test_an_iteration_learns_from_new_and_earlier_images",
    ),
    Mistake(
        "a run is resumed without the images that it replays",
        "training/trainer.py",
        "self.buffer = ReplayBuffer.restored(checkpoint, self.config.policy.top_k, self.family.device)",
        "self.buffer = ReplayBuffer()",
        "training/test_replay.py::test_a_resumed_run_replays_the_same_images",
    ),
    Mistake(
        "scores of replayed images change the scale again",
        "training/replay.py",
        "plain = replace(settings, normalise_scores=False, whiten_advantages=False, advantage_clip=None)",
        "plain = replace(settings, whiten_advantages=False, advantage_clip=None)",
        "training/test_replay.py::test_replayed_scores_are_divided_by_the_scale_of_the_new_ones",
    ),
    Mistake(
        "replayed advantages are whitened by themselves",
        "training/replay.py",
        "advantages = whiten(advantages, new.advantage_moments)",
        "advantages = whiten(advantages)",
        "training/test_replay.py::test_replayed_advantages_are_in_the_units_of_the_new_ones",
    ),
    Mistake(
        "replayed images lose the codes that they were drawn from",
        "training/replay.py",
        'KEPT = ("tokens", "kept", "sampler_log_probs", "old_log_probs", "scores")',
        'KEPT = ("tokens", "sampler_log_probs", "old_log_probs", "scores")',
        "training/test_replay.py::test_the_codes_that_tokens_were_drawn_from_are_replayed_too",
    ),
    Mistake(
        "the gradient of a weight is another product",
        "models/dalle/linear.py",
        "onednn_product(columns, x.reshape(-1, x.shape[-1]).T) if of_weight else None,",
        "onednn_product(columns, x.reshape(-1, x.shape[-1]).T) * 2 if of_weight else None,",
        "models/dalle/test_linear.py::test_gradients_are_those_by_the_book",
    ),
    Mistake(
        "the ratio of an image is the product over its tokens",
        "rl/losses.py",
        "log_ratio.mean(dim=1, keepdim=True)",
        "log_ratio.sum(dim=1, keepdim=True)",
        "training/test_objectives.py::test_clipped_images",
    ),
    Mistake(
        "captions without spread dilute the gradient",
        "training/objectives/grpo.py",
        "return experience.select(kept.nonzero()[:, 0])",
        "return experience",
        "training/test_objectives.py::test_captions_without_spread_are_left_out_and_counted",
    ),
    Mistake(
        "a group is divided by its deviation whatever the settings say",
        "training/objectives/grpo.py",
        'ESTIMATORS["group"] if config.objective_settings.divide_by_std else GROUP_CENTRED',
        'ESTIMATORS["group"]',
        "training/test_objectives.py::test_grpo_without_the_deviation_is_unbiased_but_for_a_factor",
    ),
    Mistake(
        "ddpo clips rises only",
        "training/objectives/ddpo.py",
        "clip_range=settings.clip_range)",
        "clip_range=0.999, clip_range_high=settings.clip_range)",
        "training/test_objectives.py::test_clipped_tokens",
    ),
    Mistake(
        "the KL the wrong way round",
        "rl/kl.py",
        "return (log_pi.exp() * log_ratio).sum(-1)",
        "return (ref_log_pi.exp() * -log_ratio).sum(-1)",
        "rl/test_kl.py",
    ),
    Mistake(
        "the KL is divided by the score's deviation",
        "training/credit.py",
        "rewards = token_rewards(experience.scores / experience.reward_scale, k1, in_reward)",
        "rewards = token_rewards(experience.scores, k1, in_reward) / experience.reward_scale",
        "training/test_targets.py::test_kl_divided_by_the_scores_deviation",
    ),
    Mistake(
        "the KL is penalised twice, in the reward and in the loss",
        "training/credit.py",
        'in_reward = state.kl_coef if config.kl.placement == "reward" else 0.0',
        "in_reward = state.kl_coef",
        "training/test_targets.py::test_kl_penalised_twice",
    ),
    Mistake(
        "kl.target counts nats per token",
        "training/trainer.py",
        "measured = float(experience.kl.sum(dim=1).mean())",
        "measured = float(experience.kl.mean())",
        "training/test_targets.py::test_kl_target_in_nats_per_token",
    ),
    Mistake(
        "the entropy bonus has the sign of a penalty",
        "training/update.py",
        "entropy_part = -config.actor.entropy_coef * scores.entropy",
        "entropy_part = config.actor.entropy_coef * scores.entropy",
        "training/test_update.py::test_step_is_the_gradient_of_the_written_out_loss",
    ),
    Mistake(
        "a microbatch is averaged by its own size",
        "training/update.py",
        "(terms.loss.sum() / num_tokens).backward()",
        "terms.loss.mean().backward()",
        "training/test_update.py::test_any_microbatch_size_gives_the_same_update",
    ),
    Mistake(
        "the first minibatch is drawn with replacement",
        "training/update.py",
        "order = torch.randperm(count, generator=generator)",
        "order = torch.randint(count, (count,), generator=generator)",
        "training/test_update.py::test_every_image_is_visited_once_an_epoch",
    ),
    Mistake(
        "the exact KL in the loss counts half",
        "training/update.py",
        "if scores.kl is None else scores.kl",
        "if scores.kl is None else 0.5 * scores.kl",
        "training/test_ppo_solves.py::test_the_trainer_reaches_the_regularised_optimum",
    ),
    Mistake(
        "a GPU reads a place of the cache that is not written yet",
        "models/dalle/kernels.py",
        "is_there = start + places < length",
        "is_there = start + places <= length",
        "models/dalle/test_kernels.py::test_replayed_steps_draw_the_tokens_of_a_cpu",
    ),
    Mistake(
        "a GPU writes its cache a place late",
        "models/dalle/kernels.py",
        "tl.store(values + sequence + length * WIDTH",
        "tl.store(values + sequence + (length + 1) % num_places * WIDTH",
        "models/dalle/test_kernels.py::test_replayed_steps_draw_the_tokens_of_a_cpu",
    ),
    Mistake(
        "noise does not depend on the sample",
        "rl/noise.py",
        NOISE_WORDS,
        "|{iteration}|{caption}|0",
        "models/dalle/test_sampling.py",
    ),
    Mistake(
        "no image that is above both thresholds is unsafe",
        "rewards/nsfw.py",
        "return torch.where(probability > options.unsafe_threshold, options.unsafe_penalty, score).float()",
        "return score.float()",
        "rewards/test_nsfw.py",
    ),
    Mistake(
        "k3 of the inverted ratio",
        "rl/kl.py",
        "return log_r.expm1() - log_r",
        "return (-log_r).expm1() + log_r",
        "rl/test_kl.py",
    ),
    Mistake(
        "importance weights upside down",
        "rl/losses.py",
        "return (old_log_probs - sampler_log_probs).exp().clamp(max=cap)",
        "return (sampler_log_probs - old_log_probs).exp().clamp(max=cap)",
        "rl/test_losses.py",
    ),
    Mistake(
        "kl.target acts on the whole of an error",
        "rl/adaptive_kl.py",
        "error = min(max(error, -ERROR_CLIP), ERROR_CLIP)",
        "error = max(error, -ERROR_CLIP)",
        "rl/test_kl.py",
    ),
    Mistake(
        "a group's deviation is that of a population",
        "rl/advantages.py",
        "return centred / ((squares / (count - 1)).sqrt() + eps)",
        "return centred / ((squares / count).sqrt() + eps)",
        "rl/test_advantages.py",
    ),
    Mistake(
        "a caption keeps its oldest scores",
        "rl/advantages.py",
        "score)[-self.buffer_size :]",
        "score)[: self.buffer_size]",
        "rl/test_advantages.py",
    ),
    Mistake(
        "running moments forget how far means lie apart",
        "rl/advantages.py",
        "batch_var * len(batch) + between) / count",
        "batch_var * len(batch)) / count",
        "rl/test_advantages.py",
    ),
    Mistake(
        "explained variance of the wrong spread",
        "rl/advantages.py",
        "return 1.0 - (returns - values).var(correction=0).item() / spread",
        "return 1.0 - (returns - values).var(correction=0).item() / values.var(correction=0).item()",
        "rl/test_advantages.py",
    ),
    Mistake(
        "approx_kl the wrong way round",
        "rl/losses.py",
        "return log_ratio.expm1() - log_ratio",
        "return (-log_ratio).expm1() + log_ratio",
        "rl/test_losses.py::test_approx_kl_is_unbiased_for_the_kl_of_the_old_policy_to_the_new",
    ),
    Mistake(
        "policy.detach_unconditional cuts the other branch",
        "models/dalle/sampling.py",
        "return base + settings.guidance * (decoder.head(hidden) - base)",
        "return decoder.head(unconditional) + settings.guidance * (decoder.head(hidden).detach() - base)",
        "models/dalle/test_sampling.py",
    ),
    Mistake(
        "ratios that are no numbers count as none",
        "training/update_log.py",
        "return b if a is None or math.isnan(b) else a if math.isnan(a) else max(a, b)",
        "return max(a or 0.0, b)",
        "training/test_update.py",
    ),
    Mistake(
        "the policy takes the step that is past target_kl",
        "training/update.py",
        "return target_kl is not None and approx_kl > target_kl",
        "return False",
        "training/test_update.py::test_target_kl_stops_an_iterations_updates",
    ),
    Mistake(
        "reward-weighted regression multiplies by the temperature",
        "rl/weights.py",
        "torch.softmax(scores / temperature, dim=0)",
        "torch.softmax(scores * temperature, dim=0)",
        "training/test_weighted_objectives.py::test_rwr_has_the_gradient_of_the_weighted_likelihood",
    ),
    Mistake(
        "a temperature for normalised scores meets raw ones",
        "training/weighing.py",
        "weigh(experience.scores / scale, experience.caption_index, config)",
        "weigh(experience.scores, experience.caption_index, config)",
        "training/test_weighted_objectives.py::test_rwr_ends_at_the_old_policy_times_the_weights",
    ),
    Mistake(
        "the percentile counts from the top",
        "rl/weights.py",
        "math.ceil(percentile * (len(scores) - 1)",
        "math.ceil((100 - percentile) * (len(scores) - 1)",
        "training/test_weighted_objectives.py::test_sparse_rwr_learns_from_the_best_decile_alone",
    ),
    Mistake(
        "best of n learns from the worst image too",
        "training/objectives/best_of_n.py",
        "(best_and_worst(scores, caption_index) > 0)",
        "(best_and_worst(scores, caption_index) != 0)",
        "training/test_weighted_objectives.py::test_best_of_n_ends_where_the_best_of_n_is_drawn",
    ),
    Mistake(
        "online DPO prefers the worst image",
        "rl/weights.py",
        "-logsigmoid(beta * margins)",
        "-logsigmoid(-beta * margins)",
        "training/test_weighted_objectives.py::test_online_dpo_has_the_gradient_of_the_pairs",
    ),
    Mistake(
        "online DPO takes the mean log-ratio of an image",
        "training/objectives/online_dpo.py",
        "(scores.log_probs - rows.ref_log_probs).sum(dim=1)",
        "(scores.log_probs - rows.ref_log_probs).mean(dim=1)",
        "training/test_weighted_objectives.py::test_online_dpo_stands_still_at_the_reference_times_exp_reward_over_beta",
    ),
    Mistake(
        "online DPO forgets the reference",
        "training/objectives/online_dpo.py",
        "(scores.log_probs - rows.ref_log_probs).sum(dim=1)",
        "(scores.log_probs - rows.old_log_probs).sum(dim=1)",
        "training/test_weighted_objectives.py::test_online_dpo_stands_still_at_the_reference_times_exp_reward_over_beta",
    ),
    Mistake(
        "minibatches of online DPO split pairs",
        "training/objectives/online_dpo.py",
        "compares_images=True",
        "compares_images=False",
        "training/test_weighted_objectives.py::test_microbatches_do_not_change_online_dpo",
    ),
    Mistake(
        "supervised fine-tuning has a KL of the drawn tokens, whose gradient is zero on average",
        "training/objectives/dpok_sft.py",
        "settings.gamma * scores.kl)",
        "settings.gamma * (scores.log_probs - rows.ref_log_probs))",
        "training/test_weighted_objectives.py::test_dpok_sft_form_output",
    ),
    Mistake(
        "supervised fine-tuning draws from the policy",
        "training/trainer.py",
        "drawer = self.networks.reference if self.draws_from_reference else self.actor.module",
        "drawer = self.actor.module",
        "training/test_weighted_objectives.py::test_who_draws_the_images_of_dpok_sft",
    ),
    Mistake(
        "the anchor sharpens by the temperature's inverse",
        "training/anchor.py",
        "sharpness = 1.0 - anchor.temperature",
        "sharpness = 1.0 - 1.0 / anchor.temperature",
        "training/test_anchor.py::test_at_a_temperature_it_pulls_to_the_reference_at_that_temperature",
    ),
    Mistake(
        "an evaluation takes pictures that begin alike for the same",
        "evaluation/drawing.py",
        'before["tokens"]).any(axis=1))',
        'before["tokens"])[:, :1].any(axis=1))',
        "evaluation/test_unchanged.py",
    ),
)


def copy_project(folder: Path) -> None:
    """Writes the project into `folder`."""
    for name in ("dalle_ppo", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("docs", "configs", "converters", "README.md", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)


def plant(mistake: Mistake, folder: Path) -> None:
    """Writes the project with the mistake into `folder`."""
    copy_project(folder)
    path = folder / "dalle_ppo" / mistake.file
    text = path.read_text(encoding="utf-8").replace(mistake.right, mistake.wrong)
    if "replace(settings" in mistake.wrong:
        text = text.replace("from dataclasses import ", "from dataclasses import replace, ", 1)
    path.write_text(text, encoding="utf-8")


def run_tests(folder: str, tests: Sequence[str]) -> subprocess.CompletedProcess:
    """Runs tests, named as in `Mistake`, of the project in `folder` until one fails."""
    names = [f"tests/{test}" for test in tests]
    call = [sys.executable, "-m", "pytest", "-xq", "-n0", "-p", "no:cacheprovider", *names]
    environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)


def check_unchanged(mistakes: Sequence[Mistake]) -> None:
    """Runs the tests of all mistakes without any.

    Raises:
        RuntimeError: one fails, so it proves nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        done = run_tests(folder, sorted({mistake.tests for mistake in mistakes}))
    if done.returncode != 0:
        raise RuntimeError(f"tests fail without a mistake; mend them first\n{done.stdout[-2000:]}")


def catching_test(mistake: Mistake) -> str | None:
    """The first test that fails with the mistake; None if all pass.

    Raises:
        RuntimeError: if pytest could not run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        plant(mistake, Path(folder))
        done = run_tests(folder, [mistake.tests])
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"{mistake.what}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
    return failed[0].removeprefix("FAILED tests/").split(" - ")[0].split("[")[0]


def table(seen_by: list[str | None]) -> str:
    """planted_mistakes.md: a row per mistake, with the test that saw it (`FILE::NAME`) or None."""
    rows = []
    for mistake, test in zip(PLANTED, seen_by, strict=True):
        file, _, name = (test or "").partition("::")
        rows.append(f"| {mistake.what} | {f'[`{name}`](../tests/{file})' if test else '**nothing**'} |")
    return "\n".join([HEADING, "| mistake | seen by |", "|---|---|", *rows, ""])


def main() -> int:
    """Plants all mistakes, one after the other; takes about 5 minutes."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    check_unchanged(PLANTED)
    seen_by = [catching_test(mistake) for mistake in tqdm(PLANTED, unit="mistake")]
    TABLE.write_text(table(seen_by), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
    return 0 if all(seen_by) else 1


if __name__ == "__main__":
    sys.exit(main())
