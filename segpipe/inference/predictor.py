"""A model loaded once, ready to predict any number of volumes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.augment.previous import one_hot
from segpipe.errors import ModelError
from segpipe.inference.restore import largest_at, painted_at, uncrop
from segpipe.inference.sliding import Forward, mirrored, sliding_logits
from segpipe.modelfile import ModelFile, model_in
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.prepare import prepare
from segpipe.runtime import Runtime
from segpipe.volume import Volume


@dataclass(frozen=True)
class Predictor:
    """Networks of one model, on their device."""

    plan: Plan
    configuration: Configuration
    networks: tuple[Forward, ...]
    """One a fold; their logits are averaged."""
    runtime: Runtime
    digest: str
    """sha256 of plan and weights, with the folds and the mirroring that are used."""
    step: float = 0.5
    previous: "Predictor | None" = None
    """Whose segmentation is a further input (cascade)."""

    @classmethod
    def load(
        cls, path: Path, runtime: Runtime, *, folds: tuple[str, ...] = (), tta: bool = True, step: float = 0.5
    ) -> "Predictor":
        """Load a model.

        Parameters
        ----------
        path : Path
            A .segpipe file, or a folder that holds model.segpipe.
        runtime : Runtime
        folds : tuple of str
            Folds to ensemble; empty for all the numbered ones, or "all" where there is no other.
        tta : bool
            Average over mirrored images, along the axes that were mirrored in training.
        step : float
            Largest step of the sliding window, as a share of the patch.

        Raises
        ------
        ModelError
            If the file is no model or lacks a fold.
        """
        path = model_in(path)
        model = ModelFile.read(path)
        return cls._of(model, path, runtime, folds=folds, tta=tta, step=step)

    @classmethod
    def _of(
        cls, model: ModelFile, path: Path, runtime: Runtime, *, folds: tuple[str, ...], tta: bool, step: float
    ) -> "Predictor":
        missing = [f for f in folds if f not in model.folds]
        if missing:
            raise ModelError(f"{path}: has no fold {', '.join(missing)}; it has {', '.join(model.folds)}")
        try:
            plan = Plan.model_validate_json(model.plan_json)
        except ValueError as error:
            raise ModelError(
                f"{path}: its plan is from another version of segpipe ({error}); export it again"
            ) from error
        configuration = plan.configuration(model.configuration)
        axes = model.mirror_axes if tta else ()
        used = model.used(folds)
        networks = tuple(mirrored(_network(plan, configuration, model.folds[f], runtime), axes) for f in used)
        digest = f"{model.digest(used)}:folds={','.join(used)}:mirror={axes}:step={step}"
        previous = model.previous
        before = model.folds_before(folds)
        first = None if previous is None else cls._of(previous, path, runtime, folds=before, tta=tta, step=step)
        return cls(plan, configuration, networks, runtime, digest, step, first)

    @torch.inference_mode()
    def predict(self, image: Volume) -> NDArray[np.unsignedinteger]:
        """Segment an image.

        Parameters
        ----------
        image : Volume
            (C, Z, Y, X) in the plan's orientation.

        Returns
        -------
        ndarray
            (Z, Y, X) stored label values, in the smallest unsigned type that holds all of them.

        Raises
        ------
        CaseError
            If the image cannot be prepared.
        """
        found = None if self.previous is None else self.previous.predict(image)
        prepared = prepare(image, found, self.plan, self.configuration)
        voxels = torch.from_numpy(prepared.image)
        if prepared.segmentation is not None:
            indices = torch.from_numpy(prepared.segmentation)[None]
            voxels = torch.cat((voxels, one_hot(indices, len(self.plan.labels.values) - 1)[0]))
        total: Tensor | None = None
        for forward in self.networks:
            logits = sliding_logits(
                forward,
                voxels,
                self.configuration.patch_size,
                device=self.runtime.device,
                step=self.step,
            )
            total = logits if total is None else total.add_(logits)
        assert total is not None
        placement = prepared.placement
        targets_at = painted_at if self.plan.labels.regions else largest_at
        targets = targets_at(total, placement.shape_after_crop, placement.apart)
        labels = self.plan.labels.written(uncrop(targets, placement))
        return labels.transpose(self.plan.transpose_backward)


def _network(plan: Plan, configuration: Configuration, weights: dict[str, Tensor], runtime: Runtime) -> Forward:
    n_previous = 0 if configuration.previous_stage is None else len(plan.labels.values) - 1
    network = build_network(configuration.network, len(plan.channel_names) + n_previous, plan.labels.n_outputs)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        package = configuration.network.package
        made_with = "" if package is None else f" (of {package} when it was trained)"
        raise ModelError(f"the weights do not fit the planned network{made_with}: {error}") from error
    memory_format = fast_memory_format(configuration.dims)
    to_device(network, runtime.device).eval()

    def forward(x: Tensor) -> Tensor:
        with runtime.precision():
            logits: Tensor = network(x.contiguous(memory_format=memory_format))
        # Windows and mirror images are summed: in full precision.
        return logits.float()

    return forward
