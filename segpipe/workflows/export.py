"""`segpipe export`: write a model for another program."""

from __future__ import annotations

from segpipe.core.progress import SILENT, Watch
from segpipe.core.writable import require_writable
from segpipe.models.file import read_model
from segpipe.models.nnunet.folder import write_model_folder
from segpipe.workflows.checked import require_models
from segpipe.workflows.import_ import painting_facts
from segpipe.workflows.options import ExportOptions
from segpipe.workflows.page import Page, facts_page


def export(options: ExportOptions, watch: Watch = SILENT) -> dict[str, str]:
    """Write a model so that another program predicts with it; returns what was written, in words.

    nnunet: the folder that nnUNetv2_predict_from_modelfolder reads.
    """
    require_models([options.model], "MODEL")
    require_writable(options.output, "OUTPUT")
    held = read_model(options.model)
    folder = write_model_folder(held, options.output, options.ending)
    labels = held.plan.labels
    numbers = {value: number for number, value in enumerate(labels.values)}
    renumbered = ", ".join(f"{value} becomes {number}" for value, number in numbers.items() if value != number)
    folds = " ".join(held.folds)
    return {
        "folder": str(folder),
        "labels": renumbered or "as they are",
        **painting_facts(labels),
        "left out": "post-processing, which nnU-Net keeps apart" if held.postprocessing_json else "nothing",
        "predict with": f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m {folder} -f {folds}",
    }


def page(facts: dict[str, str], _: ExportOptions) -> Page:
    """Show what was written, in words."""
    return facts_page(facts)
