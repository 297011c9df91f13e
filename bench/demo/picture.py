"""The timeline: pods as rows, what they did as colours, the learner's phases above them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.demo.recording import Recording
from bench.demo.summary import Interval, StepRow, intervals, rows

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "generates": "#0072B2",
    "waits": "#E3E3E3",
    "trains the drafter": "#009E73",
    "hands back": "#E69F00",
    "not ready": "#FFFFFF",
    "new drafter": "#D55E00",
    "learner: waits for answers": "#CFDDEA",
    "learner: trains the policy": "#CC79A7",
    "learner: syncs the policy": "#4D2A3C",
}
STATES = {
    "Busy": "generates",
    "Draining": "generates",
    "Idle": "waits",
    "Lent": "trains the drafter",
    "Revoking": "hands back",
}
PHASES = {
    "generate": "learner: waits for answers",
    "write-policy": "learner: syncs the policy",
    "load-policy": "learner: syncs the policy",
}
BAR = 0.72


def learner_intervals(recording: Recording) -> list[Interval]:
    """The learner's phases; what is neither generation nor sync is training."""
    found: list[Interval] = []
    for line in recording.steps:
        at = float(line["began"])
        for span in sorted(line["spans"], key=lambda item: float(item["begin"])):
            if span["begin"] > at:
                found.append(Interval("learner: trains the policy", at, float(span["begin"])))
            found.append(Interval(PHASES[span["activity"]], float(span["begin"]), float(span["end"])))
            at = max(at, float(span["end"]))
        found.append(Interval("learner: trains the policy", at, float(line["ended"])))
    return found


def draw(demo: Recording, baseline: Recording | None, path: Path) -> Path:
    """Writes the picture as PNG; both runs share one scale, so that lengths compare."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    runs = [("with TLT: idle accelerators train the drafter", demo)]
    if baseline is not None and baseline.steps:
        runs.append(("baseline: no speculation, idle accelerators wait", baseline))
    span = max(float(run.steps[-1]["ended"]) - float(run.steps[0]["began"]) for _, run in runs)
    heights = [len(demo.pods) + 1, 1.6, *(len(run.pods) + 1 for _, run in runs[1:])]
    size = (14, 0.62 * sum(heights) + 1.9)
    figure, axes = pyplot.subplots(
        len(heights), 1, figsize=size, height_ratios=heights, sharex=True, layout="constrained"
    )
    for axis, (title, run) in zip([axes[0], *axes[2:]], runs, strict=True):
        _draw_run(axis, run, title=title)
    _draw_accept_lengths(axes[1], demo, rows(demo))
    axes[-1].set_xlim(0, span)
    axes[-1].set_xlabel("seconds since the first RL step began")
    handles = [
        Line2D([], [], marker="v", linestyle="", color=colour, label=name) if name == "new drafter"
        else Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=name)
        for name, colour in COLOURS.items()
        if name != "not ready"
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _draw_run(ax: Any, run: Recording, *, title: str) -> None:
    start = float(run.steps[0]["began"])
    labels = ["learner", *run.pods]
    for position, bars in enumerate([learner_intervals(run), *(intervals(run, pod) for pod in run.pods)]):
        for bar in bars:
            name = STATES.get(bar.state, bar.state if position == 0 else "not ready")
            ax.barh(
                position, bar.end - bar.begin, left=bar.begin - start, height=BAR, color=COLOURS[name], edgecolor="none"
            )
    for event in run.events:
        if event["kind"] == "swap" and event["pod"] in run.pods:
            ax.plot(
                float(event["at"]) - start, labels.index(event["pod"]) - BAR / 2, marker="v", markersize=6,
                color=COLOURS["new drafter"], clip_on=False,
            )  # fmt: skip
    for line in run.steps:
        ax.axvline(float(line["began"]) - start, color="#777777", linewidth=0.7, linestyle=(0, (2, 3)))
        ax.text(float(line["began"]) - start, -0.62, f" step {line['step']}", fontsize=8, color="#555555", va="bottom")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.95)
    ax.set_title(title, loc="left", fontsize=11, pad=10)
    ax.tick_params(left=False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _draw_accept_lengths(ax: Any, run: Recording, steps: list[StepRow]) -> None:
    start = float(run.steps[0]["began"])
    known = [(line, row) for line, row in zip(run.steps, steps, strict=True) if row.accept_length is not None]
    middles = [(float(line["began"]) + float(line["ended"])) / 2 - start for line, _ in known]
    values = [row.accept_length for _, row in known]
    ax.plot(middles, values, marker="o", color=COLOURS["new drafter"], linewidth=1.5)
    for x, y in zip(middles, values, strict=True):
        ax.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    ax.axhline(1.0, color="#999999", linewidth=0.7)
    ax.set_ylabel("accept\nlength", rotation=0, ha="right", va="center")
    ax.margins(y=0.35)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
