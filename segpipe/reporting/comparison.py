"""A comparison in words and as a picture: rows for a terminal, a page, accuracy against latency."""

from pathlib import Path

from matplotlib.figure import Figure

from segpipe.core.text import shown
from segpipe.evaluation.comparison import ALL_LABELS, Comparison, Difference, Latency
from segpipe.reporting.drawn import save

_WORTH_A_LOGARITHM = 4.0


def cost_rows(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what each model takes and keeps."""
    columns = ["model", "weights", "GMAC a case", "file MB"]
    columns += [f"s a case, {latency.device}" for latency in found.models[0].latency]
    columns += ["peak GB", "Dice", f"NSD {found.tolerance_mm:g} mm", "HD95 mm", "missed"]
    columns += ["Dice kept", "NSD kept", "lowest label"]
    kept = {r.model: r for r in found.retention}
    rows = []
    for model in found.models:
        scores = found.scores[model.name]
        means = scores.by_label[ALL_LABELS]
        own = kept.get(model.name)
        rows.append(
            [
                model.name,
                f"{model.parameters:,}" + ("" if own is None else f" ({own.parameters_percent:.2f} %)"),
                f"{model.macs_per_case / 1e9:.3g}"
                + ("" if own is None or own.macs_percent is None else f" ({own.macs_percent:.3g} %)"),
                f"{model.file_mb:.2f}",
                *(f"{latency.seconds_per_case:.3g}" for latency in model.latency),
                " + ".join(shown(gb, 2) for gb in _peaks(model.latency)),
                shown(means["dice"], 4),
                shown(means["nsd"], 4),
                shown(means["hd95_mm"], 2),
                str(scores.n_missed),
                "" if own is None else f"{shown(own.dice_percent, 1)} %{_interval(own.low, own.high, 1)}",
                "" if own is None else f"{shown(own.nsd_percent, 1)} %",
                "" if own is None else f"{own.lowest_label} {shown(own.lowest_label_percent, 1)} %",
            ]
        )
    return columns, rows


def _peaks(latency: tuple[Latency, ...]) -> list[float | None]:
    """Peak memory of the host, and where there is a GPU of that."""
    return [latency[0].peak_memory_gb, *(found.peak_device_gb for found in latency[1:])]


def difference_rows(found: Comparison, *, labels: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: paired differences over all labels, and where asked for of each label."""
    columns = ["second minus first", "label", "metric", "patients", "mean", "95 % interval", "p"]
    shown = [d for d in found.differences if labels or d.label == ALL_LABELS]
    return columns, [_row(d) for d in shown]


def markdown(found: Comparison) -> str:
    """The comparison as a page of Markdown."""
    first = found.models[0].name
    text = [
        f"# {found.dataset}: {len(found.models)} models on {len(found.cases)} cases",
        "",
        f"{'With' if found.tta else 'Without'} mirrored images; {found.threads} thread(s); engine: "
        f"{'; '.join(sorted({latency.engine for m in found.models for latency in m.latency}))}. Peak memory is that of the whole process. "
        f"Percentages are of {first}.",
        "",
        *_markdown_table(*cost_rows(found)),
        "",
        "![accuracy against latency](comparison.png)",
        "",
        "## Paired differences",
        "",
        "Mean over patients, with the 95 % interval of a bootstrap over patients (10,000 draws), and the two-sided p of Wilcoxon's signed "
        "rank test, not corrected for the number of tests.",
        "",
        *_markdown_table(*difference_rows(found, labels=True)),
        "",
    ]
    lost = {f"{name}: {case}": why for name, s in found.scores.items() for case, why in s.failed.items()}
    if lost:
        text += ["## Cases without a score", "", *(f"- {case}: {why}" for case, why in lost.items()), ""]
    return "\n".join(text)


def _row(d: Difference) -> list[str]:
    digits = 2 if d.metric == "hd95_mm" else 4
    mean = "-" if d.mean is None else f"{d.mean:+.{digits}f}"
    interval = "-" if d.low is None or d.high is None else f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
    p = "-" if d.p is None else f"{d.p:.2g}"
    return [f"{d.second} - {d.first}", d.label, d.metric, str(d.n_patients), mean, interval, p]


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"


def _markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines]


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
    save(figure, path, dpi=120)
