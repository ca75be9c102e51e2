"""What commands print, on consoles that cannot print everything."""

import contextlib
import io

import pytest
from rich.console import Console

from segpipe.cli.app import print_anything
from segpipe.cli.display import RichWatch, show
from segpipe.core.text import Table
from segpipe.workflows.page import Page

NAME = "J\u00fcrgen \u25b6 \u03bcCT \u4e2d \udcfc"
"""Letters of several alphabets, an arrow, and a byte of a file's name that is not UTF-8."""
ENCODINGS = ("ascii", "cp1252", "cp437", "utf-8")


def printed(encoding, act) -> str:
    """Return what is printed on a console of an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        print_anything()
        act()
    for stream in streams:
        stream.flush()
    return "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)


def names():
    show(Page({}, [NAME, Table(NAME, [NAME, "value"], [[NAME, "1"]])]), as_json=False)
    RichWatch().note(NAME)


def drawings():
    show(Page({}, [Table("title", ["a", "b"], [["1", "2"]])]), as_json=False)
    watch = RichWatch()
    watch.console = Console(stderr=True, force_terminal=True)
    with watch.counting("reading", 3) as done:
        done("a case")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_name_can_be_printed(encoding):
    found = printed(encoding, names)
    assert found.count("rgen") == 5
    assert "\\udcfc" in found


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_and_bars_are_drawn_in_ascii_where_the_console_has_no_unicode(encoding):
    assert printed(encoding, drawings).isascii() == (encoding != "utf-8")
