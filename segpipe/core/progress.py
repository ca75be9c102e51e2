"""What a person may be told while a command runs. The default tells nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """Receives notes and progress; the command line's own draws them."""

    def note(self, text: str) -> None:
        """Take note of a sentence."""

    @contextmanager
    def counting(self, title: str, total: int | None) -> Iterator[Callable[[str], None]]:
        """Yield a function to be called with each finished item's name."""
        yield lambda _: None

    @contextmanager
    def training(self, title: str) -> Iterator[Callable[[float, float | None, str], None]]:
        """Yield a function to be called with the share done, the seconds left, and what to show."""
        yield lambda _share, _left, _text: None


SILENT = Watch()
"""Takes note of nothing."""
