"""Branch coverage of each room of the package, from a data file of coverage.py.

    COVERAGE_FILE=/tmp/cover pytest tests/unit tests/integration --cov --cov-report=
    python tests/coverage_by_room.py /tmp/cover [--rooms OLD_TO_NEW.tsv]

A room is a folder of the package; modules at the root are a room of their own. The table of old to new paths puts the
files of an older layout into the rooms of this one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path, PurePosixPath


def measured(data: Path) -> dict[str, dict[str, int]]:
    """Numbers of coverage.py for each file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        subprocess.run(
            [sys.executable, "-m", "coverage", "json", "-q", "--fail-under=0", "--data-file", data, "-o", report],
            check=True,
        )  # fmt: skip
        return {
            name: found["summary"] for name, found in json.loads(report.read_text(encoding="utf-8"))["files"].items()
        }


def room_of(file: str, moved: dict[str, str]) -> str:
    """Room of a file: the folder below the package's own."""
    inside = file[file.index("segpipe/") :]
    parts = PurePosixPath(moved.get(inside, inside)).parts
    return parts[1] if len(parts) > 2 else "(root)"


def by_room(files: dict[str, dict[str, int]], moved: dict[str, str]) -> dict[str, tuple[int, int, int, int]]:
    """Statements run, statements, branches taken and branches of each room."""
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    keys = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    for name, summary in files.items():
        for n, key in enumerate(keys):
            rooms[room_of(name, moved)][n] += summary[key]
    return {name: tuple(numbers) for name, numbers in sorted(rooms.items())}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rooms", type=Path, help="tab-separated old and new path of each file that moved")
    asked = parser.parse_args()
    lines = asked.rooms.read_text(encoding="utf-8").splitlines() if asked.rooms else []
    rooms = by_room(measured(asked.data), dict(line.split("\t")[:2] for line in lines))
    print(f"{'room':18}{'statements':>12}{'branches':>12}{'of branches':>13}")
    for name, (run, statements, taken, branches) in rooms.items():
        print(f"{name:18}{run:6}/{statements:<5}{taken:6}/{branches:<5}{100 * taken / max(branches, 1):12.1f}%")
    run, statements, taken, branches = (sum(numbers) for numbers in zip(*rooms.values(), strict=True))
    print(f"{'all':18}{run:6}/{statements:<5}{taken:6}/{branches:<5}{100 * taken / max(branches, 1):12.1f}%")


if __name__ == "__main__":
    main()
