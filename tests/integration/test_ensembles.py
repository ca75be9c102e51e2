"""Model files of several members; and probabilities held against a reference while a case is predicted."""

from dataclasses import replace

import numpy as np

from segpipe.inference.predictor import Predictor
from segpipe.models.file import ModelFile
from segpipe.postprocessing.schema import EVERYTHING, PostprocessingRules, Rule
from tests.helpers.ensembles import SHAPE


def test_a_file_of_two_members_predicts_as_the_two_files_do(pair):
    image = np.random.default_rng(0).normal(1, 1, SHAPE).astype(np.float32)
    apart = Predictor.load((pair / "one.segpipe", pair / "two.segpipe"))
    together = Predictor.load(pair / "both.segpipe")
    np.testing.assert_array_equal(together.predict(image, (2.0, 1.5, 1.0)), apart.predict(image, (2.0, 1.5, 1.0)))
    alone = Predictor.load(pair / "one.segpipe")
    assert together.digest not in (alone.digest, apart.digest)


def test_an_ensemble_keeps_its_post_processing(pair):
    rules = PostprocessingRules(rules=(Rule(label=EVERYTHING, keep="largest"),), chosen_on="x", n_cases=1, trials=())
    both = ModelFile.read(pair / "both.segpipe")
    replace(both, postprocessing_json=rules.to_json()).write(pair / "cleaned.segpipe")
    assert Predictor.load(pair / "cleaned.segpipe").rules == rules.rules
