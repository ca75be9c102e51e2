"""Written by tests/stub.py from the records of options; see segpipe/workflows/options.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from segpipe.core.progress import Watch as Watch
from segpipe.dataset.convert import Converted as Converted
from segpipe.dataset.fingerprint.schema import Fingerprint as Fingerprint
from segpipe.dataset.run import CheckResult as CheckResult
from segpipe.errors import SegpipeError as SegpipeError
from segpipe.evaluation.comparison import Comparison as Comparison
from segpipe.evaluation.schema import Evaluation as Evaluation
from segpipe.execution.device import Runtime as Runtime
from segpipe.execution.device import choose_runtime as choose_runtime
from segpipe.inference.predictor import Predictor as Predictor
from segpipe.inference.predictor import PredictorOptions as PredictorOptions
from segpipe.inference.schema import PredictionRow as PredictionRow
from segpipe.planning.schema import Plan as Plan
from segpipe.postprocessing.schema import PostprocessingRules as PostprocessingRules
from segpipe.preprocessing.schema import PreprocessedIndex as PreprocessedIndex
from segpipe.version import __version__ as __version__
from segpipe.workflows.crossval.command import Crossvalidated as Crossvalidated
from segpipe.workflows.crossval.command import crossval_status as crossval_status
from segpipe.workflows.distill.command import Distilled as Distilled
from segpipe.workflows.networks import NetworkCost as NetworkCost
from segpipe.workflows.run import RunResult as RunResult
from segpipe.workflows.train import Trained as Trained

_Paths = Path | str | Sequence[Path | str]
__all__ = [
    "CheckResult",
    "Comparison",
    "Crossvalidated",
    "Distilled",
    "Evaluation",
    "Fingerprint",
    "Plan",
    "PredictionRow",
    "Predictor",
    "PredictorOptions",
    "RunResult",
    "Runtime",
    "SegpipeError",
    "Trained",
    "Watch",
    "apply_postprocessing",
    "check",
    "choose_postprocessing",
    "choose_runtime",
    "compare",
    "convert",
    "crossval",
    "crossval_status",
    "demo",
    "distill",
    "evaluate",
    "export_model",
    "import_model",
    "list_networks",
    "plan",
    "predict",
    "preprocess",
    "report",
    "run",
    "train",
]

def apply_postprocessing(
    predictions: Path | str,
    output: Path | str | None,
    *,
    jobs: int | None = ...,
    rules: Path | str | None = ...,
    model: Path | str | None = ...,
    watch: Watch = ...,
) -> tuple[dict[str, int], dict[str, str]]: ...
def check(
    dataset: Path | str,
    *,
    jobs: int | None = ...,
    work: Path | str | None = ...,
    resample_channels: bool | None = ...,
    watch: Watch = ...,
) -> CheckResult: ...
def choose_postprocessing(
    predictions: Path | str,
    references: Path | str | None,
    *,
    jobs: int | None = ...,
    rules: Path | str | None = ...,
    model: Path | str | None = ...,
    watch: Watch = ...,
) -> tuple[PostprocessingRules, dict[str, str]]: ...
def compare(
    models: _Paths,
    *,
    dataset: Path | str,
    tta: bool = ...,
    tolerance_mm: float = ...,
    device: str = ...,
    jobs: int | None = ...,
    fold: int | str = ...,
    folds: Mapping[Path, tuple[str, ...]] | None = ...,
    output: Path | str | None = ...,
    threads: int | None = ...,
    work: Path | str | None = ...,
    watch: Watch = ...,
) -> Comparison: ...
def convert(source: Path | str, output: Path | str, *, watch: Watch = ...) -> list[Converted]: ...
def crossval(
    dataset: Path | str,
    *,
    minutes: float | None = ...,
    epochs: int | None = ...,
    seed: int = ...,
    deterministic: bool = ...,
    tta: bool = ...,
    tolerance_mm: float = ...,
    device: str = ...,
    cluster: str | None = ...,
    work: Path | str | None = ...,
    folds: int | None = ...,
    inner_folds: int | None = ...,
    repeats: int = ...,
    leave_out: str | None = ...,
    test_set: str | None = ...,
    splits: Path | str | None = ...,
    group_by: str | None = ...,
    stratify_by: str | Sequence[str] = ...,
    nested: bool = ...,
    candidates: str | Sequence[str] = ...,
    trials: int | None = ...,
    ensembles: bool = ...,
    refit: bool = ...,
    final: bool = ...,
    recipe: str | None = ...,
    resample_channels: bool | None = ...,
    jobs: int | None = ...,
    threads: int | None = ...,
    retries: int = ...,
    believe: Callable[[list[tuple[str, str]]], bool] | None = ...,
    watch: Watch = ...,
) -> Crossvalidated: ...
def demo(folder: Path | str, *, watch: Watch = ...) -> Path: ...
def distill(
    dataset: Path | str,
    *,
    minutes: float | None = ...,
    epochs: int | None = ...,
    resume: bool = ...,
    seed: int = ...,
    deterministic: bool = ...,
    tta: bool = ...,
    tolerance_mm: float = ...,
    device: str = ...,
    jobs: int | None = ...,
    cluster: str | None = ...,
    work: Path | str | None = ...,
    teacher: _Paths = ...,
    student: str | Sequence[str] = ...,
    kd: str | Sequence[str] = ...,
    recipe: str = ...,
    name: str = ...,
    configuration: str | None = ...,
    fold: int | str = ...,
    teacher_folds: str | Sequence[str] = ...,
    teacher_tta: bool = ...,
    soft_labels: bool | None = ...,
    unlabelled: Path | str | None = ...,
    fresh: bool = ...,
    baseline: bool = ...,
    compare: bool = ...,
    watch: Watch = ...,
) -> Distilled: ...
def evaluate(
    predictions: Path | str,
    references: Path | str,
    *,
    jobs: int | None = ...,
    labels: Path | str | None = ...,
    output: Path | str | None = ...,
    tolerance_mm: float = ...,
    nsd: Literal["voxels", "area"] = ...,
    watch: Watch = ...,
) -> Evaluation: ...
def export_model(
    model: Path | str, output: Path | str, *, form: Literal["nnunet"] = ..., ending: str = ..., watch: Watch = ...
) -> dict[str, str]: ...
def import_model(
    folder: Path | str,
    output: Path | str,
    *,
    folds: str | Sequence[str] = ...,
    checkpoint: str = ...,
    watch: Watch = ...,
) -> dict[str, str]: ...
def list_networks(
    dataset: Path | str | None = ...,
    *,
    device: str = ...,
    jobs: int | None = ...,
    names: str | Sequence[str] = ...,
    configuration: str | None = ...,
    work: Path | str | None = ...,
    watch: Watch = ...,
) -> list[NetworkCost]: ...
def plan(
    dataset: Path | str,
    *,
    jobs: int | None = ...,
    work: Path | str | None = ...,
    recipe: str | None = ...,
    budget_gb: float | str | None = ...,
    spacing_mm: tuple[float, float, float] | None = ...,
    resample_channels: bool | None = ...,
    watch: Watch = ...,
) -> Plan: ...
def predict(
    source: Path | str,
    output: Path | str,
    *,
    model: _Paths,
    resume: bool = ...,
    device: str = ...,
    cluster: str | None = ...,
    folds: str | Sequence[str] = ...,
    tta: bool = ...,
    engine: Literal["auto", "torch", "openvino"] = ...,
    precision: Literal["auto", "float32", "float16", "bfloat16"] = ...,
    step: float = ...,
    postprocess: bool = ...,
    save_probabilities: bool = ...,
    save_uncertainty: bool = ...,
    overwrite: bool = ...,
    shard: tuple[int, int] = ...,
    jobs: int | None = ...,
    watch: Watch = ...,
) -> list[PredictionRow]: ...
def preprocess(
    dataset: Path | str,
    *,
    jobs: int | None = ...,
    cluster: str | None = ...,
    work: Path | str | None = ...,
    configuration: str | None = ...,
    watch: Watch = ...,
) -> PreprocessedIndex: ...
def report(work: Path | str, *, fold: int | None = ..., watch: Watch = ...) -> Path: ...
def run(
    dataset: Path | str,
    *,
    minutes: float | None = ...,
    epochs: int | None = ...,
    resume: bool = ...,
    seed: int = ...,
    deterministic: bool = ...,
    tta: bool = ...,
    tolerance_mm: float = ...,
    device: str = ...,
    jobs: int | None = ...,
    work: Path | str | None = ...,
    extend: bool = ...,
    configuration: str | None = ...,
    network: str | None = ...,
    devices: int = ...,
    recipe: str | None = ...,
    fold: int = ...,
    resample_channels: bool | None = ...,
    watch: Watch = ...,
) -> RunResult: ...
def train(
    dataset: Path | str,
    *,
    minutes: float | None = ...,
    epochs: int | None = ...,
    resume: bool = ...,
    seed: int = ...,
    deterministic: bool = ...,
    tta: bool = ...,
    tolerance_mm: float = ...,
    device: str = ...,
    jobs: int | None = ...,
    work: Path | str | None = ...,
    extend: bool = ...,
    configuration: str | None = ...,
    network: str | None = ...,
    devices: int = ...,
    fold: int | str = ...,
    init_from: Path | str | None = ...,
    tensorboard: bool = ...,
    watch: Watch = ...,
) -> Trained: ...
