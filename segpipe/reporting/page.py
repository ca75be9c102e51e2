"""A page that is made from a template."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from segpipe.core.text import shown
from segpipe.core.whole import write_atomically
from segpipe.crossvalidation.pool import NAME_BETWEEN


def fill_page(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write it as one page."""
    environment = Environment(
        loader=PackageLoader("segpipe.reporting"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = shown
    environment.filters["joined"] = NAME_BETWEEN.join
    write_atomically(path, environment.get_template(template).render(**values).encode())
