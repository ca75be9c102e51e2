"""Memory: what is free, and what this process took at most."""

from contextlib import suppress
from pathlib import Path

import psutil

BYTES_A_LABEL_VOXEL = 40
"""What a process that works on label maps holds for each voxel: two maps of 8 bytes, masks, and distances of the part they fill."""


def free_bytes() -> int:
    """Memory that may still be taken: the machine's, or what is left of a container's own limit."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit, used = ((group / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        # Files that were read lately count as used and are given back when memory is asked for.
        cached = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()).get(
            "inactive_file", "0"
        )
        free = min(free, int(limit) - int(used) + int(cached))
    return max(free, 0)


class PeakMemory:
    """The most memory that this process holds while the context lasts, in GB (1e9 bytes); None where the system does not tell."""

    def __init__(self) -> None:
        self.gb: float | None = None

    def __enter__(self) -> "PeakMemory":
        # Linux forgets the peak so far when it is told to.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM:"))
            self.gb = round(int(peak.split()[1]) * 1024 / 1e9, 3)
