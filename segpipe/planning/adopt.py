"""A trained model's plan for another dataset, so that its weights fit."""

from pathlib import Path

from segpipe.core.system_names import real_path
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import PlanError
from segpipe.losses.spec import WeightedTerm
from segpipe.planning.guard import make_guard
from segpipe.planning.make import medians
from segpipe.planning.recipe import TrainingSettings
from segpipe.planning.rules import sided_labels
from segpipe.planning.schema import Decision, Plan
from segpipe.planning.usual import usual_cases


def adopt_plan(theirs: Plan, fingerprint: Fingerprint, source: Path) -> Plan:
    """Return a model's plan with this dataset's labels and measurements.

    Spacing, patches, networks and normalisation stay the model's: its weights were trained to them. What is not the network's is
    this dataset's own.

    Raises
    ------
    PlanError
        If the numbers of channels differ.
    """
    ours, given = fingerprint.channel_names, theirs.channel_names
    if len(ours) != len(given):
        raise PlanError(
            f"--init-from {source}: its images have {len(given)} channel(s) ({', '.join(given)}), the dataset's {len(ours)} "
            f"({', '.join(ours)}); a model of as many channels is needed"
        )
    order = channel_order(given, ours)
    if order is not None:
        theirs = _in_order(theirs, order)
    pair = sided_labels(fingerprint.labels.names)
    last = theirs.transpose_forward.index(2)
    spacing, shape = medians(fingerprint, theirs.transpose_forward)
    # The name alone: the model that is trained by this plan may be given away, and says nothing of this machine.
    decision = Decision(
        rule="plan",
        chosen=f"that of {real_path(source).name}",
        because="training begins with its weights; labels, intensity guard and mirror axes are this dataset's",
    )
    return theirs.model_copy(
        update={
            "dataset_name": fingerprint.dataset_name,
            # Here it is the workspace's own plan, and no variant of one.
            "recipe": theirs.recipe.replace("+", "-"),
            "derived_from": None,
            "asked_network": None,
            "fingerprint_digest": fingerprint.digest(),
            "channel_names": ours,
            "labels": fingerprint.labels,
            "resample_channels": fingerprint.resample_channels,
            "digits": fingerprint.digits,
            "original_median_spacing_mm": spacing,
            "original_median_shape": shape,
            "guard": make_guard(fingerprint.cases),
            "usual": usual_cases(fingerprint.cases, fingerprint.labels),
            "mirror_axes": tuple(a for a in theirs.mirror_axes if not (pair and a == last)),
            "training": _without_names(theirs.training),
            "decisions": (decision,),
        }
    )


def channel_order(given: tuple[str, ...], own: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return where each own channel stands among those of a model that has the same names in another order; None where it has not.

    Parameters
    ----------
    given, own : tuple of str
        Names of the model's channels, and of the dataset's; capitals do not count.
    """
    theirs, ours = [name.casefold() for name in given], [name.casefold() for name in own]
    if theirs == ours or len(set(ours)) < len(ours) or sorted(theirs) != sorted(ours):
        return None
    return tuple(theirs.index(name) for name in ours)


def _in_order(theirs: Plan, order: tuple[int, ...]) -> Plan:
    """Return a plan whose settings of each channel follow another order."""
    configurations = {
        name: c.model_copy(
            update={
                "normalisation": tuple(c.normalisation[n] for n in order),
                "use_mask_for_norm": tuple(c.use_mask_for_norm[n] for n in order),
            }
        )
        for name, c in theirs.configurations.items()
    }
    intensities = tuple(theirs.intensities[n] for n in order) if theirs.intensities else ()
    return theirs.model_copy(update={"configurations": configurations, "intensities": intensities})


def _without_names(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings without what names a label: this dataset may have others."""
    loss = tuple(
        t.model_copy(update={"class_weights": None}) if isinstance(t, WeightedTerm) else t for t in settings.loss
    )
    return settings.model_copy(update={"foreground_weights": {}, "loss": loss})
