"""Fine-tuning takes a model's channels by their names, or says that it takes them in their order."""

from pathlib import Path

import pytest
import torch

from segpipe.errors import ModelError
from segpipe.networks.build import build_network
from segpipe.planning.adopt import adopt_plan, channel_order
from segpipe.training.initial import InitialWeights, by_name, remark_on_channels, take_over
from tests.helpers.inference import small_plan

MODEL = Path("model.segpipe")


def test_the_order_is_known_by_name():
    assert channel_order(("T1", "T2", "FLAIR"), ("flair", "T1", "t2")) == (2, 0, 1)
    assert channel_order(("T1", "T2"), ("T1", "T2")) is None
    assert channel_order(("T1", "T2"), ("CT", "PET")) is None
    assert channel_order(("MR", "MR"), ("MR", "MR")) is None


@pytest.mark.parametrize("n_more", [0, 2])
def test_a_network_with_channels_by_name_is_the_same_function(n_more):
    """A cascade's further inputs stay where they are."""
    spec = small_plan().configuration("3d_fullres").network
    torch.manual_seed(0)
    trained, fresh = (build_network(spec, 3 + n_more, 3).eval() for _ in range(2))
    order = channel_order(("T1", "T2", "FLAIR"), ("FLAIR", "T1", "T2"))
    fresh.load_state_dict(by_name(trained.state_dict(), fresh.state_dict(), order, spec.architecture, MODEL))
    x = torch.randn(1, 3 + n_more, 16, 16, 16)
    exchanged = torch.cat((x[:, list(order)], x[:, 3:]), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(fresh(exchanged), trained(x))


def test_weights_are_taken_over_by_name_and_that_is_said():
    spec = small_plan().configuration("3d_fullres").network
    torch.manual_seed(0)
    trained, fresh = build_network(spec, 2, 3), build_network(spec, 2, 3)
    initial = InitialWeights(MODEL, "0", trained.state_dict(), ("T1", "T2"))
    assert take_over(fresh, initial, ("T2", "T1"), spec.architecture) == []
    first = next(name for name, value in fresh.state_dict().items() if value.ndim > 2)
    torch.testing.assert_close(fresh.state_dict()[first], trained.state_dict()[first].flip(1))
    assert "taken by their names: T1, T2 in model.segpipe, T2, T1 in the dataset" in remark_on_channels(
        initial, ("T2", "T1")
    )
    assert "in their order: T1, T2 in model.segpipe, CT, PET" in remark_on_channels(initial, ("CT", "PET"))
    assert remark_on_channels(initial, ("t1", "t2")) is None


def test_a_network_whose_first_layer_is_not_known_is_refused():
    with pytest.raises(ModelError, match="of u2net it is not known which weights see them"):
        by_name({}, {}, (1, 0), "u2net", MODEL)


def test_a_plan_that_is_taken_over_follows_the_datasets_order():
    from segpipe.models.nnunet.fingerprint import read_fingerprint

    theirs = small_plan(n_channels=2)
    full = theirs.configuration("3d_fullres").model_copy(
        update={"normalisation": ("ct", "zscore"), "use_mask_for_norm": (False, True)}
    )
    theirs = theirs.model_copy(update={"channel_names": ("CT", "MR"), "configurations": {"3d_fullres": full}})
    fingerprint = read_fingerprint(
        {
            "num_training": 4, "channel_names": ["MR", "CT"], "num_labels_with_background": 3, "spacings": [[2.0, 1.5, 1.0]] * 4,
            "shapes_after_crop": [[16, 20, 24]] * 4, "median_relative_size_after_cropping": 1.0,
        }
    )  # fmt: skip
    adopted = adopt_plan(theirs, fingerprint, MODEL)
    assert adopted.channel_names == ("MR", "CT")
    assert adopted.configuration("3d_fullres").normalisation == ("zscore", "ct")
    assert adopted.configuration("3d_fullres").use_mask_for_norm == (True, False)
