"""The count of what was given, used and passed over."""

from segpipe.core.given import Given, PassedOver


def test_nothing_is_said_where_everything_is_used() -> None:
    assert Given(kind="files of images/", n_given=4).lines() == []


def test_each_reason_is_one_line_with_examples() -> None:
    left = [PassedOver(what=f"{i}.mnc", why="format .mnc is not read", a_case=True) for i in range(5)]
    left.append(PassedOver(what="notes.txt", why="no image"))
    given = Given(kind="files of images/", n_given=10, passed_over=tuple(left))

    assert given.lines() == [
        "files of images/: 10 given, 4 used, 6 passed over",
        "  format .mnc is not read: 0.mnc, 1.mnc, 2.mnc, and 2 more",
        "  no image: notes.txt",
    ]
    assert given.loses_a_case
    assert not Given(kind="files", n_given=1, passed_over=(left[-1],)).loses_a_case
