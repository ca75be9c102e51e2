"""Accuracy against latency, drawn."""

from pathlib import Path

from matplotlib.figure import Figure

from segpipe.comparison.schema import ALL_LABELS, Comparison

_WORTH_A_LOGARITHM = 4.0


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw each model's mean Dice over the seconds that a case takes, a panel a device; the area of a mark is the number of weights."""
    devices = [latency.device for latency in found.models[0].latency]
    figure = Figure(figsize=(6.4 * len(devices), 4.4), layout="constrained")
    axes = figure.subplots(1, len(devices), squeeze=False, sharey=True)
    most = max(model.parameters for model in found.models)
    for number, (panel, device) in enumerate(zip(axes[0], devices, strict=True)):
        for model in found.models:
            dice = found.scores[model.name].by_label[ALL_LABELS]["dice"]
            if dice is None:
                continue
            seconds = model.latency[number].seconds_per_case
            mark = panel.scatter(seconds, dice, s=40 + 600 * model.parameters / most, alpha=0.6)
            panel.annotate(
                f"{model.name}\n{model.parameters / 1e6:.3g} M weights",
                (seconds, dice),
                textcoords="offset points",
                xytext=(0, 16),
                ha="center",
                fontsize=8,
                color=mark.get_facecolor()[0][:3],
            )
        times = [model.latency[number].seconds_per_case for model in found.models]
        if max(times) > _WORTH_A_LOGARITHM * min(times):
            panel.set_xscale("log")
        panel.set_xlabel(f"seconds a case, {device}")
        panel.margins(0.3, 0.35)
        panel.grid(visible=True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("mean Dice")
    figure.suptitle(f"{found.dataset}: {len(found.cases)} cases", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
