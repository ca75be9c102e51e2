"""The context in which a simulated device is there: stand-ins for the functions of torch that ask after a device.

A stand-in takes what the real function takes: arguments are bound to its signature, and a device goes through torch's own check.
(`torch.cuda.set_device("cuda")` fails on every machine, because it wants a number; a stand-in that took it once hid a fault.)
"""

import inspect
from contextlib import ExitStack, contextmanager
from functools import partial, partialmethod
from unittest.mock import patch

import torch

from tests.simulated import backend
from tests.simulated.backend import BACKEND, Generator, is_there
from tests.simulated.device import SimulatedDevice

_SYNC_DEBUG_MODES = {"default": 0, "warn": 1, "error": 2, 0: 0, 1: 1, 2: 2}


@contextmanager
def simulated_device(kind="cuda", **settings):
    """Let a device be there while the context lasts.

    Parameters
    ----------
    kind : str
        cuda, xpu or mps.
    settings
        Fields of :class:`SimulatedDevice`.
    """
    backend.register()
    device = SimulatedDevice(kind, **settings)
    with ExitStack() as stack:
        backend._current.append(device)
        stack.callback(backend._current.pop)
        for holder, name, value in _changes(device):
            stack.enter_context(patch.object(holder, name, value))
        yield device


def _changes(device):
    """What is put in the place of what: (holder, name, stand-in)."""
    module = torch.get_device_module(device.kind)
    for holder in (module, torch.accelerator):
        for name, answer in _answers(device).items():
            # What torch does not have is not there in the simulation either.
            if hasattr(holder, name):
                yield holder, name, _checked(getattr(holder, name), answer, device)
    if hasattr(module, "Event"):
        yield module, "Event", partial(_Event, device)
    autocast, empty, empty_strided = torch.autocast, torch.empty, torch.empty_strided

    def pinned(make, *args, pin_memory=False, **kwargs):
        made = make(*args, **kwargs)
        return device.mark_pinned(made) if pin_memory else made

    yield torch, "Generator", Generator
    yield torch, "autocast", lambda kind, *a, **k: autocast(BACKEND if kind == device.kind else kind, *a, **k)
    yield torch, "empty", partial(pinned, empty)
    yield torch, "empty_strided", partial(pinned, empty_strided)
    # These look for a device by its name before any operation is asked for.
    yield torch, "tensor", partial(_on_backend, torch.tensor)
    yield torch, "as_tensor", partial(_on_backend, torch.as_tensor)
    yield torch.Tensor, "to", partialmethod(partial(_on_backend, torch.Tensor.to))
    yield torch.Tensor, "cuda", lambda tensor, *_, **__: tensor.to(device.device)
    yield torch.Tensor, "pin_memory", lambda tensor, *_: device.pin(tensor)
    yield torch.Tensor, "is_pinned", lambda tensor, *_: device.is_pinned(tensor)
    run = torch.autograd.graph._engine_run_backward
    for holder in (torch.autograd, torch.autograd.graph):
        yield holder, "_engine_run_backward", partial(_backward, device, run)


def _answers(device):
    """What functions of `torch.cuda` (or xpu, mps) and `torch.accelerator` answer; each is given the arguments by name."""
    free = lambda **_: (device.total_bytes - device.allocated, device.total_bytes)  # noqa: E731
    return {
        "is_available": lambda **_: True,
        "is_initialized": lambda **_: True,
        "_lazy_init": lambda **_: None,
        "device_count": lambda **_: device.n_devices,
        "current_device": lambda **_: 0,
        "current_device_index": lambda **_: 0,
        "current_accelerator": lambda **_: torch.device(device.kind),
        "set_device": lambda **_: None,
        "_exchange_device": lambda **_: 0,
        "_maybe_exchange_device": lambda **_: 0,
        "set_device_index": lambda **_: None,
        "get_device_name": lambda **_: f"simulated {device.kind}",
        "get_device_capability": lambda **_: device.capability,
        "is_bf16_supported": lambda **_: device.capability >= (8, 0),
        "manual_seed": lambda seed, **_: device.seed(seed),
        "manual_seed_all": lambda seed, **_: device.seed(seed),
        "get_rng_state": lambda **_: device.random_state.clone(),
        "get_rng_state_all": lambda **_: [device.random_state.clone()],
        "set_rng_state": lambda new_state, **_: setattr(device, "random_state", new_state.clone()),
        "set_rng_state_all": lambda new_states, **_: setattr(device, "random_state", new_states[0].clone()),
        "synchronize": lambda **_: device.note("wait", "synchronize"),
        "mem_get_info": free,
        "get_memory_info": free,
        "memory_allocated": lambda **_: device.allocated,
        "memory_reserved": lambda **_: device.allocated,
        "max_memory_allocated": lambda **_: device.peak,
        "reset_peak_memory_stats": lambda **_: setattr(device, "peak", device.allocated),
        "empty_cache": lambda **_: None,
        "is_current_stream_capturing": lambda **_: False,
        "get_sync_debug_mode": lambda **_: device.sync_debug_mode,
        "set_sync_debug_mode": lambda debug_mode, **_: setattr(
            device, "sync_debug_mode", _SYNC_DEBUG_MODES[debug_mode]
        ),
        "current_stream": lambda **_: _Stream(),
    }


def _checked(real, answer, device):
    """A stand-in that takes what the real function takes."""
    signature = inspect.signature(real)

    def stand_in(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        for name in ("device", "device_index"):
            if name in given.arguments:
                may_be_left_out = signature.parameters[name].default is not inspect.Parameter.empty
                _require_index(given.arguments[name], device, optional=may_be_left_out)
        return answer(**given.arguments)

    return stand_in


def _require_index(given, device, *, optional):
    """Raise what torch raises for a device that a function does not take, or that is not there."""
    own = getattr(torch.get_device_module(device.kind), "_utils", torch._utils)
    check = getattr(own, "_get_device_index", torch._utils._get_device_index)
    index = check(given, optional=optional)
    if not 0 <= index < device.n_devices:
        raise RuntimeError(f"{device.kind} error: invalid device ordinal ({index} of {device.n_devices})")


class _Event:
    """A mark among what the device was given: whoever waits for it gets what was begun before it, and nothing later."""

    def __init__(self, device, enable_timing=False, blocking=False, interprocess=False):
        self.device, self.until = device, 0

    def record(self, stream=None):
        self.until = self.device.n_begun

    def synchronize(self):
        self.device.deliver(self.until)


class _Stream:
    """The only stream."""

    def is_capturing(self):
        return False


def _on_backend(function, *args, **kwargs):
    there = torch.device(BACKEND, 0)
    args = [there if is_there(x) else x for x in args]
    return function(*args, **{key: there if is_there(x) else x for key, x in kwargs.items()})


def _backward(device, run, *args, **kwargs):
    made = run(*args, **kwargs)
    if device.failures:
        failure = device.failures.pop(0)
        device.failures.clear()
        raise failure
    return made
