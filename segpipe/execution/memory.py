"""Memory: what is free, and what this process took at most."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from segpipe.core.text import rounded
from segpipe.errors import NoRoomError

BYTES_A_LABEL_VOXEL = 40
"""What a process that works on label maps holds for each voxel: two maps of 8 bytes, masks, and distances of the part they fill."""


USABLE = 0.9
"""Share of the free memory that a case may take; what is free is an estimate."""
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes() -> int:
    """Memory that this process may still take: the machine's, or what is left of a limit on its group or on the process itself."""
    free = int(psutil.virtual_memory().available)
    return max(min([free, *_left_of_groups(), *_left_of_process()]), 0)


def require_room_for(path: Path, n_bytes: int) -> None:
    """Raise unless what is in a file fits into the free memory.

    Parameters
    ----------
    path : Path
        The file, for the message.
    n_bytes : int
        What it takes in memory.

    Raises
    ------
    NoRoomError
        With both sizes.
    """
    free = free_bytes()
    if n_bytes > USABLE * free:
        raise NoRoomError(
            f"{path}: out of memory: its content takes {rounded(n_bytes / 1e9)} GB of {rounded(free / 1e9)} GB free; "
            "is it the right file? Else use a machine with more memory"
        )


def _left_of_groups() -> Iterator[int]:
    """Bytes left of the limit of each control group that this process is in (a container's, a batch system's), of either version."""
    for root, path, names in _groups():
        # A container may see its own group as the root.
        for folder in dict.fromkeys([*(root / above for above in (path, *path.parents)), root]):
            with suppress(OSError, ValueError):
                yield _left_of(folder, *names)


def _groups() -> Iterator[tuple[Path, Path, tuple[str, str, str]]]:
    """Where groups that limit memory are mounted, this process's own below it, and the names of their files."""
    lines: list[str] = []
    with suppress(OSError):
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    for line in lines or ["0::/"]:
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        own = Path(path.lstrip("/"))
        if "memory" in kinds.split(","):
            yield _GROUPS / "memory", own, _VERSION_1
        elif number == "0":
            yield _GROUPS, own, _VERSION_2


def _left_of(folder: Path, limit: str, used: str, cached: str) -> int:
    """Bytes left of one group's limit; raises where it has none."""
    most, taken = (int((folder / name).read_text(encoding="utf-8")) for name in (limit, used))
    # Files that were read lately count as used and are given back when memory is asked for.
    returned = 0
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        returned = int(stat.get(cached, "0"))
    return most - taken + returned


def _left_of_process() -> Iterator[int]:
    """Bytes left of the limits that a shell set (ulimit -v, ulimit -d)."""
    with suppress(ImportError, OSError, psutil.Error):
        import resource

        taken = psutil.Process().memory_info()
        for kind, held in ((resource.RLIMIT_AS, taken.vms), (resource.RLIMIT_DATA, getattr(taken, "data", 0))):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                yield limit - held


class PeakMemory:
    """The most memory that this process holds while the context lasts, in GB (1e9 bytes); None where the system does not tell."""

    def __init__(self) -> None:
        self.gb: float | None = None

    def __enter__(self) -> "PeakMemory":
        # Linux forgets the peak so far when it is told to.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM:"))
            self.gb = round(int(peak.split()[1]) * 1024 / 1e9, 3)
