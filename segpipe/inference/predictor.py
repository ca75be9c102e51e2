"""A model loaded once, ready to predict any number of volumes. No processes, no files."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.geometry import Grid, triple
from segpipe.core.volume import Volume
from segpipe.dataset.check import image_problems
from segpipe.errors import CaseError, ModelError, NetworkError
from segpipe.execution.device import Runtime, choose_runtime
from segpipe.inference.engines.base import EngineName, Precision
from segpipe.inference.engines.choose import inference_runtime, make_engine
from segpipe.inference.restore import labels_of, uncrop
from segpipe.inference.sliding import Ensemble
from segpipe.inference.stage import CaseTrace, LoadedModel, timed
from segpipe.models.file import ModelFile
from segpipe.models.read import read_any_model
from segpipe.planning.schema import Plan
from segpipe.planning.usual import unusual_spacing
from segpipe.postprocessing.apply import apply_rules, require_known
from segpipe.postprocessing.schema import Rule
from segpipe.preprocessing.prepare import Placement, Prepared
from segpipe.version import __version__

Labels = NDArray[np.unsignedinteger]


Sink = Callable[[Placement, int, Tensor], None]
"""Given the probabilities (K, Y, X) of one plane of the crop, by its number."""


@dataclass(frozen=True)
class PredictorOptions:
    """How a model is applied."""

    folds: tuple[str, ...] = ()
    """Folds to ensemble; empty for all the numbered ones, or "all" where there is no other."""
    tta: bool = True
    """Average over mirrored images, along the axes that were mirrored in training."""
    step: float = 0.5
    """Largest step of the sliding window, as a share of the patch."""
    engine: EngineName = "auto"
    precision: Precision = "auto"
    postprocess: bool = True
    """Apply the model's post-processing."""
    cache: Path | None = None
    """Folder for compiled networks."""


@dataclass
class Prediction:
    """What was made of an image."""

    labels: Labels
    """(Z, Y, X) stored label values."""
    measured: CaseTrace = field(default_factory=CaseTrace)


@dataclass(frozen=True)
class Predictor:
    """One model, or several whose probabilities are averaged, on their device."""

    stages: tuple[LoadedModel, ...]
    rules: tuple[Rule, ...]
    digest: str
    """sha256 of plans and weights, and of all that was chosen for applying them."""
    describe: str = ""
    """Engine and precision in words."""
    source: tuple[tuple[Path, ...], Runtime, PredictorOptions] | None = None
    """What :meth:`load` was given, so that another process can load the same; None where it was made in another way."""
    _one_at_a_time: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def plan(self) -> Plan:
        """The (first) model's plan: what images it expects, and what its labels mean."""
        return self.stages[0].plan

    @classmethod
    def load(
        cls,
        path: Path | str | tuple[Path, ...],
        runtime: Runtime | None = None,
        options: PredictorOptions | None = None,
    ) -> "Predictor":
        """Load a model, or several.

        Parameters
        ----------
        path : path, or tuple of path
            A .segpipe file, a folder that holds model.segpipe, or nnU-Net's folder of a trained model. The probabilities of several
            are averaged on the image's own grid, as nnU-Net ensembles configurations.
        runtime : Runtime, optional
            A GPU where there is one, unless given.
        options : PredictorOptions, optional

        Raises
        ------
        ModelError
            If one is no model, lacks a fold, or they do not go together.
        DeviceError
            If the engine or the precision is not to be had here.
        """
        options = options or PredictorOptions()
        paths = path if isinstance(path, tuple) else (Path(path),)
        runtime = inference_runtime(runtime or choose_runtime(), options.precision, options.engine)
        models = [read_any_model(p, options.folds) for p in paths]
        places = [where for model, where in zip(models, paths, strict=True) for _ in model.members]
        members = [member for model in models for member in model.members]
        stages = tuple(
            make_stage(member, where, runtime, options, options.folds)
            for member, where in zip(members, places, strict=True)
        )
        _require_alike(stages, tuple(places))
        rules = models[0].rules(paths[0]) if options.postprocess and len(models) == 1 else ()
        require_known(rules, stages[0].plan.labels)
        engines = {(type(e).__name__, e.precision) for s in stages for e in s.ensemble.engines}
        chosen = [sorted(engines), options.tta, options.step, [r.model_dump() for r in rules], __version__]
        used = [m.digest(m.used(options.folds)) for m in models]
        digest = sha256(json.dumps([used, [m.used(options.folds) for m in models], chosen]).encode()).hexdigest()
        words = ", ".join(f"{name.removesuffix('Engine')} in {precision}" for name, precision in sorted(engines))
        return cls(stages, rules, digest, words, (tuple(paths), runtime, options))

    def predict(self, array: NDArray[Any], spacing_mm: tuple[float, float, float]) -> Labels:
        """Segment an array.

        Parameters
        ----------
        array : ndarray of any real type
            (Z, Y, X), or (C, Z, Y, X) with the model's channels; axes run as in training: for a model of segpipe's own from inferior to
            superior, posterior to anterior, left to right.
        spacing_mm : tuple of float
            (z, y, x).

        Returns
        -------
        ndarray
            (Z, Y, X) stored label values, in the smallest unsigned type that holds all of them.

        Raises
        ------
        CaseError
            If the array has other channels, or cannot be prepared.
        """
        voxels = array[None] if array.ndim == 3 else array
        n_channels = len(self.plan.channel_names)
        if voxels.ndim != 4 or voxels.shape[0] != n_channels:
            raise CaseError(
                f"array of shape {array.shape}; expected ({n_channels}, Z, Y, X), the channels being {', '.join(self.plan.channel_names)}"
            )
        problems = image_problems(voxels)
        if problems:
            raise CaseError("; ".join(f"{rule}: {message}" for rule, message in problems))
        grid = Grid.of_spacing(triple(voxels.shape[1:]), spacing_mm)
        return self.segment(Volume(voxels, grid)).labels

    def remarks(self, image: Volume) -> tuple[str, ...]:
        """Return what is to be known before an image is prepared: that it becomes far larger than those of training.

        Raises
        ------
        NoRoomError
            If it would not fit into the free memory.
        """
        usual = self.plan.usual
        resamplings = [resampling for stage in self.stages for resampling in stage.resamplings(image)]
        for resampling in resamplings:
            resampling.require_room()
        if usual.spacing_mm and not unusual_spacing(image.grid.spacing_mm, usual):
            return ()
        found = (resampling.remark() for resampling in resamplings)
        return tuple(dict.fromkeys(remark for remark in found if remark is not None))

    def prepare(self, image: Volume) -> tuple[Prepared | None, ...]:
        """Do what can be done before the networks: crop, normalise, resample, for each model."""
        return tuple(stage.prepare(image) for stage in self.stages)

    @torch.inference_mode()
    def segment(
        self, image: Volume, prepared: tuple[Prepared | None, ...] | None = None, sink: Sink | None = None
    ) -> Prediction:
        """Segment a volume (C, Z, Y, X) in the plan's orientation.

        Parameters
        ----------
        image : Volume
        prepared : tuple, optional
            What :meth:`prepare` gave.
        sink : callable, optional
            Given the probabilities, plane by plane.

        Raises
        ------
        CaseError
            If the image cannot be prepared.
        """
        # An engine's memory is its own: threads of a server take turns.
        with self._one_at_a_time:
            return self._segment(image, prepared, sink)

    def _segment(self, image: Volume, prepared: tuple[Prepared | None, ...] | None, sink: Sink | None) -> Prediction:
        measured = CaseTrace()
        if prepared is None:
            with measured.timing("prepare"):
                prepared = self.prepare(image)
        if len(self.stages) == 1 and sink is None:
            labels = self.stages[0].segment(image, prepared[0], measured)
        else:
            labels = self._by_probabilities(image, prepared, measured, sink)
        measured.settle()
        oriented = labels.transpose(self.plan.transpose_backward)
        if self.rules:
            with measured.timing("postprocess"):
                cleaned = apply_rules(oriented, image.grid.spacing_mm, self.plan.labels, self.rules)
                oriented = cleaned.astype(oriented.dtype, copy=False)
        return Prediction(oriented, measured)

    def _by_probabilities(
        self, image: Volume, prepared: tuple[Prepared | None, ...], measured: CaseTrace, sink: Sink | None
    ) -> Labels:
        """Labels of the mean of all models' probabilities, in the plan's axis order."""
        regions, sets = self.plan.labels.regions, tuple(self.plan.labels.own_sets.values())
        sources = [s.probabilities(image, p, measured) for s, p in zip(self.stages, prepared, strict=True)]
        placement = sources[0].prepared.placement
        streams = [timed(source.planes, "restore", measured) for source in sources]

        def means() -> Iterator[Tensor]:
            for number, planes in enumerate(zip(*streams, strict=True)):
                mean = planes[0] if len(planes) == 1 else torch.stack([p.to(planes[0].device) for p in planes]).mean(0)
                if sink is not None:
                    # Brought to the host here once, not by each that looks at it.
                    mean = mean.cpu()
                    with measured.timing("write"):
                        sink(placement, number, mean)
                yield mean

        with measured.timing("restore"):
            painted = labels_of(means(), placement.shape_after_crop, regions=regions, sets=sets)
        return self.plan.labels.written(uncrop(painted, placement))


def make_stage(
    model: ModelFile, path: Path, runtime: Runtime, options: PredictorOptions, folds: tuple[str, ...]
) -> LoadedModel:
    """Make a model's networks ready to compute, those of some folds or of all.

    Raises
    ------
    ModelError
        If it lacks a fold, or its plan is of another version.
    """
    missing = [f for f in folds if f not in model.folds]
    if not model.folds:
        raise ModelError(f"{path}: holds no weights; train it, or export it again")
    if missing:
        raise ModelError(f"{path}: has no fold {', '.join(missing)}; it has {', '.join(model.folds)}")
    plan = model.plan
    configuration = plan.configuration(model.configuration)
    try:
        engines = tuple(
            make_engine(plan, configuration, model.folds[f], runtime, name=options.engine, cache=options.cache)
            for f in model.used(folds)
        )
    except (ModelError, NetworkError) as error:
        raise ModelError(f"{path}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Values that no plan of segpipe's has together: layers refuse them in many ways.
        raise ModelError(
            f"{path}: its network cannot be built ({type(error).__name__}: {error}); make the model again"
        ) from error
    first = None
    if model.previous is not None:
        first = make_stage(model.previous, path, runtime, options, model.folds_before(folds))
    ensemble = Ensemble(engines, model.mirror_axes if options.tta else ())
    return LoadedModel(plan, configuration, ensemble, runtime.device, options.step, first)


def _require_alike(stages: tuple[LoadedModel, ...], paths: tuple[Path, ...]) -> None:
    """Raise unless the models take the same images and tell the same labels, plane by plane."""
    first = stages[0].plan
    for stage, path in zip(stages[1:], paths[1:], strict=True):
        for what in ("labels", "channel_names", "orientation", "transpose_forward", "resample_channels"):
            ours, theirs = getattr(first, what), getattr(stage.plan, what)
            same = (
                ours.targets == theirs.targets and ours.regions == theirs.regions
                if what == "labels"
                else ours == theirs
            )
            if not same:
                raise ModelError(
                    f"{path}: has other {what.replace('_', ' ')} than {paths[0]}; their probabilities cannot be averaged"
                )
