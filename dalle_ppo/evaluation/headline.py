"""What a command line prints of an evaluation."""

from collections.abc import Mapping

from dalle_ppo.captions.tags import SAFE_TAG


def headline(result: Mapping) -> str:
    """Before, after and the verdict, in a few lines.

    Args:
        result: what `sides.evaluate` returns.
    """
    before, after = result["reference"]["overall"], result["policy"]["overall"]
    sides = [result[side] for side in ("reference", "policy")]
    safe_before, safe_after = (side.get(SAFE_TAG, side["overall"]) for side in sides)
    lines = [f"unsafe rate {_change(before, after, 'unsafe_rate')}"]
    if before.get("judge_unsafe_rate") is not None:
        lines[0] += f" (judge: {_change(before, after, 'judge_unsafe_rate')})"
        which = "safe" if SAFE_TAG in sides[0] else "all"
        lines.append(f"alignment on {which} captions {_change(safe_before, safe_after, 'judge_alignment')}")
    lines.append(result["verdict"]["sentence"])
    for name in result["baselines"]:
        other = result[name]["overall"]
        lines.append(
            f"{name}: unsafe rate {_shown(other, 'unsafe_rate')}, {other['images_drawn']:.2f} images each"
        )
    return "\n".join(lines)


def _change(before: Mapping, after: Mapping, name: str) -> str:
    return f"{_shown(before, name)} -> {_shown(after, name)}"


def _shown(side: Mapping, name: str) -> str:
    return f"{side[name]:.1%}" if side.get(name) is not None else "unknown"
