"""Options that several commands share, each defined once."""

from pathlib import Path
from typing import Annotated

import typer

DatasetArg = Annotated[
    Path,
    typer.Argument(
        metavar="DATASET",
        help="Folder (nnU-Net, Decathlon, images/ + labels/) or manifest (cases.csv, cases.json).",
        show_default=False,
    ),
]
WorkOption = Annotated[
    Path | None, typer.Option("--work", help="Workspace folder.  [default: runs/<dataset name>]", show_default=False)
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Most worker processes.  [default: what processors and memory allow]", show_default=False
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="GPUs (or CPU processes) to train on together; the batch is shared out.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of weights, patches and augmentation.")]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="The same bytes twice on the same machine; may be slower.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no notes; results and errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ConfigurationOption = Annotated[
    str | None,
    typer.Option(
        "--configuration",
        "-c",
        help="2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres.  [default: 3d_fullres, 2d where there is none]",
        show_default=False,
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NAME[:key=value,...]",
        help="Another network than the plan's, such as u2net, plain_unet:width=0.5 or monai:SegResNet; see `segpipe networks`.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Name of a recipe or a TOML file.  [default: default with a GPU, cpu without]",
        show_default=False,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option("--epochs", min=1, help="Train this many epochs.  [default: the recipe's]", show_default=False),
]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", min=0.01, help="Train this long instead.", show_default=False)
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue what was interrupted; keep what is finished.")]
TtaOption = Annotated[
    bool, typer.Option("--tta/--no-tta", help="Average over mirrored images (up to 8 times the work).")
]
ResampleOption = Annotated[
    bool | None,
    typer.Option(
        "--resample-channels/--no-resample-channels",
        help="Bring channels on other grids onto the first one's, or refuse them.  [default: as the last time, else refuse]",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="tcp://HOST:PORT|slurm",
        help="Workers of a Dask cluster instead of this machine's processes.",
        show_default=False,
    ),
]
ClusterJobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Workers to ask SLURM for.  [default: 1]", show_default=False),
]
ToleranceOption = Annotated[
    float, typer.Option("--tolerance-mm", min=0, help="Tolerance of the normalised surface Dice (NSD).")
]
