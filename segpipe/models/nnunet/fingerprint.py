"""nnU-Net's fingerprints as segpipe's. No torch."""

from collections.abc import Mapping
from typing import Any

from segpipe.core.labels import Labels
from segpipe.dataset.fingerprint.schema import CaseFingerprint, Fingerprint


def read_fingerprint(mapping: Mapping[str, Any]) -> Fingerprint:
    """Fingerprint from plain numbers: what a planner needs and nothing more.

    Parameters
    ----------
    mapping : mapping
        ``num_training``, ``channel_names``, ``num_labels_with_background``, ``spacings`` and ``shapes_after_crop``
        (one triple (z, y, x) a case), ``median_relative_size_after_cropping``.

    Returns
    -------
    Fingerprint
        Without intensities, and with labels named after their number.
    """
    n_labels = int(mapping["num_labels_with_background"])
    return Fingerprint(
        dataset_name=str(mapping.get("name", "imported")),
        dataset_digest="",
        software="",
        channel_names=tuple(str(c) for c in mapping["channel_names"]),
        labels=Labels.plain({f"label_{i}": i for i in range(1, n_labels)}),
        n_training_cases=int(mapping["num_training"]),
        cases=tuple(
            CaseFingerprint(
                case=f"case_{i:05d}", shape=tuple(shape), spacing_mm=tuple(spacing), shape_after_crop=tuple(shape)
            )
            for i, (spacing, shape) in enumerate(zip(mapping["spacings"], mapping["shapes_after_crop"], strict=True))
        ),
        intensities=(),
        median_relative_size_after_cropping=float(mapping["median_relative_size_after_cropping"]),
    )
