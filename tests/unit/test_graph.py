"""Work as a graph: what is kept, what is done again, what a failure stops; on local processes and on a Dask cluster."""

from pathlib import Path

import pytest

from segpipe.errors import TrainingInterrupted
from segpipe.execution.graph import Job, Journal, counts, standings
from tests.helpers.graph import fail, lines, run, write

pytest.importorskip("distributed")


def fail_once(folder: Path, inputs) -> str:
    if not (folder / "tried").exists():
        (folder / "tried").touch()
        raise RuntimeError("a passing trouble")
    return "ok"


def chain(folder: Path) -> list[Job]:
    return [
        Job("a", write, (folder, "a"), artefact=folder / "a"),
        Job("b", write, (folder, "b"), needs=("a",), artefact=folder / "b"),
        Job("c", write, (folder, "c"), needs=("a", "b"), artefact=folder / "c"),
    ]


def test_each_job_is_done_after_what_it_needs_and_never_again(tmp_path):
    found = run(chain(tmp_path), tmp_path)
    assert [s.state for s in found.values()] == ["done"] * 3
    assert lines(tmp_path / "done.txt") == ["a ", "b a", "c a,b"]
    run(chain(tmp_path), tmp_path)
    assert len(lines(tmp_path / "done.txt")) == 3


def test_what_depends_on_changed_work_is_done_again(tmp_path):
    run(chain(tmp_path), tmp_path)
    _, *rest = chain(tmp_path)
    run([Job("a", write, (tmp_path, "a"), artefact=tmp_path / "a", identity="other"), *rest], tmp_path)
    assert len(lines(tmp_path / "done.txt")) == 6


def test_a_lost_artefact_is_made_again(tmp_path):
    run(chain(tmp_path), tmp_path)
    (tmp_path / "b").unlink()
    run(chain(tmp_path), tmp_path)
    # What b comes to is the same, so that c stands.
    assert lines(tmp_path / "done.txt")[3:] == ["b a"]


def test_a_failure_stops_only_what_needs_it(tmp_path):
    jobs = [
        Job("bad", fail, (tmp_path,)),
        Job("good", write, (tmp_path, "good")),
        Job("needs bad", write, (tmp_path, "x"), needs=("bad",)),
        Job("goes on", write, (tmp_path, "y"), after=("bad", "good")),
    ]
    found = run(jobs, tmp_path)
    assert {job: s.state for job, s in found.items()} == {
        "bad": "failed", "good": "done", "needs bad": "blocked", "goes on": "done",
    }  # fmt: skip
    assert "cannot be done" in found["bad"].reason
    assert found["bad"].attempts == 1, "a stated reason stays one"
    assert "needs bad, which failed" in found["needs bad"].reason
    assert "y good" in lines(tmp_path / "done.txt"), "who goes on is told what there is"
    journal = Journal(tmp_path / "jobs.jsonl")
    assert counts(standings(jobs, journal).values()) == {
        "done": 2,
        "running": 0,
        "waiting": 0,
        "failed": 1,
        "blocked": 1,
    }


def test_a_failed_job_is_tried_again_the_next_time(tmp_path):
    job = Job("a", fail, (tmp_path,))
    assert run([job], tmp_path)["a"].state == "failed"
    assert run([Job("a", write, (tmp_path, "a"))], tmp_path)["a"].state == "done"


def test_an_unstated_failure_is_tried_again_at_once(tmp_path):
    assert run([Job("a", fail_once, (tmp_path,))], tmp_path)["a"].attempts == 2
    (tmp_path / "tried").unlink()
    found = run([Job("b", fail_once, (tmp_path,))], tmp_path, retries=0)
    assert (found["b"].state, found["b"].reason) == ("failed", "RuntimeError: a passing trouble")


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path):
    run(chain(tmp_path), tmp_path)
    path = tmp_path / "jobs.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"job": "c", "sta', encoding="utf-8")
    journal = Journal(path)
    journal.note("c", "failed", reason="x")
    journal.close()
    assert Journal(path).read()["c"].state == "failed"
    assert Journal(path).read()["b"].state == "done"


def test_nothing_begins_after_a_stop(tmp_path):
    found = run(chain(tmp_path), tmp_path, stop=lambda: True)
    assert [s.state for s in found.values()] == ["waiting"] * 3


def test_an_interrupted_training_survives_its_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(TrainingInterrupted("stopped", signal_number=15)))
    assert (str(error), error.signal_number, error.exit_code) == ("stopped", 15, 143)
