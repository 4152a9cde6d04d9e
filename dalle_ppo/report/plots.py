"""Small inline SVG charts for the report; CSS classes instead of colours make them match the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from dalle_ppo.runs.metric_table import Unit

WIDTH, HEIGHT = 360, 224
BARS = 48
Tick = Callable[[float], str]


def plain(value: float) -> str:
    """A tick label without superfluous digits."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def percent_tick(value: float) -> str:
    """A share as a tick label."""
    return f"{100 * value:.4g}%"


def tick_of(unit: Unit) -> Tick:
    """The function that writes values of a unit on an axis."""
    return percent_tick if unit.percent else plain


@dataclass(frozen=True)
class Axes:
    """A frame that maps data to the SVG's user units; y may be logarithmic (base 10)."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    x_label: str = ""
    x_tick: Tick = plain
    y_tick: Tick | None = plain
    log_y: bool = False
    height: int = HEIGHT
    left: int = 44
    right: int = 12
    top: int = 12
    bottom: int = 36

    def x(self, values) -> np.ndarray:
        """Horizontal position of data values."""
        return self.left + _share(values, self.x_low, self.x_high) * (WIDTH - self.left - self.right)

    def y(self, values) -> np.ndarray:
        """Vertical position of data values."""
        if self.log_y:
            values = np.log10(np.maximum(np.asarray(values, dtype=float), 10.0**self.y_low))
        return (
            self.height
            - self.bottom
            - _share(values, self.y_low, self.y_high) * (self.height - self.top - self.bottom)
        )

    def frame(self) -> str:
        """Grid lines, tick labels and the name of the x axis."""
        parts = []
        for value in nice_ticks(self.y_low, self.y_high, 4, whole=self.log_y) if self.y_tick else ():
            data = 10.0**value if self.log_y else value
            at = float(self.y(data))
            parts.append(f'<path class="grid" d="M{self.left} {at:.1f}H{WIDTH - self.right}"/>')
            parts.append(
                f'<text x="{self.left - 7}" y="{at + 3.5:.1f}" text-anchor="end">{self.y_tick(data)}</text>'
            )
        base = self.height - self.bottom
        for value in nice_ticks(self.x_low, self.x_high, 5):
            at = float(self.x(value))
            parts.append(
                f'<text x="{at:.1f}" y="{base + 15}" text-anchor="middle">{self.x_tick(value)}</text>'
            )
        parts.append(f'<path class="base" d="M{self.left} {base}H{WIDTH - self.right}"/>')
        middle = (self.left + WIDTH - self.right) / 2
        place = f'x="{middle}" y="{self.height - 4}" text-anchor="middle"'
        parts.append(f'<text class="label" {place}>{escape(self.x_label)}</text>')
        return "".join(parts)

    def svg(self, title: str, *parts: str) -> Markup:
        """The whole chart; screen readers read out `title`."""
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
            f"{self.frame()}{''.join(parts)}</svg>"
        )


def curve(x: Sequence, y: Sequence, title: str, tick: Tick = plain, from_zero: bool = False) -> Markup | None:
    """A training curve: faint raw values and a strong running mean; None without two known values."""
    x, y = thin(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    known = y[np.isfinite(y)]
    if len(known) < 2:
        return None
    axes = Axes(x.min(), x.max(), *value_range(known, tick, from_zero), x_label="iteration", y_tick=tick)
    smooth = running_mean(y)
    return axes.svg(
        title,
        f'<path class="line raw policy" d="{polyline(axes.x(x), axes.y(y))}"/>',
        f'<path class="line policy" d="{polyline(axes.x(x), axes.y(smooth))}"/>',
    )


def checkpoint_lines(
    iterations: Sequence[int], lines: Sequence[tuple], title: str, tick: Tick = plain
) -> Markup | None:
    """Measures over checkpoints: connected dots with 95 % bars.

    Args:
        iterations: the checkpoints' iterations [P].
        lines: one (CSS class, values [P], bounds [P]) per line; values and bounds may be None.
        title: title text.
        tick: labels the ticks of the y axis.

    Returns:
        The SVG, or None if no line has two known values.
    """
    known = [[v for v in values if v is not None] for _, values, _ in lines]
    if not any(len(values) > 1 for values in known):
        return None
    ends = [end for _, _, bounds in lines for pair in bounds if pair for end in pair]
    low, high = value_range(np.array(ends + [value for values in known for value in values]), tick)
    axes = Axes(*padded_range(np.array(iterations), True), low, high, x_label="iteration", y_tick=tick)
    x, parts = axes.x(iterations), []
    for style, values, bounds in lines:
        y = axes.y([np.nan if value is None else value for value in values])
        parts.append(f'<path class="line {style}" d="{polyline(x, y)}"/>')
        for at, height, pair in zip(x, y, bounds, strict=True):
            if not math.isfinite(height):
                continue
            if pair:
                bottom, top = (float(v) for v in axes.y(pair))
                parts.append(f'<path class="bar {style}" d="M{at:.1f} {bottom:.1f}V{top:.1f}"/>')
            parts.append(f'<circle class="dot {style}" cx="{at:.1f}" cy="{height:.1f}" r="3.6"/>')
    return axes.svg(title, *parts)


def trajectory(x: Sequence, y: Sequence, title: str, x_label: str) -> Markup | None:
    """A path through two metrics over training, with a ring at the start and a dot at the end."""
    place = np.arange(len(x))
    x, y = (running_mean(thin(place, np.asarray(values, dtype=float))[1]) for values in (x, y))
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2:
        return None
    x, y = x[known], y[known]
    axes = Axes(*padded_range(x, from_zero=True), *padded_range(y), x_label=x_label)
    points = list(zip(axes.x(x), axes.y(y), strict=True))
    (x_start, y_start), (x_end, y_end) = points[0], points[-1]
    return axes.svg(
        title,
        f'<path class="line policy" d="{polyline(axes.x(x), axes.y(y))}"/>',
        f'<circle class="ring" cx="{x_start:.1f}" cy="{y_start:.1f}" r="4"/>',
        f'<circle class="dot policy" cx="{x_end:.1f}" cy="{y_end:.1f}" r="4.5"/>',
    )


def histogram(
    reference: np.ndarray,
    policy: np.ndarray,
    title: str,
    x_label: str,
    edges: np.ndarray | None = None,
    marks: Sequence[tuple[float, str, str]] = (),
    log_y: bool = False,
) -> Markup | None:
    """Two step histograms, each as shares of its side's images.

    Args:
        reference, policy: float [N]; NaN is left out.
        title, x_label: title and axis text.
        edges: edges of the bars, ascending; 48 equal bars over the data by default.
        marks: (value, label, CSS class) of vertical lines.
        log_y: whether the share axis is logarithmic.

    Returns:
        The SVG, or None if a side is empty.
    """
    sides = [
        values[np.isfinite(values)] for values in (np.asarray(reference, float), np.asarray(policy, float))
    ]
    if not all(len(side) for side in sides):
        return None
    if edges is None:
        edges = np.linspace(*padded_range(np.concatenate(sides)), BARS + 1)
    low, high = edges[0], edges[-1]
    shares = [np.histogram(side, edges)[0] / len(side) for side in sides]
    top = max(share.max() for share in shares)
    if log_y:
        floor = math.floor(math.log10(1 / max(len(side) for side in sides)))
        axes = Axes(low, high, floor, 0, x_label=x_label, y_tick=percent_tick, log_y=True)
    else:
        axes = Axes(low, high, 0, min(1.0, top * 1.06), x_label=x_label, y_tick=percent_tick)
    parts = []
    for style, share in zip(("reference", "policy"), shares, strict=True):
        path = _steps(axes, edges, share)
        parts.append(f'<path class="area {style}" d="{path}Z"/><path class="line {style}" d="{path}"/>')
    for value, label, style in marks:
        at = float(axes.x(value))
        parts.append(f'<path class="mark {style}" d="M{at:.1f} {axes.top}V{axes.height - axes.bottom}"/>')
        parts.append(
            f'<text class="mark-label {style}" x="{at + 4:.1f}" y="{axes.top + 9}">{escape(label)}</text>'
        )
    return axes.svg(title, *parts)


def paired_scatter(
    reference: np.ndarray,
    policy: np.ndarray,
    groups: np.ndarray,
    title: str,
    x_label: str,
    limit: int = 3000,
) -> Markup | None:
    """One dot per pair, before on x, after on y, with the diagonal; dots above it improved.

    Equal rewards (the penalties) would cover each other, so dots are jittered by up to 2 % of the range.
    """
    known = np.flatnonzero(np.isfinite(reference) & np.isfinite(policy))
    if not len(known):
        return None
    rng = np.random.default_rng(0)
    known = np.sort(rng.permutation(known)[:limit])
    low, high = padded_range(np.concatenate([reference[known], policy[known]]))
    axes = Axes(low, high, low, high, x_label=x_label)
    jitter = rng.uniform(-0.02, 0.02, (2, len(known))) * (high - low)
    x, y = axes.x(reference[known] + jitter[0]), axes.y(policy[known] + jitter[1])
    corners = (axes.x(low), axes.y(low), axes.x(high), axes.y(high))
    parts = ['<path class="mark" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'.format(*map(float, corners))]
    for group in np.unique(groups[known]):
        chosen = groups[known] == group
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[chosen], y[chosen], strict=True))
        parts.append(f'<path class="dots tag-{escape(group)}" d="{dots}"/>')
    return axes.svg(title, *parts)


def dumbbells(entries: Sequence[dict], title: str, x_label: str) -> Markup | None:
    """A rate before and after, one row per group, with 95 % bars.

    Args:
        entries: `label`, `reference`, `policy` (shares) and `reference_interval`, `policy_interval`, or None.
        title, x_label: title and axis text.
    """
    entries = [entry for entry in entries if entry["reference"] is not None and entry["policy"] is not None]
    if not entries:
        return None
    ends = [
        end for e in entries for pair in (e["reference_interval"], e["policy_interval"]) for end in pair or ()
    ]
    high = max(ends + [max(e["reference"], e["policy"]) for e in entries] + [0.02])
    height = 60 + 34 * len(entries)
    axes = Axes(
        0,
        min(1.0, high * 1.05),
        0,
        1,
        x_label,
        x_tick=percent_tick,
        y_tick=None,
        height=height,
        left=82,
    )
    parts = []
    for n, entry in enumerate(entries):
        at = axes.top + 18 + 34 * n
        ends = [float(axes.x(entry[side])) for side in ("reference", "policy")]
        place = f'x="{axes.left - 10}" y="{at + 4}" text-anchor="end"'
        parts.append(f'<text class="strong" {place}>{escape(entry["label"])}</text>')
        parts.append(f'<path class="bell" d="M{ends[0]:.1f} {at}H{ends[1]:.1f}"/>')
        for side, end in zip(("reference", "policy"), ends, strict=True):
            if entry[f"{side}_interval"]:
                low, high = (float(v) for v in axes.x(entry[f"{side}_interval"]))
                parts.append(f'<path class="bar {side}" d="M{low:.1f} {at}H{high:.1f}"/>')
            parts.append(f'<circle class="dot {side}" cx="{end:.1f}" cy="{at}" r="4.5"/>')
    return axes.svg(title, *parts)


def nice_ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers in [low, high], 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= about * 1.5)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def padded_range(values: np.ndarray, from_zero: bool = False) -> tuple[float, float]:
    """A range that shows all values with some margin, and is never empty."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    low = min(0.0, low) if from_zero else low
    air = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-3)
    return low if from_zero and low == 0 else low - air, high + air


def value_range(values: np.ndarray, tick: Tick, from_zero: bool = False) -> tuple[float, float]:
    """`padded_range`, but for shares limited to 0..100 %."""
    low, high = padded_range(values, from_zero)
    return (max(0.0, low), min(1.0, high)) if tick is percent_tick else (low, high)


def thin(x: np.ndarray, y: np.ndarray, limit: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Reduces long curves to at most `limit` points, each the mean of an equal stretch."""
    if len(x) <= limit:
        return x, y
    stretches = np.array_split(np.arange(len(x)), limit)
    means = [
        float(np.mean(y[s][np.isfinite(y[s])])) if np.isfinite(y[s]).any() else np.nan for s in stretches
    ]
    return np.array([x[s].mean() for s in stretches]), np.array(means)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twelfth of the curve (at least one value); NaN neighbours are left out."""
    half = len(values) // 24
    known = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0), kernel, mode="full")[half : half + len(values)]
    count = np.convolve(known, kernel, mode="full")[half : half + len(values)]
    return np.where(known & (count > 0), total / np.maximum(count, 1), np.nan)


def polyline(x: np.ndarray, y: np.ndarray) -> str:
    """Path data through the points; a NaN lifts the pen."""
    pieces, down = [], False
    for a, b in zip(x, y, strict=True):
        known = math.isfinite(a) and math.isfinite(b)
        if known:
            pieces.append(f"{'L' if down else 'M'}{a:.1f} {b:.1f}")
        down = known
    return "".join(pieces)


def _steps(axes: Axes, edges: np.ndarray, shares: np.ndarray) -> str:
    base = axes.height - axes.bottom
    x, y = axes.x(edges), np.where(shares > 0, axes.y(np.maximum(shares, 1e-12)), base)
    rises = "".join(f"V{height:.1f}H{right:.1f}" for height, right in zip(y, x[1:], strict=True))
    return f"M{x[0]:.1f} {base}{rises}V{base}"


def _share(values, low: float, high: float) -> np.ndarray:
    return (np.asarray(values, dtype=float) - low) / ((high - low) or 1.0)
