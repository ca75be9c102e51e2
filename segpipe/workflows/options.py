"""What each command may be asked, said once: the command line, the Python functions, jobs and run folders are made from these records.

Standard library only. A field's note says what it means in plain words; :mod:`segpipe.cli.translate` turns notes into options of the
command line, and :mod:`segpipe.workflows.keywords` into the documentation of the Python functions.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segpipe.errors import UsageError
from segpipe.workflows.notes import LENGTH, OUTPUT, REPEAT, SCORES, WHERE, Options, argument, option

RECIPES = (
    "default", "cpu", "resenc_m", "resenc_l", "resenc_xl", "residual_m", "residual_l", "residual_xl", "u2net", "danet", "mr_artefacts",
)  # fmt: skip
"""Recipes that come with segpipe, those of distillation aside."""

EngineName = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
ExportFormat = Literal["nnunet"]
NsdUnit = Literal["voxels", "area"]


# Texts of the command line ---------------------------------------------------------------------------------------------------------


def fold_or_all(text: str) -> int | str:
    """A fold's number, or "all"."""
    if text != "all" and not text.isdigit():
        raise ValueError(f"{text!r}: expected a number or 'all'")
    return text if text == "all" else int(text)


def budget(text: str) -> float | str:
    """GB of memory, or "auto"."""
    if text == "auto":
        return text
    try:
        gb = float(text)
    except ValueError:
        gb = 0.0
    if not 0.1 <= gb < float("inf"):
        raise ValueError(f"{text!r}: expected a number of GB, at least 0.1, or auto")
    return gb


def shard(text: str) -> tuple[int, int]:
    """Which part of how many, as I/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, n_shards = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= n_shards:
        raise ValueError(f"{text!r}: expected I/N with I from 1 to N, such as 2/8")
    return number, n_shards


# Groups that several commands share ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OnDataset(Options):
    """A dataset and where its results are kept."""

    dataset: Path = argument(
        "Folder (nnU-Net, Decathlon, images/ + labels/) or manifest (cases.csv, cases.json).", "DATASET"
    )
    work: Path | None = option("Workspace folder.", None, group=WHERE, unless_given="runs/<dataset name>")


@dataclass(frozen=True, kw_only=True)
class Parallel(Options):
    """How many processes share the work."""

    jobs: int | None = option(
        "Most worker processes.", None, group=WHERE, least=1, unless_given="what processors and memory allow"
    )


@dataclass(frozen=True, kw_only=True)
class OnDevice(Options):
    """Where networks are computed."""

    device: str = option("Where networks are computed: auto, cpu, cuda or cuda:N.", "auto", group=WHERE)


@dataclass(frozen=True, kw_only=True)
class OnCluster(Options):
    """Whose workers do it."""

    cluster: str | None = option(
        "Workers of a cluster instead of this machine's processes: slurm, or tcp://HOST:PORT of a Dask scheduler. All see the "
        "same files under the same paths.",
        None,
        group=WHERE,
        metavar="ADDRESS",
    )


@dataclass(frozen=True, kw_only=True)
class Length(Options):
    """When a training ends."""

    minutes: float | None = option("Train this long instead.", None, group=LENGTH, least=0.01)
    epochs: int | None = option(
        "Train this many epochs.", None, group=LENGTH, least=1, unless_given="the recipe's number"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.minutes is not None:
            raise UsageError(
                f"--epochs {self.epochs} and --minutes {self.minutes:g} are two ends of training; give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Scoring(Options):
    """How held-out cases are predicted and scored."""

    tta: bool = option("Average over mirrored images (up to 8 times the work).", True, group=SCORES)
    tolerance_mm: float = option("Tolerance of the normalised surface Dice (NSD), in mm.", 1.0, group=SCORES, least=0)


@dataclass(frozen=True, kw_only=True)
class Repeatable(Options):
    """What makes a training repeatable."""

    seed: int = option("Seed of weights, patches and augmentation.", 0, group=REPEAT)
    deterministic: bool = option("The same bytes twice on the same machine; may be slower.", False, group=REPEAT)


@dataclass(frozen=True, kw_only=True)
class Resumable(Options):
    """Whether something interrupted is taken up."""

    resume: bool = option("Continue what was interrupted; keep what is finished.", False, group=LENGTH)


def resampled_channels() -> Any:
    """Field: what becomes of channels on other grids."""
    return option(
        "Bring channels on other grids onto the first one's, or refuse them; later stages and the model do the same.",
        None,
        unless_given="as the last time, else refuse",
    )


def configuration(which: str = "2d, 3d_fullres, 3d_lowres or 3d_cascade_fullres.", default: str = "") -> Any:
    """Field: a configuration of the plan."""
    return option(
        which,
        None,
        short="c",
        unless_given=default
        or "3d_fullres, or 3d_lowres where the recipe prefers a wide view; 2d where there is neither",
    )


def network() -> Any:
    """Field: another network."""
    return option(
        "Another network than the plan's, as NAME or NAME:key=value,... such as u2net, plain_unet:width=0.5 or monai:SegResNet; "
        "patch and batch are planned for it; see `segpipe networks`.",
        None,
        metavar="NETWORK",
    )


def recipe(default: str | None = None, **note: Any) -> Any:
    """Field: a recipe."""
    note.setdefault("unless_given", "" if default else "default with a GPU, cpu without")
    return option(
        note.pop("help", f"Name of a recipe ({', '.join(RECIPES)}) or a TOML file."),
        default, metavar="NAME|FILE", file=".toml", **note,
    )  # fmt: skip


def held_out_fold() -> Any:
    """Field: the fold that is held out, or none."""
    return option("Fold to hold out (0, 1, ...), or all: hold out nothing.", 0, parse=fold_or_all, metavar="FOLD")


def devices() -> Any:
    """Field: devices that share a training."""
    return option("GPUs (or CPU processes) to train on together; the batch is shared out.", 1, group=WHERE, least=1)


# One record a command --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckOptions(OnDataset, Parallel):
    """Check every case by every rule; exit 1 if anything is wrong. Decoded cases are kept for the later stages."""

    resample_channels: bool | None = resampled_channels()


@dataclass(frozen=True, kw_only=True)
class PlanOptions(OnDataset, Parallel):
    """Measure the dataset and plan for it; writes fingerprint.json and plan.json."""

    recipe: str | None = recipe()
    budget_gb: float | str | None = option(
        "Device memory to plan for, in GB, or auto: what is free on the device.",
        None, parse=budget, metavar="GB|auto", least=0.1, unless_given="the recipe's",
    )  # fmt: skip
    spacing_mm: tuple[float, float, float] | None = option(
        "Target spacing (z, y, x) in mm instead of the planned one.", None, flag="spacing", metavar="Z Y X"
    )
    resample_channels: bool | None = resampled_channels()
    explain: bool = option(
        "Show what each rule looked at and did, step by step.", False, group=OUTPUT, terminal_only=True
    )


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions(OnDataset, OnCluster, Parallel):
    """Prepare the arrays of one configuration; cases that are prepared already are kept."""

    configuration: str | None = configuration()


@dataclass(frozen=True, kw_only=True)
class FoldOptions(OnDataset, Parallel, OnDevice, Scoring, Repeatable, Resumable, Length):
    """What `run` and `train` share."""

    extend: bool = option(
        "Continue a finished fold until --epochs or --minutes, those before included, with a fresh decay of the learning rate.",
        False,
        group=LENGTH,
    )
    configuration: str | None = configuration()
    network: str | None = network()
    devices: int = devices()


@dataclass(frozen=True, kw_only=True)
class RunOptions(FoldOptions):
    """Do everything: check, plan, preprocess, train, predict the held-out cases, evaluate, report."""

    recipe: str | None = recipe()
    fold: int = option("Fold to hold out, predict and score.", 0, least=0)
    resample_channels: bool | None = resampled_channels()


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FoldOptions):
    """Train one fold by the workspace's plan and score its held-out cases; plans and preprocesses first what is not there yet."""

    fold: int | str = held_out_fold()
    init_from: Path | None = option(
        "Begin with the weights of a model.segpipe (without a plan in the workspace, by that model's plan), or with bare weights "
        "(.pth, .safetensors), such as ImageNet's for ternausnet. What does not fit is reported.",
        None,
        metavar="MODEL",
    )
    tensorboard: bool = option("Write TensorBoard events too (needs the extra).", False, group=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class NetworksOptions(Parallel, OnDevice):
    """List the networks; for a dataset with their parameters, work, memory at the planned patch, and seconds per step here."""

    dataset: Path | None = argument("A dataset to plan them for; names only without.", "[DATASET]", None)
    names: tuple[str, ...] = option("Only this network; give it again for more.", (), flag="network", metavar="NETWORK")
    configuration: str | None = configuration()
    work: Path | None = option("Workspace folder.", None, group=WHERE, unless_given="runs/<dataset name>")


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(OnDataset, OnCluster, OnDevice, Scoring, Repeatable, Length):
    """Cross-validate, nested: outer folds measure, inner folds choose. The same command continues what was interrupted."""

    folds: int | None = option("Outer folds, which measure.", None, least=2, unless_given="5")
    inner_folds: int | None = option("Folds of each outer training set, which choose.", None, least=2, unless_given="3")
    repeats: int = option("Divide the cases anew so many times.", 1, least=1)
    leave_out: str | None = option(
        "An outer fold for each value of a column of the manifest, such as site.", None, metavar="COLUMN"
    )
    test_set: str | None = option(
        "One outer fold alone: a file with a case id on each line, or COLUMN=VALUE.",
        None,
        metavar="CASES",
    )
    splits: Path | None = option("Outer folds of nnU-Net's splits_final.json, or of a splits.json.", None)
    group_by: str | None = option(
        "What keeps cases together: a manifest's column, or a pattern on case ids such as '^(.+)_'.",
        None, metavar="COLUMN", unless_given="patient, where there is that column",
    )  # fmt: skip
    stratify_by: tuple[str, ...] = option(
        "Spread a column evenly over folds; labels: their presence and volume. Give it again for more.",
        (),
        metavar="COLUMN",
    )
    nested: bool = option("Without nesting, one level of folds chooses and measures: scores are optimistic.", True)
    candidates: tuple[str, ...] = option(
        "What is chosen among, each as CONFIGURATION, CONFIGURATION+NETWORK or with @setting=value, and parted by commas; or a "
        "TOML file of alternatives.",
        (), metavar="LIST|FILE", unless_given="2d,3d_fullres, and 3d_lowres where the recipe prefers a wide view",
    )  # fmt: skip
    trials: int | None = option(
        "Search the file's alternatives by Optuna, with so many trials per outer fold.", None, least=2
    )
    ensembles: bool = option("Also compare averages of two candidates.", True)
    refit: bool = option(
        "Train the winner again on all training cases of its outer fold; else its folds are averaged.",
        False,
        flag="refit/--no-refit",
    )
    final: bool = option("Make a model of all cases, by the same rules.", True)
    recipe: str | None = recipe()
    resample_channels: bool | None = resampled_channels()
    jobs: int | None = option(
        "Most jobs at a time; of SLURM, workers that are asked for.",
        None, group=WHERE, least=1, unless_given="one per GPU, or what processors and memory allow",
    )  # fmt: skip
    threads: int | None = option(
        "Threads of a job.",
        None, group=WHERE, least=1, unless_given="the processors are shared out; on a cluster all that a worker may use",
    )  # fmt: skip
    retries: int = option("How often a job is tried again whose worker was killed.", 1, group=WHERE, least=0)
    believe: Callable[[list[tuple[str, str]]], bool] | None = option(
        "Called with the groups that a pattern makes, before any work; returns whether they are right.",
        None,
        python_only=True,
        unless_given="they are believed",
    )
    yes: bool = option("Believe the groups that a pattern makes.", False, short="y", terminal_only=True)
    status: bool = option("Only show where it stands.", False, group=OUTPUT, terminal_only=True)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(OnDataset, OnCluster, Parallel, OnDevice, Scoring, Repeatable, Resumable, Length):
    """Train a small network that a large one teaches, and show what it keeps."""

    teacher: tuple[Path, ...] = option(
        "model.segpipe, the folder that holds it, or nnU-Net's folder of a trained model; give it again to average the probabilities "
        "of several. None is needed where all terms are self or mutual.",
        (), short="t", metavar="MODEL",
    )  # fmt: skip
    student: tuple[str, ...] = option(
        "The plan's own U-Net at another width (width=0.25,norm=batch), or a network of `segpipe networks` as NAME or "
        "NAME:key=value,...; given again, each is taught by the one before.",
        ("width=0.25",), short="s", metavar="NETWORK",
    )  # fmt: skip
    kd: tuple[str, ...] = option(
        "A term, such as voxel:temperature=2 or channel:weight=3, instead of the recipe's; give it again for more.",
        (), metavar="NAME[:key=value,...]",
    )  # fmt: skip
    recipe: str = recipe("distill", help="Terms by name: distill, distill_structured, or a TOML file.")
    name: str = option("Name under which the student is kept.", "distilled")
    configuration: str | None = configuration("2d, 3d_fullres or 3d_lowres.", "the teacher's, where the plan has it")
    fold: int | str = held_out_fold()
    teacher_folds: tuple[str, ...] = option(
        "Fold of the teachers; give it again for more.",
        (), flag="teacher-fold", unless_given="--fold where a teacher has it, else all",
    )  # fmt: skip
    teacher_tta: bool = option(
        "Average soft labels over mirrored images.", False, flag="teacher-tta/--no-teacher-tta", group=SCORES
    )
    soft_labels: bool | None = option(
        "Keep the teachers' probabilities on disk, or let them look at every patch.",
        None,
        unless_given="kept where they have to be, and on a CPU",
    )
    unlabelled: Path | None = option(
        "Folder or manifest of images that nobody labelled; the teachers' probabilities teach on them.",
        None,
        metavar="IMAGES",
    )
    fresh: bool = option("Begin with fresh weights even where the teacher's fit.", False)
    baseline: bool = option("Also train the student without a teacher, and compare.", False)
    compare: bool = option("Measure teacher and student at the end.", True, group=SCORES)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Parallel, OnDevice, Scoring):
    """Compare models: weights, work, time, memory, scores, and whether they differ by more than chance."""

    models: tuple[Path, ...] = argument(
        "model.segpipe, the folder that holds it, or nnU-Net's folder; the others are compared with the first.",
        "MODEL",
    )
    dataset: Path = option("Folder or manifest with the cases and their labels.")
    fold: int | str = option(
        "The cases that this fold held out; all: every case, which no model may have seen.",
        0, parse=fold_or_all, metavar="FOLD",
    )  # fmt: skip
    folds: Mapping[Path, tuple[str, ...]] | None = option(
        "Folds of some models, by their paths.",
        None, python_only=True, unless_given="the fold that held out the same cases where a model has it, else all",
    )  # fmt: skip
    output: Path | None = option(
        "Folder of the results.", None, group=OUTPUT, unless_given="comparisons/ of the workspace"
    )
    threads: int | None = option("Threads of the CPU.", None, group=WHERE, least=1, unless_given="all")
    work: Path | None = option("Workspace folder.", None, group=WHERE, unless_given="runs/<dataset name>")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(OnCluster, OnDevice, Resumable):
    """Segment images, each on its own grid; a bad file is reported and passed over (exit 3)."""

    source: Path = argument("An image, a folder of images, or a manifest.", "INPUT")
    output: Path = argument("Folder for the segmentations (or one file, for one image).", "OUTPUT")
    model: tuple[Path, ...] = option(
        "model.segpipe, the folder that holds it, or nnU-Net's folder of a trained model; give it again to average the probabilities "
        "of several.",
        short="m",
    )
    folds: tuple[str, ...] = option("Fold to use; give it again for more.", (), unless_given="all")
    tta: bool = option("Average over mirrored images (up to 8 times the work).", True, group=SCORES)
    engine: EngineName = option(
        "What computes the network; auto is OpenVINO on a CPU where it is installed.", "auto", group=WHERE
    )
    precision: Precision = option(
        "Number type of the network; bfloat16 on a CPU is faster and less exact.", "auto", group=WHERE
    )
    step: float = option(
        "Largest step of the sliding window, as a share of the patch.", 0.5, group=SCORES, least=0.05, most=1
    )
    postprocess: bool = option("Apply the rules that the model holds, if any.", True, group=SCORES)
    save_probabilities: bool = option("Also CASE.npz, float16 (label, z, y, x).", False, group=OUTPUT)
    save_uncertainty: bool = option("Also CASE_uncertainty.nii.gz, entropy from 0 to 1.", False, group=OUTPUT)
    overwrite: bool = option(
        "Replace also masks that somebody changed; otherwise they stay, and their cases are reported (exit 3).",
        False,
        group=OUTPUT,
    )
    shard: tuple[int, int] = option(
        "Only the I-th of N parts of the cases, for N processes on one folder.", (1, 1), metavar="I/N", parse=shard
    )
    jobs: int | None = option("Workers to ask SLURM for.", None, group=WHERE, least=1, unless_given="1")


@dataclass(frozen=True, kw_only=True)
class PostprocessOptions(Parallel):
    """Choose rules that clean segmentations, on cases with a reference, or apply rules to any folder."""

    predictions: Path = argument("Folder of segmentations, of any program.", "PREDICTIONS")
    output: Path | None = argument("Another folder, for the cleaned ones.", "[OUTPUT]", None)
    references: Path | None = option(
        "Choose rules on the predictions, which must be of cases the model did not see.", None
    )
    rules: Path | None = option("JSON file of rules: read, or with --references written.", None)
    model: Path | None = option(
        "Model that names the labels, and whose rules are applied, or with --references set. Without one, every value but 0 is a "
        "label, named by its number as label_3.",
        None,
        short="m",
    )


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """Write a trained nnU-Net as a segpipe model; nothing in it is executed, and what cannot be honoured is refused by name."""

    folder: Path = argument(
        "<Trainer>__<Plans>__<configuration>, with plans.json and fold_0, ...; of a cascade the first stage's folder lies beside it.",
        "NNUNET_FOLDER",
    )
    output: Path = argument("The .segpipe file to write.", "MODEL")
    folds: tuple[str, ...] = option("Fold to take; give it again for more.", (), unless_given="all")
    checkpoint: str = option("Name of the checkpoints.", "checkpoint_final.pth")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Write a model so that another program predicts with it: nnunet, for nnUNetv2_predict_from_modelfolder."""

    model: Path = argument("model.segpipe, or the folder that holds it.", "MODEL")
    output: Path = argument("New folder.", "OUTPUT")
    form: ExportFormat = option("Program that will read it.", "nnunet", flag="format")
    ending: str = option("Ending of the images that the program will be given.", ".nii.gz")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Write every regular volume of DICOM series as NIfTI, with a sidecar; the others are refused with the reason (exit 3)."""

    source: Path = argument("Folder of DICOM files, at any depth; or a DICOM file that is a volume.", "DICOM")
    output: Path = argument("Folder for the NIfTI files and their sidecars.", "OUTPUT")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Parallel):
    """Score segmentations: Dice, normalised surface Dice, HD95 and volumes, per label and overall."""

    predictions: Path = argument("Folder of segmentations, or one file.", "PREDICTIONS")
    references: Path = argument("Folder of references of the same names, or one file.", "REFERENCES")
    labels: Path | None = option(
        "A dataset.json with names, regions and the ignored value.", None, unless_given="every value but 0"
    )
    output: Path | None = option("JSON file to write.", None, short="o", group=OUTPUT)
    tolerance_mm: float = option("Tolerance of the normalised surface Dice (NSD), in mm.", 1.0, group=SCORES, least=0)
    nsd: NsdUnit = option("What NSD counts: voxels of the surfaces, or their area.", "voxels", group=SCORES)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Write the report page of a workspace again."""

    work: Path = argument("Workspace in which `segpipe run` or `segpipe train` finished.", "WORK")
    fold: int | None = option("Fold to show.", None, least=0, unless_given="all that were scored")


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Write the demo dataset: drawn organs in 12 small volumes."""

    folder: Path = argument("New folder.", "DIR")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Show what this machine can do: device, precision, memory, versions."""
