"""Figures draw names as they are, and are written in one place."""

import re
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import segpipe
from segpipe.reporting.drawn import legend_name, save

NAMES = (
    "$\\frac{1$",
    "$^^0$",
    "a$b$c",
    "_background",
    "100 % of it",
    "two\nlines",
    "\U0001f600 tumour",
    "{}",
    "\\alpha",
)


def figure_of(name):
    figure = Figure(figsize=(3, 2), layout="constrained")
    panel = figure.subplots()
    panel.plot([1, 2], [1, 2], label=legend_name(name))
    panel.set_title(name)
    panel.set_xticks([1, 2], [name, "b"])
    panel.annotate(name, (1, 1))
    panel.legend()
    figure.suptitle(name)
    return figure, panel


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(tmp_path, name):
    figure, panel = figure_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save(figure, tmp_path / "below" / "figure.png", dpi=60)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [text.get_text().strip() for text in panel.get_legend().get_texts()] == [name]


def test_powers_of_ten_stay_mathematics(tmp_path):
    figure, panel = figure_of("$x^2$")
    panel.set_xscale("log")
    panel.set_xlim(0.01, 100)
    panel.set_xlabel("$y$")
    save(figure, tmp_path / "figure.png", dpi=60)
    numbers = [text for text in panel.xaxis.findobj(Text) if "mathdefault" in text.get_text()]
    assert numbers
    assert all(text.get_parse_math() for text in numbers)
    assert not panel.xaxis.label.get_parse_math()
    assert not panel.title.get_parse_math()


def test_no_figure_is_written_elsewhere():
    found = [
        f.name for f in Path(segpipe.__file__).parent.rglob("*.py") if re.search(r"\bsavefig\(", f.read_text("utf-8"))
    ]
    assert found == ["drawn.py"]
