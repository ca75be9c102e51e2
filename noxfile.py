"""Tasks: `nox --list` shows them. They run in the environment that is active; nox makes none of its own."""

import nox

nox.options.sessions = ["check", "unit"]
nox.options.default_venv_backend = "none"
# Text that is opened without an encoding is an error of the tests.
STRICT = {"PYTHONWARNDEFAULTENCODING": "1"}


@nox.session
def unit(session: nox.Session) -> None:
    """Run the unit tests: the loop while you write code."""
    session.run("pytest", "tests/unit", *session.posargs, env=STRICT)


@nox.session
def test(session: nox.Session) -> None:
    """Run every test."""
    session.run("pytest", *session.posargs, env=STRICT)


@nox.session
def check(session: nox.Session) -> None:
    """Run the linter, the formatter, the type checker and the import contracts. Change no file."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", "--quiet", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")


@nox.session
def docs(session: nox.Session) -> None:
    """Check commands, links, paths and Python imports in the documentation."""
    session.run("pytest", "tests/unit/test_readme.py", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Check that version, changelog, citation and tag agree: `nox -s release -- v0.1.0`."""
    session.run("python", "tests/release.py", *session.posargs)
