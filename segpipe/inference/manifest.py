"""The log of a folder of predictions: what is done, by content, and the table made of it."""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from segpipe.core.regular import lies, open_regular
from segpipe.core.whole import write_atomically
from segpipe.dataset.schema import FileStamp
from segpipe.errors import LockedError
from segpipe.inference.inputs import InputCase
from segpipe.inference.schema import PredictionRow
from segpipe.io.formats import content_of

_ANY_CONTENT = "any"
"""Instead of the digest of a file that 0.1.0.dev7 or an older version wrote beside a mask: it kept none."""
_OPEN_FILES_STAY = os.name == "nt"
"""Whether the system is Windows, which refuses to remove a file that is open."""


class Manifest:
    """predictions.jsonl in an output folder, shared by all processes that work there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = path.with_suffix(".csv")
        self._locks = path.parent / ".segpipe"
        self._rows: dict[str, PredictionRow] = {}
        self._written: dict[str, set[str]] = {}
        self.n_damaged = 0
        """Lines that cannot be read: what they said was written is not known."""
        self._read_up_to = 0

    def rows(self) -> dict[str, PredictionRow]:
        """Latest row of each output, by its file name; a line cut off by a crash is passed over, its case is predicted again."""
        if lies(self.path):
            with open_regular(self.path) as file:
                # What was read before is not read again; a line that has no end yet is somebody's at work.
                file.seek(self._read_up_to)
                lines, end, _ = file.read().rpartition(b"\n")
            self._read_up_to += len(lines) + len(end)
            for line in lines.splitlines():
                try:
                    row = PredictionRow.model_validate_json(line)
                except ValueError:
                    self.n_damaged += 1
                    continue
                self._rows[row.output.name] = row
                self._note_written(row)
        return dict(self._rows)

    def is_own(self, file: Path) -> bool:
        """Whether a file that is there has the name of one that prediction wrote here."""
        return file.name in self._written

    def is_unchanged(self, file: Path) -> bool:
        """Whether what lies at a place is nothing, or what prediction once wrote there; a link or a folder is somebody's."""
        known = self._written.get(file.name, set())
        if not os.path.lexists(file) or (_ANY_CONTENT in known and file.is_file()):
            return True
        return file.is_file() and content_of((file,)) in known

    def _note_written(self, row: PredictionRow) -> None:
        """Remember what was written, whichever row is the latest: a row goes before its files, and a process may be killed between."""
        further = {path.name: row.saved_sha256.get(path.name, _ANY_CONTENT) for path in row.saved}
        for name, digest in {row.output.name: row.output_sha256, **further}.items():
            known = self._written.setdefault(name, set())
            known |= {digest} - {""}
            if digest not in ("", _ANY_CONTENT):
                known.discard(_ANY_CONTENT)

    def append(self, row: PredictionRow) -> None:
        """Add a row; one process at a time, each line whole."""
        with self._log_locked(), self.path.open("a+b") as file:
            # What a crash cut off must not swallow this line.
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(row.model_dump_json().encode() + b"\n")

    def claim(self, output: Path, *, wait: bool) -> FileLock | None:
        """Claim an output; None if another process has it and there is no waiting. The system frees it when the process ends."""
        return self._acquire(_claim_name(output), wait=wait)

    def is_claimed(self, output: Path) -> bool:
        """Whether a process works on an output, or was killed while it did."""
        return (self._locks / f"{_claim_name(output)}.lock").exists()

    def was_killed(self, output: Path) -> bool:
        """Whether a process was killed while it worked on an output: its claim is there, and nobody holds it."""
        if not self.is_claimed(output):
            return False
        claim = self.claim(output, wait=False)
        if claim is not None:
            # The file stays: it is what is remembered.
            claim.release()
            if _OPEN_FILES_STAY:
                # There a lock that is released takes its file along.
                with suppress(OSError):
                    Path(claim.lock_file).touch()
        return claim is not None

    def release(self, lock: FileLock) -> None:
        """Give a case up. Its row is written by now: who finds the file gone, or had opened it before, looks there first."""
        file = Path(lock.lock_file)
        if _OPEN_FILES_STAY:
            # Whoever takes the claim in between finds the row, and removes the file.
            lock.release()
            with suppress(OSError):
                file.unlink()
        else:
            file.unlink(missing_ok=True)
            lock.release()
        self._clear()

    def write_table(self) -> None:
        """Write the latest row of every case as CSV, for people."""
        with self._log_locked():
            rows = [_flat(row) for _, row in sorted(self.rows().items())]
            columns = list(dict.fromkeys(key for row in rows for key in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomically(self.table, text.getvalue().encode())
        names = []
        with suppress(FileNotFoundError):
            names = [p.name for p in self._locks.iterdir()]
        if set(names) <= {"log.lock"}:
            # Nobody else works here: nothing is left behind.
            with suppress(OSError):
                (self._locks / "log.lock").unlink()
            self._clear()

    def _clear(self) -> None:
        with suppress(OSError):
            self._locks.rmdir()

    @contextmanager
    def _log_locked(self) -> Iterator[None]:
        lock = self._acquire("log", wait=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, name: str, *, wait: bool) -> FileLock | None:
        while True:
            self._locks.mkdir(parents=True, exist_ok=True)
            # Released by the thread that writes, not by the one that reads.
            lock = FileLock(self._locks / f"{name}.lock", thread_local=False)
            try:
                lock.acquire(blocking=wait)
            except FileNotFoundError:
                # Another process finished just now, and cleared the folder.
                continue
            except Timeout:
                return None
            except NotImplementedError as error:
                raise LockedError(
                    f"{self._locks.parent}: its file system has no locks, which keep processes from doing a case twice; "
                    "choose an output folder on another one"
                ) from error
            return lock


def _claim_name(output: Path) -> str:
    return sha256(output.name.encode()).hexdigest()[:16]


def still_holds(row: PredictionRow, case: InputCase, model: str, wanted: tuple[Path, ...]) -> bool:
    """Whether a row is of this case as it is now, by this model, and all that was wanted of it is there and whole.

    Files of the same path, size and time are believed to be the same; of others the content is compared. Outputs lie beside the log and
    go by their names: the folder may have moved, or be known by another path.
    """
    if row.status != "done" or row.model != model or row.output.name != case.output.name:
        return False
    if not all(i.exists() for i in case.images) or not case.output.is_file():
        return False
    saved = {path.name for path in row.saved}
    if not all(path.name in saved and path.is_file() for path in wanted):
        return False
    if row.output_sha256 != content_of((case.output,)):
        return False
    return row.images == tuple(FileStamp.of(i) for i in case.images) or row.content == content_of(case.images)


def _flat(row: PredictionRow) -> dict[str, object]:
    """A row as the cells of a table."""
    quality = row.quality
    cells: dict[str, object] = {
        "case": row.case,
        "status": row.status,
        "reason": row.reason or "",
        "doubts": "; ".join(row.doubts),
        "output": str(row.output),
        "images": os.pathsep.join(str(i.path) for i in row.images),
        "elapsed_s": row.elapsed_s,
        **{f"{stage}_s": seconds for stage, seconds in row.seconds.items()},
        "peak_memory_gb": "" if row.peak_memory_gb is None else row.peak_memory_gb,
        "windows": row.n_windows,
        **{f"{name}_ml": volume for name, volume in row.volumes_ml.items()},
        "spacing_mm": " ".join(f"{s:.4g}" for s in quality.spacing_mm),
        "mean_entropy": "" if quality.mean_entropy is None else quality.mean_entropy,
        "disagreement": "" if quality.disagreement is None else quality.disagreement,
        **{f"{name}_components": n for name, n in quality.components.items()},
        "touches_border": "; ".join(quality.touches_border),
        "intensity_drift": "" if quality.intensity_drift is None else quality.intensity_drift,
        "spacing_outside": "; ".join(quality.spacing_outside),
        "volume_outside": "; ".join(quality.volume_outside),
        "engine": row.engine,
        "model": row.model,
        "software": row.software,
    }
    return cells
