from pathlib import Path

import pytest

from segpipe.dataset.names import cases_to_predict, cases_with_labels, digits_of


def files(*stems):
    return [Path(f"{stem}.nii.gz") for stem in stems]


def shown(cases):
    return {
        case: {n: [f.name.split(".")[0] for f in found] for n, found in channels.items()}
        for case, channels in cases.items()
    }


def training(images, labels, n_channels=0, within=1):
    held = within if callable(within) else lambda _: within
    return shown(cases_with_labels(files(*images), labels, n_channels, held))


def prediction(images, n_channels=1, digits="channel", within=1):
    held = within if callable(within) else lambda _: within
    return sorted(cases_to_predict(files(*images), n_channels, digits, held)[0])


TWO = ["c0_0000", "c0_0001", "c1_0000", "c1_0001"]


def test_labels_of_the_beginning_say_channel_and_labels_of_the_whole_name_say_case():
    assert sorted(training(TWO, ["c0", "c1"])) == ["c0", "c1"]
    assert sorted(training(TWO, TWO)) == TWO


@pytest.mark.parametrize("n_channels", [0, 2])
def test_one_odd_label_changes_its_own_case_alone(n_channels):
    found = training(TWO, ["c0", "c1", "c0_0000"], n_channels)
    assert found == {"c0": {0: ["c0_0000"], 1: ["c0_0001"]}, "c1": {0: ["c1_0000"], 1: ["c1_0001"]}}


def test_one_odd_label_does_not_make_channels_of_frames():
    frames = [f"frame_{n:04d}" for n in range(5)]
    assert sorted(training(frames, [*frames, "frame"])) == frames


def test_both_readings_stand_beside_each_other():
    assert sorted(training([*TWO, "p_0001", "p_0002"], ["c0", "c1", "p_0001", "p_0002"])) == [
        "c0",
        "c1",
        "p_0001",
        "p_0002",
    ]


def test_where_labels_say_nothing_the_other_names_do():
    frames = [f"frame_{n:04d}" for n in range(4)]
    assert "p_0000" in training([*frames, "p_0000"], [*frames, "p", "p_0000"])
    assert "p" in training([*TWO, "p_0000"], ["c0", "c1", "p", "p_0000"])


def test_labels_named_like_the_first_channel_do_not_hide_the_second():
    assert sorted(training(TWO, ["c0_0000", "c1_0000"], n_channels=2)) == ["c0", "c1"]


def test_files_with_all_declared_channels_are_cases():
    frames = ["f_0000", "f_0001", "f_0002"]
    assert sorted(training(frames, ["f_0000"], n_channels=3, within=3)) == frames


def test_frames_keep_their_ids_in_prediction():
    frames = [f"frame_{n:04d}" for n in range(4)]
    assert prediction(frames) == frames
    assert prediction(frames, digits="case") == frames
    assert prediction(["frame_0000"], digits="case") == ["frame_0000"]
    assert prediction(["a_0000", "b_0000"]) == ["a", "b"]


def test_one_series_of_frames_leaves_the_other_names_as_they_are():
    assert prediction(["a_0000", "b_0000", "f_0000", "f_0001"]) == ["a", "b", "f_0000", "f_0001"]


def test_several_numbers_for_a_model_of_one_channel_are_named():
    assert cases_to_predict(files("a_0000", "a_0001", "b_0000"), 1, "channel", lambda _: 1)[1] == ["a"]
    assert cases_to_predict(files("a_0000", "a_0001"), 1, "case", lambda _: 1)[1] == []


def test_colour_frames_are_cases_for_a_model_of_three_channels():
    frames = [f"frame_{n:04d}" for n in range(3)]
    assert prediction(frames, 3, within=3) == frames
    assert prediction(frames, 3, within=1) == ["frame"]
    # Frames in training are frames in prediction, however many there are.
    assert prediction(frames, 3, "case", within=1) == frames
    # One grey frame among them costs itself.
    assert prediction(frames, 3, within=lambda f: 1 if f.name.startswith("frame_0001") else 3) == [
        "frame",
        "frame_0000",
        "frame_0002",
    ]


def test_a_file_of_all_channels_may_end_in_0000():
    assert prediction(["a_0000"], 2, within=2) == ["a"]


def test_what_digits_were_is_that_of_most_names():
    assert digits_of([("f_0000", "f_0000"), ("f_0001", "f_0001"), ("c", "c_0000")]) == "case"
    assert digits_of([("c_0001", "c_0001_0000"), ("c_0002", "c_0002_0000")]) == "channel"
    assert digits_of([("a", "a"), ("b", "b")]) == "channel"
