"""A simulated device: what lies on it, what was computed there, and what the host waited for.

Tensors of the device hold ordinary memory, and torch's CPU kernels compute on it. The device is stricter than a GPU:

- a tensor of the host that meets one of the device is an error (but for single numbers, as on a GPU);
- memory that nobody wrote is NaN, and so is what is still on its way to the host;
- random numbers come from a state of the device's own;
- its memory is counted, and can run out;
- an operation without a deterministic form on CUDA is an error where deterministic algorithms are asked for.

Everything that makes the host wait, and every copy, is noted with the line of segpipe that asked for it.

It cannot show: the numbers of cuDNN and cuBLAS, speed, memory that kernels take for themselves, races between kernels, streams, several
devices, `torch.compile`, child processes, and kernels that a real device lacks (`operations` lists what has to be there).

How it works: see :mod:`tests.simulated.backend`.
"""

import sys
import threading
import warnings
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

PACKAGE = "segpipe"


class Event(NamedTuple):
    """Something that the host did with the device."""

    kind: str
    """wait (until the device has done all that it was given), upload or download (neither is waited for)."""
    what: str
    where: str
    """Line of segpipe, or node of a backward pass."""
    n_bytes: int


class Copy(NamedTuple):
    """Numbers on their way to the host."""

    to: torch.Tensor
    values: torch.Tensor


@dataclass(eq=False)
class SimulatedDevice:
    """One device, while a test lasts."""

    kind: str = "cuda"
    """cuda, xpu or mps."""
    capability: tuple[int, int] = (8, 0)
    """Compute capability of CUDA: (8, 0) has bfloat16, (7, 0) float16, (6, 0) neither."""
    total_bytes: int = 2**33
    n_devices: int = 1
    """As many are named and counted; tensors lie on the first alone."""
    events: list[Event] = field(default_factory=list)
    operations: Counter = field(default_factory=Counter)
    """How often each kernel ran."""
    peak: int = 0
    """Most bytes that were allocated at a time."""
    failures: list[Exception] = field(default_factory=list)
    """Errors inside a backward pass, raised when it is over."""

    sync_debug_mode: int = 0
    """As torch.cuda has it: 0 says nothing of waits, 1 warns, 2 raises."""

    def __post_init__(self):
        self.device = torch.device(self.kind, 0)
        self.lock = threading.RLock()
        self.sizes = {}
        self.pinned = set()
        self.on_the_way = []
        self.n_begun = 0
        """Copies to the host so far."""
        self.seed(0)

    # Waiting

    @property
    def waits(self):
        """How often the host waited, by place."""
        return Counter(event.where for event in self.events if event.kind == "wait")

    def note(self, kind, what, n_bytes=0):
        """Note an event with its place in the code."""
        self.events.append(Event(kind, what, _place(), n_bytes))
        if kind == "wait":
            self.deliver(self.n_begun)
            self._tell(what)

    def _tell(self, what):
        """What torch.cuda.set_sync_debug_mode asks for; torch itself does not see copies that were to be non-blocking, nor synchronize."""
        if self.sync_debug_mode == 0 or "not pinned" in what or what == "synchronize":
            return
        if self.sync_debug_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation ({what})")
        warnings.warn(f"called a synchronizing CUDA operation ({what})", UserWarning, stacklevel=4)

    def deliver(self, until):
        """Let copies arrive that were begun before a number of them."""
        with self.lock:
            n = max(len(self.on_the_way) - (self.n_begun - until), 0)
            arrived, self.on_the_way[:n] = self.on_the_way[:n], []
        for copy in arrived:
            copy.to.copy_(copy.values)

    def send_home(self, to, values):
        """Begin a copy to pinned memory; until something is waited for, NaN (or 0) is there."""
        with self.lock:
            self.on_the_way.append(Copy(to, values.clone()))
            self.n_begun += 1
        to.fill_(float("nan") if to.is_floating_point() else 0)

    def pin(self, tensor):
        """Return a copy that counts as pinned."""
        return self.mark_pinned(tensor.clone())

    def mark_pinned(self, tensor):
        """Count a tensor's memory as pinned."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self.pinned.add(key)
        weakref.finalize(storage, self.pinned.discard, key)
        return tensor

    def is_pinned(self, tensor):
        """Whether a tensor of the host is pinned."""
        return tensor.untyped_storage().data_ptr() in self.pinned

    # Memory

    @property
    def allocated(self):
        """Bytes of the tensors that are on the device now."""
        return sum(self.sizes.values())

    def take(self, storage):
        """Count a tensor's memory, once; an error where it does not fit."""
        key, n = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        if self.allocated + n > self.total_bytes and not self.failures:
            free = self.total_bytes - self.allocated
            raise torch.OutOfMemoryError(f"simulated device: {n} bytes are asked for, {free} are free")
        self.sizes[key] = n
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self.sizes.pop, key, None)

    # Random numbers

    def seed(self, number):
        """Begin the device's random numbers anew."""
        self.random_state = torch._C.Generator().manual_seed(number).get_state()


def _place():
    """The innermost line of the package that is being run, else the node of a backward pass."""
    frame = sys._getframe(2)
    while frame is not None:
        _, found, rest = frame.f_code.co_filename.replace("\\", "/").rpartition(f"/{PACKAGE}/")
        if found:
            return f"{PACKAGE}/{rest}:{frame.f_lineno}"
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    return "elsewhere" if node is None else node.name()
