"""nnU-Net's checkpoints: read without executing anything, and written so that nnU-Net loads them."""

import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.errors import ModelError
from segpipe.models.file import Weights
from segpipe.models.torch_file import load_tested
from segpipe.networks.segmenter import Segmenter

_CONV_NORM = ("conv.", "norm.")


@dataclass(frozen=True)
class Checkpoint:
    """What prediction needs of a checkpoint."""

    weights: Weights
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Nothing in it is executed: besides tensors and plain values only NumPy's scalars are let in.

    Raises
    ------
    ModelError
        If it is missing, damaged, holds other things, or lacks what prediction needs.
    """
    # Files of NumPy 1 name the module in another way; it is the same function.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            held = load_tested(path)
        weights = {_plain(name): value for name, value in held["network_weights"].items() if not _is_alias(name)}
        return Checkpoint(
            weights,
            trainer=str(held["trainer_name"]),
            configuration=str(held["init_args"]["configuration"]),
            mirror_axes=tuple(int(a) for a in held.get("inference_allowed_mirroring_axes") or ()),
        )
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such checkpoint") from error
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path}: {error}; copy it again from its source") from error
    except KeyError as error:
        raise ModelError(f"{path}: lacks {error}, which nnU-Net's checkpoints have") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: damaged, or holds more than weights and plain values ({first})") from error


def checkpoint_bytes(
    weights: Weights, *, trainer: str, mirror_axes: tuple[int, ...], init_args: dict[str, Any]
) -> bytes:
    """Return the content of a checkpoint that nnU-Net predicts with."""
    held = {
        "network_weights": with_aliases(weights),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": init_args,
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": mirror_axes or None,
    }
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def fitted(weights: Weights, network: Segmenter, where: str) -> Weights:
    """Return the weights in the network's order, with zeros for biases of convolutions that were trained without.

    Raises
    ------
    ModelError
        If they are not the network's.
    """
    expected = network.state_dict()
    complete = {
        name: weights.get(name, torch.zeros(value.shape) if _is_conv_bias(name) else None)
        for name, value in expected.items()
    }
    missing = [name for name, value in complete.items() if value is None]
    unknown = [name for name in weights if name not in expected]
    other = [n for n, v in complete.items() if v is not None and v.shape != expected[n].shape]
    if missing or unknown or other:
        described = [f"{len(missing)} missing (such as {missing[0]})"] if missing else []
        described += [f"{len(unknown)} unknown (such as {unknown[0]})"] if unknown else []
        described += [
            f"{len(other)} of another shape (such as {other[0]}: {list(complete[n].shape)}, expected {list(expected[n].shape)})"  # type: ignore[union-attr]
            for n in other[:1]
        ]
        raise ModelError(f"{where}: the weights are not those of the planned network: {'; '.join(described)}")
    return {name: value.contiguous() for name, value in complete.items() if value is not None}


def with_aliases(weights: Weights) -> Weights:
    """Add the second names under which nnU-Net's networks hold the same tensors; its loading is strict."""
    named = dict(weights)
    for name, value in weights.items():
        for number, part in enumerate(_CONV_NORM):
            before, found, after = name.rpartition(part)
            if found and not after.count("."):
                named[f"{before}all_modules.{number}.{after}"] = value
    encoder = {f"decoder.{name}": value for name, value in named.items() if name.startswith("encoder.")}
    return named | encoder


def _plain(name: str) -> str:
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _is_alias(name: str) -> bool:
    return ".all_modules." in name or _plain(name).startswith("decoder.encoder.")


def _is_conv_bias(name: str) -> bool:
    return name.endswith(".conv.bias") or (name.endswith(".bias") and ".transpconvs." in name)


def as_float(weights: dict[str, Tensor]) -> Weights:
    """Return weights in single precision; counters stay as they are."""
    return {n: w.float() if w.is_floating_point() else w for n, w in weights.items()}
