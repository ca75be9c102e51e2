"""What a dataset.json declares: channel names and labels, in nnU-Net's and the Decathlon's spelling."""

from typing import Any

from segpipe.errors import DatasetError


def channel_names(declared: dict[str, Any]) -> tuple[str, ...]:
    """Channel names in order; empty when none are declared."""
    names = declared.get("channel_names") or declared.get("modality") or {}
    if isinstance(names, list):
        return tuple(str(n) for n in names)
    if not isinstance(names, dict) or not all(str(k).isdigit() for k in names):
        raise DatasetError(f'dataset.json: channel_names is {names!r}; expected {{"0": "T1", "1": "T2", ...}}')
    return tuple(str(names[k]) for k in sorted(names, key=int))


def label_values(declared: dict[str, Any]) -> dict[str, int] | None:
    """Label names with their values, background included, sorted by value; None when none are declared.

    Raises
    ------
    DatasetError
        If a value is not a non-negative integer, or is given twice, or regions or an ignore label are declared.
    """
    labels = declared.get("labels")
    if not labels:
        return None
    if not isinstance(labels, dict):
        raise DatasetError(f'dataset.json: labels is {labels!r}; expected {{"background": 0, "liver": 1, ...}}')
    if all(str(k).isdigit() for k in labels) and all(isinstance(v, str) for v in labels.values()):
        labels = {name: int(value) for value, name in labels.items()}
    values: dict[str, int] = {}
    for name, value in labels.items():
        values[str(name)] = _label_value(str(name), value)
    if len(set(values.values())) < len(values):
        raise DatasetError(f"dataset.json: labels {values} give one value to two names; give each name its own")
    if 0 not in values.values():
        values["background"] = 0
    return dict(sorted(values.items(), key=lambda item: item[1]))


def _label_value(name: str, value: Any) -> int:
    if isinstance(value, list):
        raise DatasetError(
            f"dataset.json: label {name!r} is a region ({value}); this version trains on plain labels, one value a name"
        )
    if name == "ignore":
        raise DatasetError(
            "dataset.json: an 'ignore' label is declared; this version cannot leave voxels out of the loss"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DatasetError(f"dataset.json: label {name!r} has the value {value!r}; expected a non-negative integer")
    return value
