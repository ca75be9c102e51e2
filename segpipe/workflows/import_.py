"""`segpipe import`: write a trained nnU-Net as a segpipe model."""

from __future__ import annotations

from zipfile import is_zipfile

from segpipe.core.labels import Labels
from segpipe.core.painting import painting_problems
from segpipe.core.progress import SILENT, Watch
from segpipe.core.writable import require_writable_file
from segpipe.errors import SegpipeError
from segpipe.models.nnunet.folder import read_model_folder
from segpipe.workflows.options import ImportOptions
from segpipe.workflows.page import Page, facts_page


def import_(options: ImportOptions, watch: Watch = SILENT) -> dict[str, str]:
    """Write a trained nnU-Net as a segpipe model; returns what it is, in words.

    Nothing in the folder is executed. What cannot be honoured is refused by name.
    """
    if options.output.suffix != ".segpipe":
        raise SegpipeError(f"{options.output}: a model file ends in .segpipe; give such a name")
    require_writable_file(options.output, "MODEL", is_zipfile)
    model = read_model_folder(options.folder, folds=options.folds, checkpoint=options.checkpoint)
    model.write(options.output)
    plan = model.plan
    configuration = plan.configuration(model.configuration)
    return {
        "model": str(options.output),
        "configuration": model.configuration,
        "network": f"{configuration.network.architecture}, {len(configuration.network.features)} stages",
        "patch": "x".join(map(str, configuration.patch_size)),
        "spacing": " x ".join(f"{s:.4g}" for s in configuration.spacing_mm) + " mm",
        "channels": ", ".join(plan.channel_names),
        "labels": plan.labels.describe(),
        **painting_facts(plan.labels),
        "folds": ", ".join(model.folds),
        "mirror axes": ", ".join(map(str, model.mirror_axes)) or "none",
        "first stage": "none" if model.previous is None else model.previous.configuration,
    }


def painting_facts(labels: Labels) -> dict[str, str]:
    """Return what nnU-Net's painting of regions loses, in words; nothing of labels that exclude each other."""
    if not labels.regions:
        return {}
    problems = "; ".join(painting_problems(labels.targets))
    return {"painting": f"as nnU-Net's, which loses regions: {problems}" if problems else "every region is given back"}


def page(facts: dict[str, str], _: ImportOptions) -> Page:
    """Show what was written, in words."""
    return facts_page(facts)
