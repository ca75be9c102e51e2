"""What a person sees: progress on stderr, results on stdout."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segpipe.core.progress import Watch
from segpipe.core.text import shown

MANY = 20
"""Items from which on it is told how far they are, where no bar can show it."""

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from segpipe import Evaluation


def _width() -> int | None:
    """Width for output that is no terminal: wide enough that no cell is cut."""
    return None if Console().is_terminal else 160


def out() -> Console:
    """Console for results."""
    return Console(width=_width(), highlight=False)


def err() -> Console:
    """Console for progress and notes."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_json(value: object) -> None:
    """Print a value as JSON on stdout."""
    import typer

    typer.echo(json.dumps(value, indent=1, default=str))


class RichWatch(Watch):
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
    return Watch() if quiet else RichWatch()


def table(title: str, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> Table:
    """Return a table; the columns numbered in ``right`` are flush right."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def scores(evaluation: "Evaluation") -> list["RenderableType"]:
    """Return the scores per label, and what was not scored."""
    rows = [
        [
            name,
            shown(s.mean_dice),
            shown(s.mean_nsd),
            shown(s.mean_hd95_mm, 2),
            *map(str, (s.n_applicable, s.n_missed, s.n_spurious, s.n_not_applicable)),
        ]
        for name, s in evaluation.by_label.items()
    ]
    means = [shown(evaluation.mean_dice), shown(evaluation.mean_nsd), shown(evaluation.mean_hd95_mm, 2)]
    rows.append(["mean of labels", *means, "", str(evaluation.n_missed), "", ""])
    columns = [
        "label",
        "Dice",
        f"NSD {evaluation.tolerance_mm:g} mm",
        "HD95 mm",
        "cases",
        "missed",
        "false alarms",
        "n/a",
    ]
    made = table(f"Scores of {len(evaluation.cases)} case(s)", columns, rows, right=tuple(range(1, 8)))
    without = ", ".join(evaluation.without_cases)
    return [made, f"in no case, so not in the mean: {without}"] if without else [made]


def failures(title: str, failed: dict[str, str]) -> list["RenderableType"]:
    """Return the cases that were lost, with their reasons; nothing where none was."""
    rows = [[case, reason] for case, reason in sorted(failed.items())]
    return [table(title, ["case", "reason"], rows)] if rows else []


def as_plain(record: Any) -> Any:
    """Turn an artefact, if there is one, into plain values for JSON."""
    return None if record is None else record.model_dump(mode="json")
