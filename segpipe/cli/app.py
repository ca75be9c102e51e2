"""The command line: names of commands, and errors to exit codes.

Exit codes: 0 done, 1 a stated error, 2 wrong usage, 3 done but some cases failed, 130 / 143 stopped by a signal after saving.
"""

import errno
import io
import logging
import sys
from typing import Annotated

import typer

from segpipe.cli.grouped import GroupedCommand, WholeSummaries
from segpipe.cli.translate import command_of
from segpipe.core.whole import is_full, said_by_system
from segpipe.errors import SegpipeError
from segpipe.version import __version__
from segpipe.workflows import options as records

COMMANDS = {
    "run": records.RunOptions,
    "check": records.CheckOptions,
    "plan": records.PlanOptions,
    "preprocess": records.PreprocessOptions,
    "train": records.TrainOptions,
    "crossval": records.CrossvalOptions,
    "distill": records.DistillOptions,
    "compare": records.CompareOptions,
    "predict": records.PredictOptions,
    "postprocess": records.PostprocessOptions,
    "import": records.ImportOptions,
    "export": records.ExportOptions,
    "convert": records.ConvertOptions,
    "evaluate": records.EvaluateOptions,
    "report": records.ReportOptions,
    "demo": records.DemoOptions,
    "networks": records.NetworksOptions,
    "doctor": records.DoctorOptions,
}

_ROOM, _PLACE, _LOOK = "make room", "give a place that can be written", "look at the file and its disk"
_PLACES = dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), _PLACE
)
"""What a user can do where the system refuses a place, by its error number."""

app = typer.Typer(
    name="segpipe",
    help="Plan, train and run medical image segmentation from a folder of scans.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=WholeSummaries,
)

for name, record in COMMANDS.items():
    app.command(name, cls=GroupedCommand)(command_of(name, record))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"segpipe {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Plan, train and run medical image segmentation from a folder of scans."""


def print_anything() -> None:
    r"""Let standard output and error take every text: what their encoding cannot print is shown as an escape, such as ``\xfc``.

    Rich draws tables and bars in ASCII where the encoding is no Unicode one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; a stated error becomes one line on stderr."""
    print_anything()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SegpipeError as error:
        typer.echo(f"segpipe: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        logging.getLogger(__name__).debug("the system refused", exc_info=True)
        advice = _ROOM if is_full(error) else _PLACES.get(error.errno or 0, _LOOK)
        typer.echo(
            f"segpipe: {said_by_system(error)}; {advice}, then give the same command again, with --resume where it has that",
            err=True,
        )
        sys.exit(1)
