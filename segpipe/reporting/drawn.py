"""How figures become files: text is drawn as it is, whatever somebody called a label or a case."""

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from segpipe.core.whole import write_atomically
from segpipe.execution.quiet import ignored_warnings


def legend_name(name: str) -> str:
    """Return a name as a legend shows it: matplotlib leaves out those that begin with ``_``."""
    return f" {name}" if name.startswith("_") else name


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write a figure as PNG. ``$`` is a sign like any other; a character that the font lacks is a box.

    Parameters
    ----------
    figure : Figure
    path : Path
        Its folder need not exist.
    dpi : int
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            if axis.get_scale() == "log":
                # Their numbers are powers of ten, which matplotlib writes as mathematics.
                for text in axis.findobj(Text):
                    text.set_parse_math(text is not axis.label)
    drawn = BytesIO()
    with ignored_warnings(UserWarning, "Glyph"):
        figure.savefig(drawn, format="png", dpi=dpi)
    write_atomically(path, drawn.getbuffer())
    return path
