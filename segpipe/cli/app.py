"""The command line: names of commands, and errors to exit codes.

Exit codes: 0 done, 1 a stated error, 2 wrong usage, 3 done but some cases failed, 130 / 143 stopped by a signal after saving.
"""

import errno
import logging
import sys
from typing import Annotated

import typer

from segpipe.cli import crossval_commands, data_commands, distillation_commands, inference_commands, model_commands
from segpipe.errors import SegpipeError
from segpipe.version import __version__

app = typer.Typer(
    name="segpipe",
    help="Plan, train and run medical image segmentation from a folder of scans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    model_commands.run,
    data_commands.check,
    data_commands.plan,
    data_commands.preprocess,
    model_commands.train,
    crossval_commands.crossval,
    distillation_commands.distill,
    distillation_commands.compare,
    inference_commands.predict,
    inference_commands.postprocess,
    inference_commands.import_model,
    inference_commands.export,
    data_commands.convert,
    data_commands.evaluate,
    data_commands.report,
    data_commands.demo,
    model_commands.networks,
    model_commands.doctor,
):
    app.command({"import_model": "import"}.get(command.__name__))(command)


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


def main() -> None:
    """Run the command line; a stated error becomes one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SegpipeError as error:
        typer.echo(f"segpipe: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(
            f"segpipe: {where}{error.strerror}; make room, then give the same command again, with --resume where it has that",
            err=True,
        )
        sys.exit(1)
