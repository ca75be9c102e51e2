"""What a person is shown while a command runs. The default shows nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Watch:
    """Receives notes and progress; the command line's own draws them."""

    def note(self, text: str) -> None:
        """Take note of a sentence."""

    @contextmanager
    def counting(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
        """Yield a function to be called with each finished item's name."""
        yield lambda _: None

    def confirm(self, title: str, rows: Sequence[Sequence[str]], question: str, *, yes: bool) -> bool:
        """Return whether rows that are shown are right: where nobody is asked they are, and ``yes`` answers in advance."""
        return True

    @contextmanager
    def training(self, title: str) -> Iterator[Callable[[float, float | None, str], None]]:
        """Yield a function to be called with the share done, the seconds left, and what to show."""
        yield lambda _share, _left, _text: None


SILENT = Watch()
"""Takes note of nothing."""
