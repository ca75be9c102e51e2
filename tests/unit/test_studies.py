"""What a job of a study may look at, and what it makes of what is missing; without training."""

from types import SimpleNamespace

import pytest

from segpipe.crossvalidation.candidates import Candidate, SearchSpace
from segpipe.crossvalidation.schema import Proposal
from segpipe.workflows.crossval import prepare


def test_a_trial_that_was_lost_before_it_was_proposed_does_not_end_the_search(tmp_path):
    pytest.importorskip("optuna")
    space = SearchSpace(configuration=("2d", "3d_fullres"), settings={"learning_rate": (0.01, 0.02, 0.03)})

    class Folder:
        def proposal(self, number):
            return tmp_path / f"{number}.json"

    work = SimpleNamespace(design=SimpleNamespace(space=space, seed=0), folder=Folder(), complete=dict)
    tried = Candidate(configuration="2d", settings={"learning_rate": 0.01})
    Proposal(candidate=tried).write(Folder().proposal(1))
    assert prepare._proposed(work, 2) != tried
    assert Proposal.read(Folder().proposal(2)).candidate in space.candidates()
