"""The progress bar of training, which says how long the whole command still takes."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from dalle_ppo.base.lasting import Lasting
from dalle_ppo.config.settings import Config
from dalle_ppo.training.forecast import Rates, forecast, rates_of, rough_rates, work_left
from dalle_ppo.training.iteration_metrics import progress_line

FORMAT = "{{desc}} {{n_fmt}}/{{total_fmt}} {{bar}} {left}{{postfix}}"
REMEMBERED = 100
"""Iterations that the forecast looks at; a run of millions must not look at all of them after each."""


class ProgressBar:
    """Shows iterations, seconds left and the numbers of the last iteration; use as a context manager.

    Args:
        config: the run's settings.
        earlier: metrics of the iterations done before a resume. They count until one has been done here,
            which may be another machine.
        samples: images drawn at each checkpoint.
        networks: networks that score an image in training.
        shown: whether there is a bar at all; of several processes, one shows it.
        done: iterations done before; by default as many as `earlier` holds, which may be the newest alone.
    """

    def __init__(
        self,
        config: Config,
        earlier: list[dict],
        samples: int,
        networks: int,
        shown: bool = True,
        done: int | None = None,
    ) -> None:
        self.iteration = len(earlier) if done is None else done
        self.config, self.samples, self.networks = config, samples, networks
        self.earlier, self.here = rates_of(earlier), []
        self.checkpoints: list[float] = []
        self.guess: Rates | None = None
        form = {"bar_format": FORMAT.format(left=self._left()), "dynamic_ncols": True, "disable": not shown}
        form["file"] = Lasting(sys.stderr)
        name = config.objective.upper().replace("_", " ")
        self.bar = tqdm(total=config.num_iterations, initial=self.iteration, desc=name, **form)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc_info) -> None:
        self.bar.close()

    def after_phase(self, seconds: Mapping[str, float], images: int) -> None:
        """Takes the phases that images have gone through, for a guess until an iteration is done."""
        if not self.here and self.earlier is None:
            self.guess = rough_rates(seconds, images, self.config.update.epochs) or self.guess
            self._show()

    @contextmanager
    def writing_checkpoint(self) -> Iterator[None]:
        """Measures a checkpoint."""
        started = time.perf_counter()
        yield
        self.checkpoints.append(time.perf_counter() - started)
        del self.checkpoints[:-REMEMBERED]
        self._show()

    def finished(self, metrics: Mapping) -> None:
        """Counts an iteration and shows its numbers."""
        self.here.append(metrics)
        if len(self.here) > REMEMBERED:
            del self.here[1]  # not the first, which `rates_of` leaves out
        self.iteration += 1
        self.bar.set_postfix_str(progress_line(metrics), refresh=False)
        self.bar.n = self.iteration
        self._show(saved=False)

    def _show(self, saved: bool = True) -> None:
        self.bar.bar_format = FORMAT.format(left=self._left(saved))
        self.bar.refresh()

    def _left(self, saved: bool = True) -> str:
        known = rates_of(self.here, self.checkpoints) or self.earlier
        rates = known or self.guess
        if rates is None:
            return "measuring"
        work = work_left(self.config, self.iteration, self.samples, self.networks, saved)
        return str(forecast(rates, work, rough=known is None))
