"""How many processes this machine's jobs get, and how many threads each of them. No torch."""

from loky import cpu_count

from segpipe.execution.memory import free_bytes

_FREE_SHARE = 0.8


def shared_processors(n_workers: int) -> dict[str, str]:
    """Threads of each of some workers: left alone, each would start as many as there are processors."""
    threads = str(max(cpu_count() // max(n_workers, 1), 1))
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)


def worker_count(workers: int | None, n_items: int, bytes_each: int) -> int:
    """Number of workers that the processors, the items, the free memory and the caller allow."""
    fitting = int(free_bytes() * _FREE_SHARE) // max(bytes_each, 1)
    return int(max(1, min(workers or cpu_count(), n_items, fitting)))
