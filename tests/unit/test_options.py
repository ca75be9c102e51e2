"""Options said once: what the command line, the Python functions and the files of a run make of the records."""

import ast
import inspect
import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import segpipe
from segpipe.cli.app import COMMANDS, app
from segpipe.cli.translate import function_of, workflow_of
from segpipe.core.workspace import Workspace
from segpipe.errors import SegpipeError
from segpipe.workflows import options as records
from segpipe.workflows.keywords import with_keywords
from segpipe.workflows.notes import GROUPS, Options, note_of, option
from segpipe.workflows.project import workspace_of, write_asked
from tests import house, stub

ROOT = Path(__file__).parents[2]


def helped(*words: str) -> str:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_workflow_of_its_name(name):
    """`segpipe X` is `workflows/X`: a module, or the command.py of a package, with a function X and a page."""
    module = workflow_of(name)
    assert module.__name__.removesuffix(".command").rpartition(".")[2] == function_of(name)
    assert callable(getattr(module, function_of(name)))
    assert list(inspect.signature(getattr(module, function_of(name))).parameters) == ["options", "watch"]
    assert len(inspect.signature(module.page).parameters) == 2


def test_every_workflow_is_a_command_or_a_shared_part():
    shared = {"options", "notes", "keywords", "page", "project", "planning", "arrays", "fold", "held_out", "scoring"}
    shared |= {"checked", "identity", "said"}
    folder = ROOT / "segpipe" / "workflows"
    found = {
        p.stem if p.is_file() else p.name for p in folder.iterdir() if p.name not in ("__init__.py", "__pycache__")
    }
    assert found - shared == {function_of(name) for name in COMMANDS}


@pytest.mark.parametrize("record", [*COMMANDS.values()], ids=[*COMMANDS])
def test_every_option_is_explained_in_a_sentence_that_stands_alone(record):
    assert record.__doc__
    for one in fields(record):
        note = note_of(one)
        assert note.help.endswith("."), one.name
        assert not note.help.startswith("Of "), one.name
        assert note.group in GROUPS
        assert not (note.argument and note.python_only)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_holds_every_option_in_its_group_and_cuts_nothing_off(name):
    text = helped(name)
    assert "…" not in text
    words = " ".join(text.split())
    for one in fields(COMMANDS[name]):
        note = note_of(one)
        if note.python_only:
            continue
        assert note.help.split()[0] in words
        assert " ".join(note.help.split()) in words.replace("- ", "-") or note.help[:30] in words
        if not note.argument:
            assert f"{note.group}:" in text


def test_the_list_of_commands_shows_every_summary_whole():
    words = " ".join(helped().split())
    for name, record in COMMANDS.items():
        assert f"{name} {record.__doc__}".replace("held-out", "held- out") in words.replace("held-out", "held- out")


def test_the_help_names_every_recipe():
    shipped = {path.stem for path in (ROOT / "plans").glob("*.toml")}
    assert set(records.RECIPES) == {name for name in shipped if not name.startswith("distill")}
    assert all(name in helped("plan") for name in records.RECIPES)


def test_a_flag_that_is_on_unless_given_can_be_switched_off():
    text = helped("distill")
    assert "--tta / --no-tta" in text
    assert "--soft-labels / --no-soft-labels" in text
    assert "--no-resume" not in text
    assert "--teacher-tta / --no-teacher-tta" in text


def test_the_command_line_gives_the_record_what_was_typed(monkeypatch):
    seen = {}
    module = workflow_of("train")
    monkeypatch.setattr(module, "train", lambda options, watch: seen.update(options=options, watch=watch))
    monkeypatch.setattr(module, "page", lambda done, options: records_page(done))
    typed = ["train", "d", "-c", "2d", "--fold", "all", "--no-tta", "--minutes", "2.5", "--resume", "--quiet"]
    assert CliRunner().invoke(app, typed).exit_code == 0
    expected = records.TrainOptions(dataset="d", configuration="2d", fold="all", tta=False, minutes=2.5, resume=True)
    assert seen["options"] == expected
    assert type(seen["watch"]).__name__ == "QuietWatch"


def records_page(_):
    from segpipe.workflows.page import Page

    return Page({}, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "d", "--fold", "first"], "expected a number or 'all'"),
        (["train", "d", "--minutes", "0"], "0.01"),
        (["plan", "d", "--budget-gb", "much"], "expected a number of GB, at least 0.1, or auto"),
        (["predict", "i", "o", "-m", "m", "--shard", "3/2"], "expected I/N with I from 1 to N"),
        (["predict", "i", "o", "-m", "m", "--engine", "abacus"], "abacus"),
        (["predict", "i", "o"], "--model"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(words, message):
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.replace("│", " ").split())


def test_python_functions_check_what_they_are_given_as_the_command_line_does():
    with pytest.raises(SegpipeError, match=r"--minutes 0: expected 0.01 or more"):
        segpipe.train("d", minutes=0)
    with pytest.raises(SegpipeError, match=r"--step 2: expected 1 or less"):
        segpipe.predict("i", "o", model="m", step=2)
    with pytest.raises(SegpipeError, match=r"--engine abacus: expected auto, torch or openvino"):
        segpipe.predict("i", "o", model="m", engine="abacus")
    with pytest.raises(SegpipeError, match=r"--epochs 3 and --minutes 2 are two ends of training"):
        segpipe.run("d", epochs=3, minutes=2)
    with pytest.raises(TypeError, match="minuts"):
        segpipe.train("d", minuts=3)
    with pytest.raises(TypeError, match="missing a required argument: 'dataset'"):
        segpipe.train(minutes=3)
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        segpipe.predict("i", "o")


def test_a_text_is_read_as_on_the_command_line():
    assert records.TrainOptions(dataset="d", fold="2").fold == 2
    assert records.TrainOptions(dataset="d", fold="all").fold == "all"
    assert records.PredictOptions(source="i", output="o", model="m", shard="2/8").shard == (2, 8)
    with pytest.raises(SegpipeError, match=r"--fold 'first': expected a number or 'all'"):
        segpipe.train("d", fold="first")
    with pytest.raises(SegpipeError, match=r"--budget-gb 'much': expected a number of GB"):
        segpipe.plan("d", budget_gb="much")


def test_values_are_brought_to_their_types():
    asked = records.PredictOptions(source="in", output="out", model="m", folds="0")
    assert (asked.source, asked.model, asked.folds) == (Path("in"), (Path("m"),), ("0",))
    several = records.PredictOptions(source="in", output="out", model=["a", Path("b")], folds=[0, 1])
    assert (several.model, several.folds) == ((Path("a"), Path("b")), ("0", "1"))


def test_a_job_for_elsewhere_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = records.DistillOptions(dataset="d", teacher=("t", "u"), recipe="my.toml", unlabelled="more", name="small")
    there = asked.resolved()
    assert there.dataset == tmp_path / "d"
    assert there.teacher == (tmp_path / "t", tmp_path / "u")
    assert there.recipe == str(tmp_path / "my.toml")
    assert there.unlabelled == tmp_path / "more"
    assert there == replace(
        asked, dataset=there.dataset, teacher=there.teacher, recipe=there.recipe, unlabelled=there.unlabelled
    )
    assert replace(asked, recipe="distill").resolved().recipe == "distill", "a name is no file"


def test_the_run_says_how_it_was_asked_for(tmp_path):
    asked = records.CrossvalOptions(dataset="d", splits="s.json", stratify_by=("site",))
    write_asked(tmp_path, "crossval", asked)
    told = json.loads((tmp_path / "asked.json").read_text(encoding="utf-8"))
    assert told["command"] == "crossval"
    assert told["options"]["splits"] == "s.json"
    assert told["options"]["stratify_by"] == ["site"]
    assert "believe" not in told["options"]
    again = records.CrossvalOptions(**told["options"])
    assert again == asked


def test_a_python_function_is_documented_by_the_notes():
    for name in segpipe._FUNCTIONS:
        function = getattr(segpipe, name)
        record = getattr(records, segpipe._FUNCTIONS[name][2])
        without = segpipe._PLACED.get(name, ((), ()))[1]
        public = [one for one in fields(record) if not note_of(one).terminal_only and one.name not in without]
        assert set(inspect.signature(function).parameters) == {one.name for one in public} | {"watch"}
        for one in public:
            assert f"\n{one.name} : " in function.__doc__, (name, one.name)
            assert note_of(one).help in function.__doc__


def test_defaults_of_python_functions_are_those_of_the_record():
    parameters = inspect.signature(segpipe.train).parameters
    for one in fields(records.TrainOptions):
        expected = inspect.Parameter.empty if one.default is MISSING else one.default
        assert parameters[one.name].default == expected


def test_a_new_option_is_one_line(tmp_path):
    """A field of a record is an option of the command line and a documented keyword, with nothing else to touch."""
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class More(records.DemoOptions):
        size: int = option("Number of cases.", 12, least=1)

    def demo(options: Options, watch: object) -> int:
        """Draw."""
        return options.size

    made = with_keywords(demo, More)
    assert made(tmp_path, size=3) == 3
    assert "size : int\n    Number of cases." in made.__doc__
    with pytest.raises(SegpipeError, match="--size 0: expected 1 or more"):
        made(tmp_path, size=0)


def test_the_stub_says_what_the_records_say():
    """Compared without layout: `python tests/stub.py` and ruff write it again."""
    written = ast.dump(ast.parse(stub.TARGET.read_text(encoding="utf-8")))
    made = ast.parse(stub.stub())
    for tree in (made,):
        tree.body = sorted(tree.body, key=ast.unparse)
    theirs = ast.parse(stub.TARGET.read_text(encoding="utf-8"))
    theirs.body = sorted(theirs.body, key=ast.unparse)
    assert ast.dump(theirs) == ast.dump(made), written and "run python tests/stub.py"


def test_the_workspace_of_a_dataset(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(SegpipeError, match="lies in the dataset's own folder"):
        workspace_of(tmp_path / "d", tmp_path / "d" / "work")
    assert workspace_of(tmp_path / "d", tmp_path / "w") == Workspace(tmp_path / "w")


def test_the_house_keeps_its_counts():
    """Rooms, circles, and how far an option is handed on; `python tests/house.py` shows all of them."""
    counted = house.counts(ROOT / "segpipe")
    assert counted["rooms"] <= 26
    assert counted["loose root modules"] <= 3
    assert counted["circles"] == []
    assert counted["functions that take tta"] <= 4
    assert counted["statements in cli"] <= 271
    assert int(counted["widest function, keyword options of public functions aside"].split()[-2]) <= 6
