"""Do version, changelog, citation and tag agree? `python tests/release.py [TAG]` prints each disagreement and exits with 1.

Without TAG, the tag of the current commit is taken; a commit without a tag is checked for the rest.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## (?P<release>\S+) \((?P<date>unreleased|\d{4}-\d\d-\d\d)\)$")


def disagreements(version: str, changelog: str, citation: str, tag: str | None = None) -> list[str]:
    """What does not agree, one sentence each.

    Parameters
    ----------
    version : str
        Version of the package, such as 0.1.0.dev5 or 0.1.0.
    changelog, citation : str
        Text of CHANGELOG.md and of CITATION.cff.
    tag : str, optional
        Tag of the release, such as v0.1.0; not checked unless given.
    """
    found = [*_of_changelog(version, changelog), *_of_citation(version, citation)]
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag is {tag}; expected v{version}, the version in segpipe/version.py")
    return found


def _of_changelog(version: str, changelog: str) -> list[str]:
    first = next((line for line in changelog.splitlines() if line.startswith("## ")), "no heading")
    heading = HEADING.match(first)
    if heading is None:
        return [f"CHANGELOG.md: the first heading is {first!r}; expected '## VERSION (unreleased)' or with a date"]
    release, is_development = re.sub(r"\.dev\d+$", "", version), ".dev" in version
    found = []
    if heading["release"] != release:
        found.append(f"CHANGELOG.md: the first heading names {heading['release']}; expected {release}")
    if is_development and heading["date"] != "unreleased":
        found.append(f"CHANGELOG.md: {release} has a date, but {version} is a development version; write (unreleased)")
    if not is_development and heading["date"] == "unreleased":
        found.append(f"CHANGELOG.md: {release} is unreleased, but {version} is a release; write its date, YYYY-MM-DD")
    return found


def _of_citation(version: str, citation: str) -> list[str]:
    cited = re.search(r"^version: *[\"']?([^\s\"']+)", citation, flags=re.M)
    named = cited[1] if cited else "no version"
    return [] if named == version else [f"CITATION.cff: names {named}; expected {version}"]


def version_of(text: str) -> str:
    """Version in the text of segpipe/version.py, which is not imported: another segpipe may be installed."""
    found = re.search(r'^__version__ = "(.+)"$', text, flags=re.M)
    if found is None:
        raise SystemExit('segpipe/version.py: no line __version__ = "..." in it')
    return found[1]


def tag_of_commit(root: Path) -> str | None:
    """Tag of the current commit, if it has one."""
    command = ["git", "describe", "--tags", "--exact-match"]
    described = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
    return described.stdout.strip() if described.returncode == 0 else None


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Print the disagreements of a checkout; return the exit code."""
    version, changelog, citation = (
        (root / name).read_text(encoding="utf-8") for name in ("segpipe/version.py", "CHANGELOG.md", "CITATION.cff")
    )
    tag = arguments[0] if arguments else tag_of_commit(root)
    found = disagreements(version_of(version), changelog, citation, tag)
    for sentence in found:
        print(sentence)
    if not found:
        print(f"version, changelog and citation agree on {version_of(version)}; tag: {tag or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
