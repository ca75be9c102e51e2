"""Where everything of one dataset is written. Every path is a property; nothing is created here."""

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.regular import lies
from segpipe.core.system_names import below, real_path

PathLike = Path | str


@dataclass(frozen=True)
class FoldFolder:
    """Files of one trained fold."""

    root: Path

    @property
    def weights(self) -> Path:
        """Final weights, safetensors."""
        return self.root / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """State from which training continues."""
        return self.root / "checkpoint.pt"

    @property
    def record(self) -> Path:
        """What happened in training; there only when it finished."""
        return self.root / "record.json"

    @property
    def begun(self) -> bool:
        """Whether the fold was trained, to its end or not."""
        return any(lies(file) for file in (self.checkpoint, self.weights, self.record))

    @property
    def plan(self) -> Path:
        """The plan that the fold is trained by."""
        return self.root / "plan.json"

    @property
    def log(self) -> Path:
        """JSON lines, one an epoch."""
        return self.root / "log.jsonl"

    @property
    def curves(self) -> Path:
        """Loss and Dice over the training, drawn."""
        return self.root / "curves.png"

    @property
    def examples(self) -> list[Path]:
        """Held-out cases drawn, the worst first."""
        return sorted(self.root.glob("example_*.png"))


@dataclass(frozen=True)
class CaseFiles:
    """Files of one decoded case, in a folder of its own."""

    root: Path

    @property
    def image(self) -> Path:
        """(C, Z, Y, X) in the image's own number type, canonical orientation, cropped to the non-zero box."""
        return self.root / "image.b2nd"

    @property
    def labels(self) -> Path:
        """(Z, Y, X) stored label values."""
        return self.root / "labels.b2nd"

    @property
    def record(self) -> Path:
        """What reading gave; written last."""
        return self.root / "record.json"

    @property
    def measurements(self) -> Path:
        """What the fingerprint took from this case."""
        return self.root / "measurements.json"

    @property
    def quantiles(self) -> Path:
        """Sketch of the foreground's intensities."""
        return self.root / "quantiles.b2nd"


@dataclass(frozen=True)
class PreparedFiles:
    """Files of one preprocessed case, in a folder of its own."""

    root: Path

    @property
    def image(self) -> Path:
        """float32 (C, Z, Y, X)."""
        return self.root / "image.b2nd"

    @property
    def segmentation(self) -> Path:
        """int16 (Z, Y, X): indices of label values (segpipe.labels), -1 outside the non-zero region where that counts."""
        return self.root / "segmentation.b2nd"

    @property
    def previous(self) -> Path:
        """int16 (Z, Y, X): label indices that the stage before found, in a cascade."""
        return self.root / "previous.b2nd"

    @property
    def foreground(self) -> Path:
        """int32 (N, 4): target (0 for any labelled voxel), z, y, x."""
        return self.root / "foreground.b2nd"

    @property
    def record(self) -> Path:
        """What was done; written last, so its presence means that the case is whole."""
        return self.root / "record.json"


@dataclass(frozen=True)
class SoftLabelFiles:
    """Files of a teacher's probabilities of one case, on the grid of its prepared arrays, in a folder of its own."""

    root: Path

    @property
    def outputs(self) -> Path:
        """(k, Z, Y, X): which outputs of the network have the largest probabilities."""
        return self.root / "outputs.b2nd"

    @property
    def shares(self) -> Path:
        """float16 (k, Z, Y, X): these probabilities."""
        return self.root / "shares.b2nd"

    @property
    def record(self) -> Path:
        """What they were made of; written last."""
        return self.root / "record.json"


@dataclass(frozen=True)
class Workspace:
    """The folder tree that the stages share."""

    root: Path
    decoded: Path | None = None
    """Folder of the decoded cases, where workspaces share one."""

    def resolved(self) -> "Workspace":
        """Return the same with absolute paths."""
        return Workspace(real_path(self.root), self.decoded and real_path(self.decoded))

    @property
    def dataset(self) -> Path:
        """dataset.json."""
        return self.root / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        """fingerprint.json."""
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        """plan.json."""
        return self.root / "plan.json"

    @property
    def previous_plan(self) -> Path:
        """The plan that plan.json replaced, the last time that it was replaced by another."""
        return self.root / "plan.previous.json"

    def plan_of(self, variant: str) -> Path:
        """Plan of a variant: plan.json, or that of <recipe>+<network>."""
        return below(self.root / "plans", f"{variant}.json") if "+" in variant else self.plan

    @property
    def splits(self) -> Path:
        """splits.json."""
        return self.root / "splits.json"

    @property
    def predictions(self) -> Path:
        """Folder of predictions."""
        return self.root / "predictions"

    @property
    def evaluation(self) -> Path:
        """Folder of scores."""
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.root / "report" / "index.html"

    @property
    def case_folder(self) -> Path:
        """Folder of the decoded cases: the workspace's own, or one that workspaces share."""
        return self.decoded or self.root / "cases"

    def case(self, case: str) -> CaseFiles:
        """Files of one decoded case."""
        return CaseFiles(below(self.case_folder, case))

    @property
    def arrays(self) -> Path:
        """Everything that was prepared, for all configurations."""
        return self.root / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        """Folder of the arrays of one configuration."""
        return below(self.arrays, configuration)

    def prepared_index(self, configuration: str) -> Path:
        """What was prepared for a configuration."""
        return below(self.arrays, f"{configuration}.json")

    def first_stage(self, configuration: str, variant: str) -> Path:
        """Folder of what the first stage of a cascade found, on the grid of its second."""
        return below(self.arrays, configuration, variant)

    def soft_labels(self, configuration: str, key: str) -> Path:
        """Folder of what a teacher says of the prepared cases of a configuration."""
        return below(self.root / "soft_labels", configuration, key)

    def unlabelled(self, configuration: str, key: str) -> Path:
        """Folder of prepared images that nobody labelled."""
        return below(self.root / "unlabelled", configuration, key)

    def place(self, configuration: str, variant: str, fold: int | str) -> Path:
        """Where a fold lies below each of the folders models, predictions and evaluation."""
        return below(Path(), configuration, variant, f"fold_{fold}")

    def variant(self, configuration: str, variant: str) -> Path:
        """Folder of one trained variant of a configuration."""
        return below(self.root / "models", configuration, variant)

    def fold(self, configuration: str, variant: str, fold: int | str) -> FoldFolder:
        """Files of one fold."""
        return FoldFolder(below(self.variant(configuration, variant), f"fold_{fold}"))

    def model(self, configuration: str, variant: str) -> Path:
        """The portable model of a variant."""
        return self.variant(configuration, variant) / "model.segpipe"
