"""How torch is made to believe in a simulated device: its reserved backend PrivateUse1, written in Python.

A :class:`DeviceTensor` says that it lies on the device and holds a CPU tensor, `raw`. Each operation on such tensors comes to
:func:`_dispatch`, which checks it, notes what it would make the host wait for, and computes it on the CPU tensors. Whether the host
waits follows torch: what needs to know a value or a size (`item`, `nonzero`, indexing by a mask), and each copy that is not both
non-blocking and from or to pinned memory (ATen's CUDA `copy_kernel`). `torch.cuda.set_sync_debug_mode` watches the same on a GPU.

torch calls this interface experimental. It is tried on the versions that pyproject.toml allows.
"""

import warnings
from functools import partial

import torch
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.simulated.device import SimulatedDevice

BACKEND = "simulated"
_HALVES = (torch.float16, torch.bfloat16)

_VALUE_OR_SIZE_IS_NEEDED = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal",
}  # fmt: skip
_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_MAKING = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm",
    "randperm.generator",
)  # fmt: skip
"""Operations that take no tensor: nothing but the device's name tells torch whose they are."""

# Source: the documentation of torch.use_deterministic_algorithms, versions 2.10 to 2.13.
_WITHOUT_DETERMINISTIC_FORM = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward", "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "max_unpool2d", "max_unpool3d", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "nll_loss2d_forward", "histc", "put_",
}  # fmt: skip

MAX_POOL3D_IS_DETERMINISTIC = (
    "torch.nn.MaxPool3d`" not in torch.use_deterministic_algorithms.__doc__.rpartition("will throw")[2]
)
"""In 2.13 it is, in 2.11 it is not."""
if not MAX_POOL3D_IS_DETERMINISTIC:
    _WITHOUT_DETERMINISTIC_FORM.add("max_pool3d_with_indices_backward")

# Source: "CUDA Ops" in the documentation of torch.amp.
_AUTOCAST_LOWER = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "convolution", "prelu",
    "linear", "matmul", "mm", "mv", "bmm", "einsum", "addmm", "addmv", "addr", "addbmm", "baddbmm", "scaled_dot_product_attention",
)  # fmt: skip
_AUTOCAST_FLOAT32 = (
    "acos", "asin", "cosh", "sinh", "tan", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "softplus",
    "pow.Tensor_Scalar", "pow.Tensor_Tensor", "prod", "prod.dim_int", "sum", "sum.dim_IntList", "cumsum", "cumprod", "logsumexp",
    "softmax.int", "log_softmax.int", "layer_norm", "group_norm", "cosine_similarity", "cdist", "dist", "nll_loss", "kl_div", "l1_loss",
    "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits",
)  # fmt: skip
_AUTOCAST_WIDEST = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "scatter_add", "tensordot",
)  # fmt: skip

_libraries = []
_current: list[SimulatedDevice] = []
"""The device of the context that is open, if one is."""
_generators = {}
"""Random generators of the device, by torch's own address."""


def current():
    """The device of the context that is open."""
    return _current[-1]


def is_there(device):
    """Whether a name or torch.device means the simulated device."""
    if not isinstance(device, (str, torch.device)):
        return False
    return str(device).partition(":")[0] in (BACKEND, *(d.kind for d in _current))


def _by_the_host(name):
    return lambda tensor, *args: getattr(tensor.detach().cpu(), name)(*args)


class DeviceTensor(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, raw):
        if current().kind == "mps" and raw.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype: the MPS framework does not support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(BACKEND, 0),
        )  # fmt: skip
        made.raw = raw
        current().take(raw.untyped_storage())
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, *args, **(kwargs or {}))

    # Functions are taken apart into operations first, as for any device.
    __torch_function__ = torch._C._disabled_torch_function_impl
    # With these, moving a module would put new numbers into its parameters instead of making new parameters.
    __tensor_flatten__ = __tensor_unflatten__ = None

    def _set_data(self, new):
        torch.Tensor.data.__set__(self, new)
        self.raw = new.raw

    data = property(lambda self: self.detach(), _set_data)
    device = property(lambda _: current().device)
    is_cpu = False
    is_cuda = property(lambda _: current().kind == "cuda")
    # What is saved is what torch.load(map_location="cpu") would give.
    __reduce_ex__ = _by_the_host("__reduce_ex__")
    tolist = _by_the_host("tolist")
    __repr__ = _by_the_host("__repr__")
    __format__ = _by_the_host("__format__")


class Generator(torch._C.Generator):
    """torch.Generator, which may be of the device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        if is_there(device):
            _generators[made._cdata] = made
        return made

    @property
    def device(self):
        """Where it draws."""
        return current().device if self._cdata in _generators else torch.device("cpu")


def _dispatch(func, *args, **kwargs):
    try:
        return _compute(func, args, kwargs)
    except Exception as error:
        if torch._C._current_graph_task_id() == -1:
            raise
        # An error in a thread of the autograd engine would end the process: the pass goes on with zeros, and the error is raised
        # when it is over (tests.simulated.stand_ins).
        current().failures.append(error)
        shapes = {id(x): torch.empty_like(x.raw, device="meta") for x in tree_leaves((args, kwargs)) if _is_ours(x)}
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        made = func(*tree_map(lambda x: shapes.get(id(x), x), args), **kwargs)
        return tree_map(lambda x: DeviceTensor(torch.zeros_like(x, device="cpu")) if _is_tensor(x) else x, made)


def _compute(func, args, kwargs):
    if torch.is_inference_mode_enabled() and func.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    ):
        # Autograd, which takes composite operations apart elsewhere, is not there in inference mode.
        return func.decompose(*args, **kwargs)
    device, name = current(), func._overloadpacket.__name__
    device.operations[name] += 1
    if name == "copy_":
        return _copy(*args, **kwargs)
    if name == "_copy_from":
        return _copy(args[1], args[0], *args[2:], **kwargs)
    ours = {id(x.raw): x for x in tree_leaves((args, kwargs)) if _is_ours(x)}
    to_host = kwargs.get("device") is not None and not is_there(kwargs["device"])
    if ours:
        _require_one_device(name, args, kwargs)
        _require_deterministic(name)
        _note_waits(name, args, to_host=to_host)
    kwargs.pop("pin_memory", None)
    made = _on_cpu(func, *tree_map(_raw, (args, kwargs)))
    if to_host:
        return made
    if name in _UNWRITTEN and made.is_floating_point():
        made.fill_(float("nan"))
    if any(x.shape != x.raw.shape for x in ours.values()):
        raise NotImplementedError(f"{func} changes the shape of a tensor in place: this is not simulated")
    found = tree_map(lambda x: ours[id(x)] if id(x) in ours else DeviceTensor(x) if _is_tensor(x) else x, made)
    if name == "fill_" and args[0].ndim == 0:
        # A number that the host has put there: `x[mask] = number` is a kernel of its own on a GPU, and waits for nothing.
        found.is_a_number = not _is_tensor(args[1])
    return found


def _is_tensor(x):
    return isinstance(x, torch.Tensor)


def _is_ours(x):
    return isinstance(x, DeviceTensor)


def _raw(x):
    return torch.device("cpu") if is_there(x) else getattr(x, "raw", x)


def _require_one_device(name, args, kwargs):
    """Raise where a tensor of the host takes part; single numbers may, and indices."""
    operands = tree_leaves((args[0], args[2:])) if name in _INDEXING else tree_leaves((args, kwargs))
    for x in operands:
        if _is_tensor(x) and not _is_ours(x) and (x.ndim or name in ("cat", "stack")):
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {current().device} and {x.device} ({name}, {tuple(x.shape)})"
            )


def _require_deterministic(name):
    if torch.are_deterministic_algorithms_enabled() and name in _WITHOUT_DETERMINISTIC_FORM:
        raise RuntimeError(f"{name} does not have a deterministic implementation, but you set deterministic algorithms")


def _note_waits(name, args, *, to_host):
    note = current().note
    indices = [i for i in args[1] if i is not None] if name in _INDEXING else []
    if to_host and name == "_to_copy":
        note("wait", "copy to the host", args[0].nbytes)
    elif name in _VALUE_OR_SIZE_IS_NEEDED or (name.startswith("masked_fill") and _is_tensor(args[2])):
        note("wait", name)
    elif not all(_is_ours(i) for i in indices):
        note("wait", f"{name} by an index of the host")
    elif any(i.dtype in (torch.bool, torch.uint8) for i in indices):
        put = args[2] if len(args) > 2 else None
        if not getattr(put, "is_a_number", False):
            note("wait", f"{name} by a mask")


def _copy(to, source, non_blocking=False):
    device, down, up = current(), not _is_ours(to), not _is_ours(source)
    if not (down or up):
        to.raw.copy_(source.raw)
        return to
    unwaited = non_blocking and device.is_pinned(to if down else source)
    if unwaited:
        device.note("download" if down else "upload", "copy", to.nbytes)
    else:
        where = "host" if down else "device"
        device.note("wait", f"copy to the {where}{', not pinned' if non_blocking else ''}", to.nbytes)
    if down and unwaited:
        device.send_home(to, source.raw)
    elif down:
        to.copy_(source.raw)
    else:
        to.raw.copy_(source)
    return to


def _on_cpu(func, args, kwargs):
    """Compute with CPU tensors."""
    device = current()
    generators = [x for x in (*args, *kwargs.values()) if isinstance(x, torch._C.Generator)]
    if any(g._cdata not in _generators for g in generators):
        raise RuntimeError(f"Expected a '{device.kind}' device type for generator but found 'cpu'")
    if torch.Tag.nondeterministic_seeded in func.tags and not generators:
        with device.lock, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(device.random_state)
            made, device.random_state = func(*args, **kwargs), torch.get_rng_state()
            return made
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
    # A kernel in half precision that GPUs have and processors lack.
    half = next(x.dtype for x in tree_leaves((args, kwargs)) if _is_tensor(x) and x.dtype in _HALVES)
    args, kwargs = tree_map(lambda x: x.float() if _is_tensor(x) and x.dtype == half else x, (args, kwargs))
    return tree_map(lambda x: x.to(half) if _is_tensor(x) and x.dtype == torch.float32 else x, func(*args, **kwargs))


def _autocast(choose, op, *args, **kwargs):
    """Compute an operation in the precision that `choose` finds for its floating-point tensors."""
    floats = [
        x for x in tree_leaves((args, kwargs)) if _is_ours(x) and x.is_floating_point() and x.dtype != torch.float64
    ]
    dtype, chosen = choose([x.dtype for x in floats] or [None]), {id(x) for x in floats}
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        args, kwargs = tree_map(lambda x: x.to(dtype) if id(x) in chosen else x, (args, kwargs))
        return op(*args, **kwargs)


def register():
    """Register the backend, once a process."""
    if _libraries:
        return
    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: list(_HALVES)
    _setup_privateuseone_for_python_backend(BACKEND, module)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((every, aten))

    def implement(names, function, key):
        for name in names:
            packet, _, overload = name.partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(name, partial(function, op), key, allow_override=True)

    for key in ("PrivateUse1", "CUDA", "XPU", "MPS"):
        every.fallback(_dispatch, key)
        with warnings.catch_warnings():
            # A fallback is not asked where torch has a kernel of its own, and those of a build for CUDA would look for a GPU: they are
            # replaced on purpose, of which torch warns.
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            implement((*_MAKING, "_copy_from", "copy_"), _dispatch, key)
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    implement(_AUTOCAST_LOWER, partial(_autocast, lambda _: torch.get_autocast_dtype(BACKEND)), "AutocastPrivateUse1")
    implement(_AUTOCAST_FLOAT32, partial(_autocast, lambda _: torch.float32), "AutocastPrivateUse1")
    implement(
        _AUTOCAST_WIDEST, partial(_autocast, partial(max, key=lambda dtype: dtype.itemsize)), "AutocastPrivateUse1"
    )
    for types in (_foreach_supported_types, _foreach_utils._foreach_supported_types):
        types.append(DeviceTensor)
