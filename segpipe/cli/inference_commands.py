"""Commands that apply, clean and exchange models: predict, postprocess, import, export."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.data_commands import FAILED_CASES
from segpipe.cli.options import (
    ClusterJobsOption,
    ClusterOption,
    DeviceOption,
    JobsOption,
    JsonOption,
    QuietOption,
    ResumeOption,
    TtaOption,
)


class EngineName(StrEnum):
    """See segpipe.inference.engine; that module brings in torch."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"


class Precision(StrEnum):
    """See segpipe.inference.engine."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class ExportFormat(StrEnum):
    """Programs that models are written for."""

    nnunet = "nnunet"


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An image, a folder of images, or a manifest.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the segmentations.", show_default=False)],
    model: Annotated[
        list[Path],
        typer.Option(
            "--model",
            "-m",
            help="model.segpipe, the folder that holds it, or nnU-Net's folder of a trained model; "
            "give it again to average the probabilities of several.",
            show_default=False,
        ),
    ],
    folds: Annotated[
        list[str] | None,
        typer.Option("--folds", help="Fold to use; give it again for more.  [default: all]", show_default=False),
    ] = None,
    tta: TtaOption = True,
    engine: Annotated[EngineName, typer.Option("--engine", help="What computes the network.")] = EngineName.auto,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the network; bfloat16 on a CPU is faster and less exact.")
    ] = Precision.auto,
    step: Annotated[
        float,
        typer.Option("--step", min=0.05, max=1, help="Largest step of the sliding window, as a share of the patch."),
    ] = 0.5,
    postprocess: Annotated[
        bool, typer.Option("--postprocess/--no-postprocess", help="Apply the rules that the model holds, if any.")
    ] = True,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also CASE.npz, float16 (label, z, y, x).")
    ] = False,
    save_uncertainty: Annotated[
        bool, typer.Option("--save-uncertainty", help="Also CASE_uncertainty.nii.gz, entropy from 0 to 1.")
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            "--shard", metavar="I/N", help="Only the I-th of N parts of the cases, for N processes on one folder."
        ),
    ] = "1/1",
    resume: ResumeOption = False,
    device: DeviceOption = "auto",
    cluster: ClusterOption = None,
    jobs: ClusterJobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Segment images, each onto its own grid; a bad file is reported and passed over (exit 3)."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, watch
    from segpipe.workflows import predict as stage

    if cluster is None:
        import torch

        # This process is the command's own: called from Python, prediction sets nothing.
        torch.backends.cudnn.benchmark = True
    rows = stage.predict(
        source,
        output,
        model=tuple(model),
        folds=tuple(folds or ()),
        tta=tta,
        engine=engine.value,
        precision=precision.value,
        step=step,
        postprocess=postprocess,
        save_probabilities=save_probabilities,
        save_uncertainty=save_uncertainty,
        shard=_shard(shard),
        device=device,
        cluster=cluster,
        jobs=jobs,
        resume=resume,
        watch=watch(quiet=quiet or as_json),
    )
    failed = {row.case: row.reason or "" for row in rows if row.status == "failed"}
    if as_json:
        show_json([as_plain(row) for row in rows])
    else:
        out().print(
            f"{len(rows) - len(failed)} of {len(rows)} case(s) predicted, in {output}", markup=False, soft_wrap=True
        )
        show_failures("Cases that failed", failed)
        show_failures("Cases to look at", {row.case: "; ".join(row.doubts) for row in rows if row.doubts})
    if failed:
        raise typer.Exit(FAILED_CASES)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, n_shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= n_shards:
        raise typer.BadParameter(f"{text!r}: expected I/N with I from 1 to N, such as 2/8", param_hint="--shard")
    return number, n_shards


def import_model(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="NNUNET_FOLDER",
            help="<Trainer>__<Plans>__<configuration>, with plans.json and fold_0, ...",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="MODEL", help="The .segpipe file to write.", show_default=False)],
    folds: Annotated[
        list[str] | None,
        typer.Option("--folds", help="Fold to take; give it again for more.  [default: all]", show_default=False),
    ] = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="Name of the checkpoints.")] = "checkpoint_final.pth",
    as_json: JsonOption = False,
) -> None:
    """Write a trained nnU-Net as a segpipe model; nothing in it is executed, and what cannot be honoured is refused by name."""
    from segpipe.cli.display import out, show_json
    from segpipe.workflows import import_

    imported = import_.import_model(folder, output, folds=tuple(folds or ()), checkpoint=checkpoint)
    if as_json:
        show_json(imported)
    else:
        out().print("\n".join(f"{k:<14}{v}" for k, v in imported.items()), markup=False, soft_wrap=True)


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="model.segpipe, or the folder that holds it.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder.", show_default=False)],
    form: Annotated[ExportFormat, typer.Option("--format", help="For which program.")] = ExportFormat.nnunet,
    ending: Annotated[str, typer.Option("--ending", help="Of the images that it will be given.")] = ".nii.gz",
    as_json: JsonOption = False,
) -> None:
    """Write a model so that another program predicts with it: nnunet, for nnUNetv2_predict_from_modelfolder."""
    from segpipe.cli.display import out, show_json
    from segpipe.workflows import export

    exported = export.export_model(model, output, form=form.value, ending=ending)
    if as_json:
        show_json(exported)
    else:
        out().print("\n".join(f"{k:<14}{v}" for k, v in exported.items()), markup=False, soft_wrap=True)


def postprocess(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of segmentations.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUTPUT]", help="Folder for the cleaned ones.", show_default=False)
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            help="Choose rules on the predictions, which must be of cases the model did not see.",
            show_default=False,
        ),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option("--rules", help="JSON file of rules: read, or with --references written.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Model whose labels are meant, and whose rules are applied, or with --references set.",
            show_default=False,
        ),
    ] = None,
    jobs: JobsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose rules that clean segmentations, on cases with a reference, or apply rules to any folder."""
    from segpipe.cli.display import as_plain, out, show_failures, show_json, table, watch
    from segpipe.workflows import postprocess as stage

    watching = watch(quiet=quiet or as_json)
    if references is not None:
        chosen, failed = stage.choose_postprocessing(
            predictions, references, rules=rules, model=model, jobs=jobs, watch=watching
        )
        if as_json:
            show_json({"chosen": as_plain(chosen), "failed": failed})
        else:
            rows = [
                [t.rule.describe(), _mean(t.before), _mean(t.after), "yes" if t.chosen else ""]
                for t in chosen.trials
                if t.before != t.after
            ]
            if rows:
                columns = ["rule", "mean Dice before", "after", "chosen"]
                out().print(table("Rules that change a Dice", columns, rows, right=(1, 2)))
            words = "; ".join(r.describe() for r in chosen.rules) or "none: no rule helps without making a label worse"
            out().print(f"rules: {words}", markup=False, soft_wrap=True)
    else:
        if output is None:
            raise typer.BadParameter("give OUTPUT to apply rules, or --references to choose them", param_hint="OUTPUT")
        done, failed = stage.apply_postprocessing(
            predictions, output, rules=rules, model=model, jobs=jobs, watch=watching
        )
        if as_json:
            show_json({"changed_voxels": done, "failed": failed})
        else:
            changed = sum(n > 0 for n in done.values())
            out().print(
                f"{len(done)} segmentation(s) written to {output}, {changed} of them changed",
                markup=False,
                soft_wrap=True,
            )
    if not as_json:
        show_failures("Cases that failed", failed)
    if failed:
        raise typer.Exit(FAILED_CASES)


def _mean(means: dict[str, float | None]) -> str:
    known = [m for m in means.values() if m is not None]
    return f"{sum(known) / len(known):.4f}" if known else "-"
