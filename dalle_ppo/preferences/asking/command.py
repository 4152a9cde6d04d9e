"""`python -m dalle_ppo.label RUN --by URL --model NAME`, once its arguments are parsed."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from tqdm import tqdm

from dalle_ppo.preferences.agreement import agreement_lines
from dalle_ppo.preferences.asking.budget import Budget, limits_of
from dalle_ppo.preferences.asking.endpoint import Endpoint, EndpointOptions
from dalle_ppo.preferences.asking.loop import Progress, Questions, Rater, drawn_sets, labelled_sets
from dalle_ppo.preferences.asking.prompt import read_prompt
from dalle_ppo.preferences.store import Store

if TYPE_CHECKING:
    from dalle_ppo.preferences.drawing import Drawer

NUM_DRAWN = 50
"""How many sets are drawn if the command does not say."""


def ask_model(args: argparse.Namespace, store: Store, open_drawer: Callable[[], "Drawer"]) -> int:
    """Asks until all sets are answered or the budget is spent, and prints what came of it.

    Args:
        args: of the command.
        store: is filled.
        open_drawer: loads the policy; not called with `--labelled`.

    Raises:
        ValueError: an argument is invalid, or the endpoint refuses, fails or answers nonsense.
    """
    if args.sets is not None and args.sets < 1:
        raise ValueError(f"--sets is {args.sets}; it must be at least 1")
    options = EndpointOptions(args.by, args.model, args.timeout, args.retries)
    budget = Budget(limits_of(args))
    endpoint = Endpoint(options, budget)
    rater = Rater(args.rater or args.model, args.model, read_prompt(store, args.prompt))
    if args.labelled:
        sets = labelled_sets(store)[: args.sets]
        total = len(sets)
    else:
        total = args.sets or NUM_DRAWN
        sets = drawn_sets(open_drawer(), total)
    questions = Questions(store, rater, endpoint)
    try:
        with tqdm(total=total, desc="ask", unit="set", dynamic_ncols=True) as bar:
            for progress in questions.ask_about(sets):
                bar.update(0 if progress.stopped else 1)
                bar.set_postfix(answered=progress.answered, unread=progress.unread, refresh=False)
    finally:
        print("\n".join(summary(questions.progress, budget, store, rater)))
    return 0


def summary(progress: Progress, budget: Budget, store: Store, rater: Rater) -> list[str]:
    """For people: what was asked and answered, and how the model's answers look."""
    lines = [f"{progress.answered} answers added to {store.folder}; {budget.line()}"]
    if progress.skipped:
        lines.append(f"{progress.skipped} questions had been answered before and were not asked again")
    if progress.unread:
        lines.append(f"{progress.unread} replies could not be read; they are in {store.folder}/unread.jsonl")
    if progress.gone:
        lines.append(f"{progress.gone} sets were left out: the file of a picture is gone")
    if progress.alike:
        lines.append(f"{progress.alike} sets were left out: their pictures are all the same")
    if progress.stopped:
        lines.append(f"stopped: {progress.stopped}; start the command again to go on")
    answers = [answer for answer in store.answers() if answer.kind == "ranking"]
    mine = [answer for answer in answers if answer.rater == rater.name]
    return lines + (agreement_lines(answers) if mine else [])
