"""A plan as a person reads it: what was measured, what was chosen, and why."""

from segpipe.core.text import Table
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.planning.schema import Configuration, Plan


def plan_parts(measured: Fingerprint, plan: Plan, *, explain: bool = False) -> list[str | Table]:
    """Return tables and lines; with ``explain`` how each rule came to it, step by step."""
    parts: list[str | Table] = [
        Table(f"{plan.dataset_name}: what was measured", ["", ""], _measured(measured)),
        Table(f"What was chosen (recipe {plan.recipe})", _COLUMNS, [_chosen(c) for c in plan.configurations.values()]),
    ]
    if not explain:
        rows = [[d.rule, d.chosen, d.because] for d in plan.decisions]
        return [*parts, Table("Why", ["rule", "chosen", "because"], rows)]
    for decision in plan.decisions:
        parts += [f"{decision.rule}: {decision.chosen}", f"  because {decision.because}"]
        parts += [f"  - {step}" for step in decision.steps]
    return [*parts, ""]


_COLUMNS = [
    "configuration",
    "spacing (mm)",
    "median image",
    "patch",
    "batch",
    "stages",
    "features",
    "network",
    "memory (GB)",
]


def _chosen(c: Configuration) -> list[str]:
    features = f"{c.network.features[0]}-{c.network.features[-1]}" if c.network.features else ""
    name = c.name if c.previous_stage is None else f"{c.name} (after {c.previous_stage})"
    return [
        name,
        " x ".join(f"{s:.3g}" for s in c.spacing_mm),
        "x".join(f"{m:g}" for m in c.median_shape),
        "x".join(map(str, c.patch_size)),
        str(c.batch_size),
        str(len(c.network.strides)),
        features,
        c.network.architecture,
        f"{c.estimated_memory_gb:.2f}",
    ]


def _measured(measured: Fingerprint) -> list[list[str]]:
    def span(values: list[tuple[float, ...]]) -> str:
        return ", ".join(
            f"{min(v):.4g} to {max(v):.4g}" if min(v) != max(v) else f"{v[0]:.4g}" for v in zip(*values, strict=True)
        )

    rows = [
        ["cases", f"{len(measured.cases)} usable, {len(measured.left_out)} left out"],
        ["shape (z, y, x)", span([c.shape for c in measured.cases])],
        ["spacing (mm)", span([c.spacing_mm for c in measured.cases])],
        [
            "left after cropping to non-zero",
            f"{measured.median_relative_size_after_cropping:.0%} of the voxels (median)",
        ],
    ]
    for name, s in zip(measured.channel_names, measured.intensities, strict=False):
        rows.append(
            [
                f"foreground intensity, {name}",
                f"mean {s.mean:.4g}, sd {s.std:.4g}, 0.5 to 99.5 percentile {s.percentile_00_5:.4g} to {s.percentile_99_5:.4g}",
            ]
        )
    kind = "region" if measured.labels.regions else "label"
    for target in measured.labels.targets:
        sizes = [sum(c.label_voxels.get(v, 0) for v in target.values) for c in measured.cases]
        holding = [n for n in sizes if n]
        size = f", {min(holding)} to {max(holding)} voxels" if holding else ""
        rows.append(
            [f"{kind} {target.name} = {' + '.join(map(str, target.values))}", f"in {len(holding)} case(s){size}"]
        )
    return rows
