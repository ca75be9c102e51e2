"""A finished fold that is trained further, and ends that are not followed."""

import pytest

from segpipe.errors import UsageError
from segpipe.training.extension import require_followed, require_longer
from segpipe.training.progress import Progress
from segpipe.training.schedule import Schedule, learning_rate
from segpipe.training.schema import Extension, TrainingRecord


def record(**changed):
    known = {
        "plan_digest": "p", "splits_digest": "s", "configuration": "3d_fullres", "variant": "cpu", "fold": 0, "seed": 0,
        "deterministic": False, "device": "CPU", "epochs": 3, "iterations": 36, "elapsed_s": 12.0, "data_wait_share": 0.0,
        "train_loss": 0.1, "validation_dice": {}, "mean_validation_dice": None, "mirror_axes": (), "weights_sha256": "", "versions": {},
        "scheduled_epochs": 3,
    }  # fmt: skip
    return TrainingRecord(**(known | changed))


@pytest.mark.parametrize(
    ("changed", "epochs", "minutes"),
    [
        ({}, None, None),
        ({}, 3, None),
        ({"scheduled_epochs": None}, 3, None),
        ({"scheduled_epochs": None, "scheduled_minutes": 0.2}, None, 0.2),
        ({"scheduled_epochs": None}, None, 0.2),
        ({"stopped_early": True, "scheduled_epochs": 50}, 50, None),
        ({"epochs": 4, "scheduled_epochs": 3}, 3, None),
    ],
)
def test_the_same_end_again_is_followed(changed, epochs, minutes):
    require_followed(record(**changed), epochs=epochs, minutes=minutes)


@pytest.mark.parametrize(
    ("changed", "epochs", "minutes", "words"),
    [
        ({}, 5, None, "fold 0 is finished with 3 epochs; --epochs 5 was not followed; use --extend"),
        ({}, 2, None, "--epochs 2 was not followed"),
        ({}, None, 9.0, "--minutes 9 was not followed"),
        ({"scheduled_epochs": None}, None, 9.0, "--minutes 9 was not followed"),
        ({"scheduled_epochs": None, "scheduled_minutes": 0.2}, None, 0.4, r"finished with 0.2 minutes \(3 epochs\); --minutes 0.4"),
        ({"scheduled_epochs": None, "scheduled_minutes": 0.2}, 3, None, "--epochs 3 was not followed"),
    ],
)  # fmt: skip
def test_another_end_is_refused_with_both(changed, epochs, minutes, words):
    with pytest.raises(UsageError, match=words):
        require_followed(record(**changed), epochs=epochs, minutes=minutes)


def test_an_extension_must_be_longer():
    require_longer(record(), epochs=4, minutes=None)
    require_longer(record(), epochs=None, minutes=0.3)
    for end in ({"epochs": 3, "minutes": None}, {"epochs": None, "minutes": 0.2}, {"epochs": None, "minutes": None}):
        with pytest.raises(UsageError, match="--extend"):
            require_longer(record(), **end)


def test_the_learning_rate_falls_afresh_to_the_new_end():
    from segpipe.planning.recipe import TrainingSettings

    settings = TrainingSettings()
    schedule = Schedule(epochs=5, iterations_per_epoch=10, from_iteration=30)
    rates = [learning_rate(settings, n, schedule.progress(n, 0.0)) for n in (30, 40, 50)]
    assert rates[0] == settings.learning_rate
    assert rates[0] > rates[1] > rates[2] == 0
    by_time = Schedule(epochs=5, iterations_per_epoch=10, minutes=2.0, from_s=60.0)
    assert [by_time.progress(0, s) for s in (60.0, 90.0, 120.0)] == [0.0, 0.5, 1.0]
    assert Schedule(epochs=3, iterations_per_epoch=10, from_iteration=30).progress(30, 0.0) == 1


def test_an_interrupted_extension_goes_on_with_its_own_decay():
    progress = Progress(epoch=3, iteration=30, elapsed_s=9.0, epochs=3)
    progress.extend(5, None)
    assert progress.extensions == [(3, 30, 9.0)]
    progress.epochs, progress.epoch, progress.iteration = 5, 4, 40
    progress.extend(5, None)
    assert progress.extensions == [(3, 30, 9.0)]
    progress.extend(8, None)
    assert progress.extensions == [(3, 30, 9.0), (4, 40, 9.0)]


def test_patience_begins_anew_with_an_extension():
    progress = Progress(epoch=10, best_epoch=2, best_dice=0.9, average_dice=0.5, stopped_early=True)
    progress.extend(20, None)
    progress.epoch_losses, progress.validation_dice = [1.0], [0.1]
    progress.end_epoch(8)
    assert (progress.stopped_early, progress.best_epoch) == (False, 2)


def test_a_record_says_where_it_was_continued_and_older_ones_are_read():
    extended = record(extensions=(Extension(epochs=3, iterations=36, elapsed_s=12.0),))
    assert extended.extensions[0].words.startswith("continued after 3 epochs (36 iterations) with a fresh decay")
    content = record().model_dump(mode="json")
    for name in ("scheduled_epochs", "scheduled_minutes", "extensions"):
        del content[name]
    old = TrainingRecord.model_validate(content | {"schema_version": 1})
    assert (old.schema_version, old.scheduled_epochs, old.extensions) == (2, None, ())
