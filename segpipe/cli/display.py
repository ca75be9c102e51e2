"""What a person sees: progress on stderr, results on stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich.table
from rich.console import Console
from rich.markup import escape

from segpipe.core.progress import Watch
from segpipe.core.text import Table
from segpipe.errors import SegpipeError
from segpipe.workflows.page import Page, failures

MANY = 20
"""Items from which on progress is reported in lines, where no bar can show it."""

if TYPE_CHECKING:
    from rich.progress import Progress


def _width() -> int | None:
    """Width for output that is no terminal: wide enough that no cell is cut."""
    return None if Console().is_terminal else 160


def out() -> Console:
    """Console for results."""
    return Console(width=_width(), highlight=False)


def err() -> Console:
    """Console for progress and notes."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class QuietWatch(Watch):
    """Shows nothing, and asks where somebody can answer."""

    def confirm(self, title: str, rows: Sequence[Sequence[str]], question: str, *, yes: bool) -> bool:
        """Show rows, and ask whether they are right."""
        import typer

        err().print(drawn(Table(title, ["group", "cases"], rows)))
        return yes or (sys.stdin.isatty() and typer.confirm(question, err=True))


class RichWatch(QuietWatch):
    """Progress bars with the time left, on a terminal; a line at the start of each step elsewhere."""

    def __init__(self) -> None:
        self.console = err()

    def note(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(escape(text))

    @contextmanager
    def counting(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
        """Count finished items."""
        if not self.console.is_terminal:
            self.note(f"{title} ..." if total is None else f"{title}: {total} ...")
            yield _each_tenth(title, total, self.note) if total else lambda _: None
            return
        with _progress(self.console) as bars:
            task = bars.add_task(escape(title), total=total, text="")
            yield lambda name: bars.update(task, advance=1, text=escape(name))

    @contextmanager
    def training(self, title: str) -> Iterator[Callable[[float, float | None, str], None]]:
        """Show the share done, the time left, and the loss; off a terminal, a line each tenth."""
        if not self.console.is_terminal:
            yield _tenths(title, self.note)
            return
        with _progress(self.console) as bars:
            task = bars.add_task(escape(title), total=1.0, text="")
            yield lambda share, _left, text: bars.update(task, completed=share, text=escape(text))


def _each_tenth(title: str, total: int, note: Callable[[str], None]) -> Callable[[str], None]:
    """Tell of finished items, a line each tenth of them; of few, nothing."""
    done = 0

    def show(name: str) -> None:
        nonlocal done
        done += 1
        if total >= MANY and done * 10 // total > (done - 1) * 10 // total:
            note(f"{title}: {done} of {total}, {name}")

    return show


def _tenths(title: str, note: Callable[[str], None]) -> Callable[[float, float | None, str], None]:
    shown = -1

    def show(share: float, left: float | None, text: str) -> None:
        nonlocal shown
        if int(share * 10) > shown:
            shown = int(share * 10)
            eta = "" if left is None else f", about {left / 60:.1f} min left"
            note(f"{title}: {share:.0%}, {text}{eta}")

    return show


def _progress(console: Console) -> "Progress":
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )


def watch(*, quiet: bool) -> Watch:
    """Return the watch for a command."""
    return QuietWatch() if quiet else RichWatch()


def drawn(table: Table) -> rich.table.Table:
    """Return a table as rich draws it."""
    made = rich.table.Table(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        made.add_column(column, justify="right" if number in table.right else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def show(page: Page, *, as_json: bool) -> None:
    """Print a page, as JSON or as lines and tables."""
    if as_json:
        print(json.dumps(page.json, indent=1, default=str))  # noqa: T201 - the result itself
        return
    if page.refused:
        raise SegpipeError(page.refused)
    for part in (*page.parts, *failures(page.lost, page.failed)):
        if isinstance(part, str):
            out().print(part, markup=False, soft_wrap=True)
        else:
            out().print(drawn(part))
