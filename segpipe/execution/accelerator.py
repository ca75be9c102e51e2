"""Whether a GPU can be expected here, found without importing torch."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/kfd", "/usr/lib/wsl/lib/libcuda.so.1")
"""Files of the drivers of NVIDIA and AMD on Linux, and of Windows' Linux."""


def expected_gpu() -> bool:
    """Whether a GPU's driver is present and the installed torch is no build for CPUs alone."""
    try:
        built_for_cpu = version("torch").endswith("+cpu")
    except PackageNotFoundError:
        built_for_cpu = True
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    driver = any(Path(sign).exists() for sign in _SIGNS) or shutil.which("nvidia-smi") is not None
    return driver and not built_for_cpu and not hidden
