"""What may import what; and that the checks do catch a breach."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH_FREE = [
    "dataset.run", "dataset.fingerprint.run", "dataset.phantoms", "planning.run", "preprocessing.run", "metrics.surface",
    "evaluation.run", "evaluation.statistics", "reporting.run", "reporting.comparison", "reporting.crossval", "io.formats",
    "models.nnunet", "models.nnunet.plans", "models.nnunet.fingerprint", "execution.processes", "execution.graph", "execution.cluster",
    "execution.memory", "execution.locks", "postprocessing.run", "postprocessing.choose", "distillation.recipe",
    "crossvalidation.pool", "crossvalidation.search", "cli.app", "cli.display", "workflows.check",
    "workflows.plan", "workflows.preprocess", "workflows.postprocess",
    "workflows.crossval.command", "workflows.crossval.perform",
]  # fmt: skip


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, encoding="utf-8"
    ).stdout.strip()


@pytest.mark.parametrize("module", TORCH_FREE)
def test_no_torch_is_imported(module):
    assert python(f"import sys, segpipe.{module}; print('torch' in sys.modules)") == "False"


def test_importing_segpipe_brings_in_nothing_heavy():
    assert (
        python("import sys, segpipe; print(sorted({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))") == "[]"
    )


def test_help_needs_neither_torch_nor_numpy():
    code = "import sys; sys.argv = ['segpipe', '--help']\nfrom segpipe.cli.app import main\ntry: main()\nexcept SystemExit: pass\n"
    assert python(code + "print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))").endswith("[]")


def test_the_public_functions():
    import segpipe

    assert segpipe.__all__ == [
        "CheckResult",
        "Comparison",
        "Crossvalidated",
        "Distilled",
        "Evaluation",
        "Fingerprint",
        "Plan",
        "PredictionRow",
        "Predictor",
        "PredictorOptions",
        "RunResult",
        "Runtime",
        "SegpipeError",
        "Trained",
        "Watch",
        "apply_postprocessing",
        "check",
        "choose_postprocessing",
        "choose_runtime",
        "compare",
        "convert",
        "crossval",
        "crossval_status",
        "demo",
        "distill",
        "evaluate",
        "export_model",
        "import_model",
        "list_networks",
        "plan",
        "predict",
        "preprocess",
        "report",
        "run",
        "train",
    ]
    assert all(callable(getattr(segpipe, name)) for name in segpipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = segpipe.fit


def contracts(folder: Path) -> subprocess.CompletedProcess:
    lint = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [lint, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        encoding="utf-8",
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "segpipe", tmp_path / "segpipe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy):
    result = contracts(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("planning/rules.py", "import torch", "No torch where no network is needed BROKEN"),
        ("metrics/overlap.py", "from segpipe.networks import unet", "No torch where no network is needed BROKEN"),
        ("dataset/check.py", "from segpipe.planning import make", "Layers BROKEN"),
        ("losses/overlap.py", "from segpipe.training import loop", "Layers BROKEN"),
        (
            "inference/predictor.py",
            "from segpipe.training import run",
            "Only workflows run a stage BROKEN",
        ),
        ("training/data.py", "import nibabel", "Only io knows file formats BROKEN"),
        ("planning/rules.py", "from segpipe.planning import make", "No circles BROKEN"),
        (
            "cli/display.py",
            "from segpipe.planning import rules",
            "The command line imports workflows, core and errors only BROKEN",
        ),
        ("workflows/run.py", "import typer", "Only the command line knows typer BROKEN"),
    ],
)
def test_a_breach_is_caught(copy, module, line, contract):
    path = copy / "segpipe" / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    result = contracts(copy)
    assert result.returncode != 0
    assert contract in result.stdout
