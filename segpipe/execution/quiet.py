"""Warnings and log messages of other packages, kept back for a while. What the calling program chose stays as it is."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any


@contextmanager
def ignored_warnings(category: type[Warning], message: str = "") -> Iterator[None]:
    """Ignore some warnings while the context lasts, in every thread.

    Python's filters belong to the whole process. ``warnings.catch_warnings`` puts back a whole list of filters: of two threads that use
    it at the same time, the later one puts back the filters of the earlier one. Here one filter is added, and the same one is removed.

    Parameters
    ----------
    category : type of Warning
        Kind of the warnings.
    message : str
        Regular expression that the beginning of the message matches.
    """
    own = ("ignore", re.compile(message), category, None, 0)
    # In front of all others, also where one is equal to it. Python reads the list anew at each warning.
    before: Any = warnings.filters
    before.insert(0, own)
    try:
        yield
    finally:
        # Another list may be in use by now: that of a `catch_warnings` that was entered or left meanwhile.
        _without(before, own)
        _without(warnings.filters, own)


class _Message:
    """Stands where a filter has the expression of a message: matches each of its own thread, and keeps it."""

    def __init__(self) -> None:
        self.last = ""
        self._thread = get_ident()

    def match(self, message: str) -> bool:
        """Tell whether the message is one of this thread."""
        if get_ident() != self._thread:
            return False
        self.last = message
        return True


class _Module:
    """Stands where a filter has the expression of a module, which Python asks last: takes note of the message."""

    def __init__(self, beginning: str, message: _Message) -> None:
        self.messages: list[str] = []
        self._beginning, self._message = beginning, message

    def match(self, module: str) -> bool:
        """Tell whether the module is one of those whose warnings are kept back."""
        if not module.startswith(self._beginning):
            return False
        self.messages.append(self._message.last)
        return True


@contextmanager
def collected_warnings(module: str) -> Iterator[list[str]]:
    """Keep back the warnings of a module in this thread, and yield the list of their messages.

    Parameters
    ----------
    module : str
        Beginning of the name of the module that warns.
    """
    message = _Message()
    collector = _Module(module, message)
    own = ("ignore", message, Warning, collector, 0)
    before: Any = warnings.filters
    before.insert(0, own)
    try:
        yield collector.messages
    finally:
        _without(before, own)
        _without(warnings.filters, own)


def _without(filters: Any, own: object) -> None:
    for number, one in enumerate(filters):
        if one is own:
            del filters[number]
            return


@contextmanager
def logger_levels(levels: dict[str, int]) -> Iterator[None]:
    """Set the levels of some loggers while the context lasts.

    Parameters
    ----------
    levels : dict of str to int
        Level of each logger, by its name.
    """
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
