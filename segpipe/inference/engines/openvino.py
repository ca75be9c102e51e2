"""A network computed by OpenVINO on a CPU: static shapes, compiled once and kept."""

import json
import os
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Lock

import segpipe.inference.engines.no_reports  # noqa: F401

# isort: split
import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from segpipe.core.regular import lies, regular
from segpipe.core.whole import write_atomically
from segpipe.execution.device import Runtime, cpu_flags
from segpipe.execution.quiet import ignored_warnings
from segpipe.inference.engines.base import precision_name, prediction_network
from segpipe.models.file import Weights, weights_digest
from segpipe.networks.blocks import ExactConv3d, InstanceNorm
from segpipe.networks.segmenter import Segmenter
from segpipe.planning.schema import Configuration, Plan
from segpipe.version import __version__

_HINTS = {None: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_MOST_KEPT = 20
"""Compiled networks in the cache; the ones used longest ago go."""
_DIGEST_BYTES = sha256().digest_size
_ONE_AT_A_TIME = Lock()
"""Held by a thread that loads a model: torch's tracer keeps the names of what it traces in one place for all of them."""


class OpenVinoEngine:
    """A network computed by OpenVINO."""

    def __init__(self, compiled: ov.CompiledModel, n_inputs: int, batch: int, precision: str) -> None:
        self.request = compiled.create_infer_request()
        self.n_inputs, self.batch, self.precision = n_inputs, batch, precision

    def __call__(self, tiles: Tensor) -> Tensor:
        """See :class:`Engine`; a batch that is not full is filled up."""
        n = tiles.shape[0]
        filled = tiles if n == self.batch else torch.cat((tiles, tiles[:1].expand(self.batch - n, *tiles.shape[1:])))
        self.request.infer([filled.contiguous().numpy()], share_inputs=True)
        # The memory is the request's own: it is read before the next tiles are computed.
        return torch.from_numpy(self.request.get_output_tensor(0).data)[:n]


def openvino_engine(
    plan: Plan, configuration: Configuration, weights: Weights, runtime: Runtime, *, batch: int, cache: Path | None
) -> OpenVinoEngine:
    """Compile a fold's network for batches of one size, or take it from the cache.

    Parameters
    ----------
    plan : Plan
    configuration : Configuration
    weights : dict of Tensor
    runtime : Runtime
        Whose reduced precision is used, or float32.
    batch : int
    cache : Path, optional
        Folder of compiled networks; one that cannot be written is done without.
    """
    hint = _HINTS[runtime.autocast]
    n_inputs = plan.n_inputs(configuration)
    shape = (batch, n_inputs, *configuration.patch_size)
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = _core()
    kept = None if cache is None else cache / f"{_key(configuration, weights, shape, options)}.blob"
    compiled = _from_cache(core, kept, options)
    if compiled is None:
        network, _ = prediction_network(plan, configuration, weights)
        compiled = core.compile_model(converted(network, shape), "CPU", options)
        _keep(compiled, kept)
    return OpenVinoEngine(compiled, n_inputs, batch, precision_name(runtime))


@torch.no_grad()
def converted(network: Segmenter, shape: tuple[int, ...]) -> ov.Model:
    """Return a network of this project as OpenVINO's graph, for one shape of input (N, C, *patch)."""
    _as_plain_torch(network)
    # Traced here instead of by OpenVINO's converter. Shapes are static, as a trace needs them to be; torch warns of that, and that
    # `torch.export` is newer: it takes seconds more to load.
    with (
        _ONE_AT_A_TIME,
        ignored_warnings(torch.jit.TracerWarning),
        ignored_warnings(DeprecationWarning, r"`torch\.jit\."),
    ):
        traced = torch.jit.trace(network, torch.zeros(shape), check_trace=False)  # type: ignore[no-untyped-call]
    # The decoder is kept until the model is converted: the graph asks it for every operation. Weights are copied, so that the graph
    # does not live on memory of torch's.
    decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: ov.PartialShape(list(shape))})
    return model


class _PlainInstanceNorm(nn.Module):
    """The same numbers by torch's own function, which converts to one operation."""

    def __init__(self, norm: InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class _PlainConv3d(nn.Module):
    """The same convolution by torch's own function, whatever the shape of the map."""

    def __init__(self, conv: ExactConv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv3d.forward(self.conv, x)


def _as_plain_torch(module: nn.Module) -> None:
    """Put torch's own layers where this project has faster ones for training."""
    for name, child in module.named_children():
        if isinstance(child, InstanceNorm):
            setattr(module, name, _PlainInstanceNorm(child))
        elif isinstance(child, ExactConv3d):
            setattr(module, name, _PlainConv3d(child))
        _as_plain_torch(child)


def _core() -> ov.Core:
    with _ONE_AT_A_TIME:
        return _only_core()


@cache
def _only_core() -> ov.Core:
    """One for the whole process, never destroyed.

    Each Core lends the thread a stack for signals and, when it goes, gives back the one before: of two that go in the order in which they
    came, the second gives back the first one's, which is freed by then, and the next signal (Ctrl-C) kills the process.
    """
    return ov.Core()


def _key(configuration: Configuration, weights: Weights, shape: tuple[int, ...], options: dict[str, object]) -> str:
    """Digest of all that a compiled network follows from."""
    about = [
        configuration.network.model_dump(mode="json"),
        shape,
        options,
        ov.get_version(),
        __version__,
        sorted(cpu_flags()),
    ]
    return sha256((json.dumps(about) + weights_digest(weights)).encode()).hexdigest()


def _from_cache(core: ov.Core, kept: Path | None, options: dict[str, object]) -> ov.CompiledModel | None:
    if kept is None or not lies(kept):
        return None
    try:
        # Without its options an imported network computes in the processor's fastest precision, whatever it was compiled for.
        compiled = core.import_model(_unsealed(regular(kept).read_bytes(), kept.stem), "CPU", options)
        os.utime(kept)
    except (RuntimeError, OSError, ValueError):
        # Damaged, or of another build: compiled anew.
        return None
    return compiled


def _keep(compiled: ov.CompiledModel, kept: Path | None) -> None:
    if kept is None:
        return
    try:
        write_atomically(kept, _sealed(compiled.export_model().getbuffer(), kept.stem))
        oldest_first = sorted(kept.parent.glob("*.blob"), key=lambda p: p.stat().st_mtime)
        for blob in oldest_first[:-_MOST_KEPT]:
            blob.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        # A read-only home, a full disk: the cache only saves seconds.
        return


def _sealed(content: bytes | memoryview, key: str) -> bytes:
    """Content with the sha256 of its key and itself in front: OpenVINO compares no checksum, and computes with damaged weights."""
    return _digest(content, key) + bytes(content)


def _unsealed(sealed: bytes, key: str) -> bytes:
    """Content without the digest in front; raises ValueError where that does not fit."""
    digest, content = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES:]
    if _digest(content, key) != digest:
        raise ValueError("damaged, or another network")
    return content


def _digest(content: bytes | memoryview, key: str) -> bytes:
    hashed = sha256(key.encode())
    hashed.update(content)
    return hashed.digest()
