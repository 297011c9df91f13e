"""The learning curve: accept length by seconds of training, live and as judged offline, and what RL steps did to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIVE, OFFLINE, POLICY = "#009E73", "#999999", "#CC79A7"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One look at the drafter."""

    seconds: float  # of training until then, on all cores
    tokens: int  # recorded until then
    accept_length: float  # live, at temperature 0.7 ...
    error: float = 0.0  # ... and its standard error
    offline: float | None = None  # as the trainer judged it
    is_other_policy: bool = False  # RL steps were taken since the point before


def draw(points: Sequence[Point], path: Path, *, draft_length: int) -> Path:
    """Writes the picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 4.6), layout="constrained")
    seconds = [point.seconds for point in points]
    live, errors = [point.accept_length for point in points], [point.error for point in points]
    axis.errorbar(seconds, live, yerr=errors, color=LIVE, marker="o", capsize=3, label="live, in vLLM")
    judged = [(point.seconds, point.offline) for point in points if point.offline is not None]
    axis.plot(*zip(*judged, strict=True), color=OFFLINE, marker=".", linestyle=":", label="held-out, by the trainer")
    for point in points:
        text = f"{point.accept_length:.2f}\n{point.tokens // 1000}k tokens"
        shift, side = _beside(point, is_last=point is points[-1])
        axis.annotate(text, (point.seconds, point.accept_length), textcoords="offset points", fontsize=8,
                      xytext=shift, ha=side)  # fmt: skip
        if point.is_other_policy:
            axis.axvline(point.seconds, color=POLICY, linewidth=0.9, linestyle=(0, (4, 3)))
            axis.text(point.seconds, 0.97, "RL steps ", color=POLICY, fontsize=8, va="top", ha="right",
                      transform=axis.get_xaxis_transform())  # fmt: skip
    axis.set_ylim(1.0, 1 + 1.25 * max(point.accept_length - 1 for point in points))
    axis.margins(x=0.06)
    axis.set_xlabel("seconds of training")
    axis.set_ylabel(f"accept length, {draft_length} drafted tokens")
    axis.legend(frameon=False, loc="lower center")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _beside(point: Point, *, is_last: bool) -> tuple[tuple[int, int], str]:
    """Where the text of a point stands, in points of print, and to which side it is aligned, clear of all lines."""
    if point.seconds == 0:
        return (8, 4), "left"  # of the axis
    if point.is_other_policy:
        return (-8, 14), "right"  # of the line that marks the RL steps, above what was judged
    return ((0, 9), "center") if is_last else ((0, -26), "center")
