"""Places for results are tried before the work begins; nothing is left there."""

import errno
import os
from pathlib import Path

import pytest

from segpipe.core.writable import require_writable, require_writable_file
from segpipe.errors import SegpipeError
from segpipe.postprocessing.schema import PostprocessingRules


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    require_writable(tmp_path / "a" / "b", "OUTPUT")
    require_writable_file(tmp_path / "a" / "scores.json", "--output", PostprocessingRules.lies)
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_refused_with_its_option(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(
        SegpipeError, match=r"OUTPUT .*file/out: cannot be written \(.*file\): Not a directory; give another place"
    ):
        require_writable(tmp_path / "file" / "out", "OUTPUT")
    with pytest.raises(SegpipeError, match="is a folder; give a file"):
        require_writable_file(tmp_path, "--output", PostprocessingRules.lies)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_read_only_share_and_a_full_quota_are_noticed(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(SegpipeError, match=os.strerror(number)):
        require_writable(tmp_path, "workspace")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_no_file_can_be_in():
    with pytest.raises(SegpipeError, match="cannot be written"):
        require_writable(Path("/proc/segpipe/out"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_only_what_segpipe_wrote_is_replaced(tmp_path):
    """A mask given as --output by mistake would be lost."""
    mask, rules, pipe = tmp_path / "mask.nii.gz", tmp_path / "rules.json", tmp_path / "pipe"
    mask.write_bytes(b"a mask")
    PostprocessingRules().write(rules)
    os.mkfifo(pipe)
    require_writable_file(rules, "--rules", PostprocessingRules.lies)
    with pytest.raises(
        SegpipeError, match=r"--output .*mask\.nii\.gz: is there already and is none that this command writes"
    ):
        require_writable_file(mask, "--output", PostprocessingRules.lies)
    with pytest.raises(SegpipeError, match="is a pipe, a socket or a device"):
        require_writable_file(pipe, "--rules", PostprocessingRules.lies)
