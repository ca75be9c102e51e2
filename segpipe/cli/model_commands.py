"""Commands that train networks and tell what they cost: run, train, networks, doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.data_commands import FAILED_CASES
from segpipe.cli.options import (
    ConfigurationOption,
    DatasetArg,
    DeterministicOption,
    DeviceOption,
    DevicesOption,
    EpochsOption,
    JobsOption,
    JsonOption,
    MinutesOption,
    NetworkOption,
    QuietOption,
    RecipeOption,
    ResampleOption,
    ResumeOption,
    SeedOption,
    ToleranceOption,
    TtaOption,
    WorkOption,
)

if TYPE_CHECKING:
    from segpipe.workflows.networks import NetworkCost


def run(
    dataset: DatasetArg,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    recipe: RecipeOption = None,
    configuration: ConfigurationOption = None,
    network: NetworkOption = None,
    fold: Annotated[int, typer.Option("--fold", min=0, help="Fold to hold out, predict and score.")] = 0,
    resume: ResumeOption = False,
    tta: TtaOption = True,
    tolerance_mm: ToleranceOption = 1.0,
    resample_channels: ResampleOption = None,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    deterministic: DeterministicOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do the whole line: check, plan, preprocess, train, predict the held-out cases, evaluate, report."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, show_scores, watch
    from segpipe.workflows import run

    done = run.run(
        dataset,
        work=work,
        recipe=recipe,
        configuration=configuration,
        network=network,
        fold=fold,
        epochs=epochs,
        minutes=minutes,
        tta=tta,
        tolerance_mm=tolerance_mm,
        resample_channels=resample_channels,
        device=device,
        devices=devices,
        jobs=jobs,
        seed=seed,
        deterministic=deterministic,
        resume=resume,
        watch=watch(quiet=quiet or as_json),
    )
    places = {
        "model": done.model,
        "predictions": done.predictions,
        "scores": done.evaluation_file,
        "report": done.report,
    }
    if as_json:
        show_json(
            {"evaluation": as_plain(done.evaluation), "training": as_plain(done.record), "failed": done.failed}
            | {k: str(v) for k, v in places.items()}
        )
    else:
        show_scores(done.evaluation)
        for name, path in places.items():
            out().print(f"{name:12} {path}", markup=False, soft_wrap=True)
        show_failures("Cases that were lost", done.failed)
    if done.failed:
        raise typer.Exit(FAILED_CASES)


def train(
    dataset: DatasetArg,
    configuration: ConfigurationOption = None,
    network: NetworkOption = None,
    fold: Annotated[str, typer.Option("--fold", help="Fold to hold out (0, 1, ...), or all: hold out nothing.")] = "0",
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="MODEL",
            help="Begin with the weights of a model.segpipe (without a plan in the workspace, by that model's plan), or with bare "
            "weights (.pth, .safetensors), such as ImageNet's for ternausnet.",
            show_default=False,
        ),
    ] = None,
    resume: ResumeOption = False,
    tta: TtaOption = True,
    tolerance_mm: ToleranceOption = 1.0,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    jobs: JobsOption = None,
    seed: SeedOption = 0,
    deterministic: DeterministicOption = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events too (needs the extra).")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one fold by the workspace's plan and score its held-out cases; plans and preprocesses first what is not there yet."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, show_scores, watch
    from segpipe.workflows import train

    if fold != "all" and not fold.isdigit():
        raise typer.BadParameter(f"{fold!r}: expected a number or 'all'", param_hint="--fold")
    done = train.train(
        dataset,
        work=work,
        configuration=configuration,
        network=network,
        fold=fold if fold == "all" else int(fold),
        epochs=epochs,
        minutes=minutes,
        init_from=init_from,
        tta=tta,
        tolerance_mm=tolerance_mm,
        device=device,
        devices=devices,
        jobs=jobs,
        seed=seed,
        deterministic=deterministic,
        tensorboard=tensorboard,
        resume=resume,
        watch=watch(quiet=quiet or as_json),
    )
    record, held_out = done.record, done.held_out
    failed = {} if held_out is None else held_out.failed
    places = {"model": done.model, "log": done.folder.log, "curves": done.folder.curves}
    if held_out is not None:
        places |= {"predictions": held_out.predictions, "scores": held_out.evaluation_file}
        places |= {f"example {n}": picture for n, picture in enumerate(held_out.pictures, start=1)}
    if as_json:
        show_json(
            {"training": as_plain(record), "failed": failed}
            | {"evaluation": None if held_out is None else as_plain(held_out.evaluation)}
            | {k: str(v) for k, v in places.items()}
        )
    else:
        early = f"; stopped early, best epoch {record.best_epoch}" if record.stopped_early else ""
        out().print(
            f"{record.iterations} iterations in {record.elapsed_s / 60:.1f} min{early}; "
            f"{record.data_wait_share:.1%} of the time waiting for data",
            markup=False,
        )
        if held_out is not None:
            show_scores(held_out.evaluation)
        for name, path in places.items():
            out().print(f"{name:12} {path}", markup=False, soft_wrap=True)
        show_failures("Cases that were lost", failed)
    if failed:
        raise typer.Exit(FAILED_CASES)


def networks(
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="[DATASET]", help="A dataset to plan them for; names only without.", show_default=False),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            metavar="NAME[:key=value,...]",
            help="Only this one; give it again for more.",
            show_default=False,
        ),
    ] = None,
    configuration: ConfigurationOption = None,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the networks; for a dataset with their parameters, work, memory at the planned patch, and seconds a step on this machine."""
    from dataclasses import asdict

    from segpipe.cli.display import out, show_json, table, watch
    from segpipe.errors import NetworkError
    from segpipe.networks.catalogue import architecture_of
    from segpipe.networks.spec import parse_choice
    from segpipe.workflows.networks import list_networks

    if dataset is None and (configuration is not None or work is not None):
        raise typer.BadParameter("costs are those of a dataset; give one", param_hint="DATASET")
    costs = list_networks(
        dataset,
        names=tuple(names or ()),
        work=work,
        configuration=configuration,
        device=device,
        jobs=jobs,
        watch=watch(quiet=quiet or as_json),
    )
    if as_json:
        show_json([asdict(cost) for cost in costs])
        return
    if dataset is None:
        wrong = [cost.problem for cost in costs if cost.problem]
        if wrong:
            raise NetworkError(wrong[0])
        about = [architecture_of(parse_choice(cost.network).name) for cost in costs]
        rows = [[a.name, a.about, a.describe_options()] for a in about]
        out().print(table("Networks, and what they may be asked for", ["network", "", "options"], rows))
        out().print("any other network of MONAI for segmentation: monai:CLASS", markup=False)
        return
    rows = [_cost_row(cost) for cost in costs]
    columns = ["network", "patch", "batch", "million parameters", "10^9 MACs a patch", "GB a step", "seconds a step"]
    out().print(table(f"Networks for {dataset}", columns, rows, right=(2, 3, 4, 5)))


def _cost_row(cost: "NetworkCost") -> list[str]:
    def shown(value: float | None, digits: int, unit: float = 1.0) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    return [
        cost.network,
        "x".join(map(str, cost.patch_size or ())),
        shown(cost.batch_size, 0),
        shown(cost.parameters, 2, 1e6),
        shown(cost.macs, 1, 1e9),
        shown(cost.memory_gb, 2),
        cost.problem or shown(cost.step_s, 2),
    ]


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine can do: device, precision, memory, versions."""
    from importlib.metadata import version

    import psutil

    from segpipe.cli.display import out, show_json, table
    from segpipe.execution.device import choose_runtime, cpu_flags
    from segpipe.inference.engines.choose import default_engine
    from segpipe.workflows.planning import recipe_for

    runtime = choose_runtime()
    fast = sorted(
        cpu_flags()
        & {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_fp16", "amx_int8"}
    )
    facts = {
        "trains on": runtime.describe(),
        "predicts with": default_engine(runtime),
        "recipe unless asked for": recipe_for(runtime),
        "processor features": ", ".join(fast) or "none known",
        "memory free": f"{psutil.virtual_memory().available / 2**30:.1f} of {psutil.virtual_memory().total / 2**30:.1f} GiB",
        **{name: version(name) for name in ("segpipe", "torch", "numpy", "nibabel", "SimpleITK")},
    }
    if as_json:
        show_json(facts)
    else:
        out().print(table("This machine", ["", ""], [[k, v] for k, v in facts.items()]))
