"""Integration tests run in one process; what they share is made once, and figures are drawn by the tests that look at them."""

import matplotlib.font_manager  # noqa: F401 - it looks for its cache in the home when it is first imported
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _in_place(tmp_path_factory, monkeypatch, request):
    """Keep compiled networks out of the user's home, and save figures as one pixel unless a test is marked ``figures``.

    Fixtures of a whole module, such as the run of the command line's tests, are made before this one and draw.
    """
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("segpipe.reporting.figures.save", one_pixel)


def one_pixel(_figure, path, _dpi):
    """Stand in for a drawing, which takes longer than what is drawn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1)).save(path)
    return path
