"""Files are opened through one door: no pipe, no device, no text without end, and nobody's file as a map of memory."""

import ast
import gzip
import os
import socket
import zipfile
import zlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from pydicom.uid import DeflatedExplicitVRLittleEndian

from segpipe.core import regular as door
from segpipe.core.artefact import Artefact, sha256_on_record
from segpipe.core.regular import files_below, lies, open_regular, read_bytes, read_text, regular, special
from segpipe.crossvalidation.files import read_folds
from segpipe.dataset.convert import convert
from segpipe.dataset.entries import entries_of
from segpipe.dataset.match import match_dataset
from segpipe.dataset.schema import FileStamp
from segpipe.dataset.tables import read_json, read_table
from segpipe.errors import CaseError, DatasetError, NoRoomError, SegpipeError, UnreadableFileError
from segpipe.execution import memory
from segpipe.inference.inputs import find_inputs
from segpipe.io import dicom_files, streams
from segpipe.io.dicom_series import find_series
from segpipe.io.formats import content_of, read_header, read_label_volume, read_volume, write_volume
from segpipe.io.streams import take, whole_file
from segpipe.models.file import ModelFile, read_weights
from segpipe.models.nnunet.checkpoint import read_checkpoint
from segpipe.models.read import read_any_model
from segpipe.models.torch_file import load_tested
from segpipe.planning.recipe import load_recipe
from segpipe.training.initial import InitialWeights
from tests.dicoms import voxels, write_series
from tests.phantoms import axis_grid

SOURCE = Path(__file__).parents[2] / "segpipe"


def a_socket(path):
    # A socket's path may have 107 bytes.
    here, place = socket.socket(socket.AF_UNIX), Path.cwd()
    os.chdir(path.parent)
    here.bind(path.name)
    os.chdir(place)
    here.close()


KINDS = {
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}
NO_FOLDERS = [kind for kind in KINDS if kind != "a folder"]
DOORS = {
    "any": [regular, lies, open_regular, read_bytes, read_text],
    "x.json": [Artefact.read, read_json, read_table, read_folds],
    "x.toml": [load_recipe],
    "x.nii.gz": [lambda path: content_of((path,)), read_header, read_volume, read_label_volume],
    "x.mha": [read_header, read_volume],
    "x.png": [read_header, read_label_volume],
    "x.tif": [read_header, read_volume],
    "x.mgz": [read_header],
    "x.segpipe": [ModelFile.read],
    "x.pth": [read_weights, read_checkpoint, load_tested, InitialWeights.of],
    "x.safetensors": [read_weights],
}


# No other kind of file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_file_is_refused_by_name(tmp_path, name, kind):
    path = tmp_path / name
    KINDS[kind](path)
    for read in DOORS[name]:
        if kind == "a folder" and name.endswith((".nii.gz", ".mha", ".png", ".tif", ".mgz")):
            # A folder may be a series of DICOM files.
            continue
        with pytest.raises(SegpipeError, match=rf"{name}: is {kind}, expected a file"):
            read(path)


@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_a_source_that_is_no_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "odd"
    KINDS[kind](path)
    for give in (
        match_dataset,
        lambda path: convert(path, tmp_path / "out"),
        lambda path: find_inputs(path, tmp_path / "out", 1),
        read_any_model,
    ):
        with pytest.raises(SegpipeError, match=f"odd: is {kind}"):
            give(path)


def test_what_is_missing_is_missing_and_a_link_is_followed(tmp_path):
    assert not lies(tmp_path / "none")
    assert special(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "none")
    (tmp_path / "file").write_text("a\r\nb\rc", encoding="utf-8")
    (tmp_path / "link").symlink_to("file")
    assert lies(tmp_path / "link")
    assert read_text(tmp_path / "link") == "a\nb\nc"
    (tmp_path / "lost").symlink_to("nowhere")
    assert not lies(tmp_path / "lost")


def test_a_text_has_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "long.json"
    path.write_text("1234567890", encoding="utf-8")
    assert read_bytes(path, 10) == b"1234567890"
    with pytest.raises(UnreadableFileError, match=r"long\.json: holds 10 bytes, expected at most 9"):
        read_bytes(path, 9)
    with path.open("ab") as file:
        file.truncate(door.LONGEST_TEXT + 1)
    with pytest.raises(UnreadableFileError, match=r"long\.json: holds 268435457 bytes"):
        read_json(path)
    # A file of the system states no size, and may go on.
    monkeypatch.setattr(door.os, "fstat", lambda _: SimpleNamespace(st_size=0))
    with pytest.raises(UnreadableFileError, match="holds 10 bytes, expected at most 9"):
        read_bytes(path, 9)


def test_json_in_json_without_end_is_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"deep\.json: is not JSON"):
        read_json(path)
    with pytest.raises(SegpipeError, match=r"deep\.json"):
        read_folds(path)
    with pytest.raises(SegpipeError, match=r"deep\.json"):
        sha256_on_record(path)
    recipe = tmp_path / "deep.toml"
    recipe.write_text("a = " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(SegpipeError, match=r"deep\.toml"):
        load_recipe(recipe)
    recipe.write_bytes(b"name = '\xe9'")
    with pytest.raises(UnreadableFileError, match=r"deep\.toml: is not UTF-8"):
        load_recipe(recipe)


# Folders


def test_links_to_folders_are_followed_once(tmp_path):
    elsewhere, inside = tmp_path / "elsewhere", tmp_path / "given"
    (elsewhere / "deep").mkdir(parents=True)
    (inside / "own").mkdir(parents=True)
    for file in (elsewhere / "deep" / "a", inside / "own" / "b"):
        file.write_text("", encoding="utf-8")
    os.mkfifo(inside / "pipe")
    for name, to in (
        ("0_again", inside / "own"),
        ("link", elsewhere),
        ("twice", elsewhere),
        ("up", tmp_path),
        ("root", Path("/")),
    ):
        (inside / name).symlink_to(to)
    (elsewhere / "back").symlink_to(inside)
    (elsewhere / "lost").symlink_to("nowhere")
    found = {str(path.relative_to(inside)) for path in files_below(inside)}
    assert found == {"pipe", "own/b", "link/deep/a", "link/lost"} or found == {
        "pipe",
        "own/b",
        "twice/deep/a",
        "twice/lost",
    }


def test_folders_that_cannot_be_opened_are_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    there = Path.iterdir

    def opened(self):
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return there(self)

    monkeypatch.setattr(Path, "iterdir", opened)
    closed: list[OSError] = []
    assert list(files_below(tmp_path, closed)) == []
    assert [Path(error.filename).name for error in closed] == ["closed"]
    found = find_series(tmp_path)
    assert [s.problem for s in found.series] == [
        f"{tmp_path / 'closed'}: Permission denied; ask for the right to read it, or take it away; it may be a slice of a series"
    ]


def test_a_pipe_among_images_is_a_case_that_fails(tmp_path):
    os.mkfifo(tmp_path / "bad.nii.gz")
    os.mkfifo(tmp_path / "odd")
    (tmp_path / "empty.nii.gz").mkdir()
    entries = entries_of(tmp_path)
    assert [path.name for path in entries.images] == ["bad.nii.gz"]
    assert {(p.what, p.why, p.a_case) for p in entries.given.passed_over} == {
        ("odd", "no file: a pipe, a socket or a device", True),
        ("empty.nii.gz/", "folder without images", True),
    }


def test_a_pipe_beside_slices_may_have_been_one(tmp_path):
    write_series(tmp_path / "good")
    write_series(tmp_path / "bad")
    os.mkfifo(tmp_path / "bad" / "zz.dcm")
    given = tmp_path / "given"
    given.mkdir()
    for name in ("good", "bad"):
        (given / name).symlink_to(tmp_path / name)
    done = {c.series: c.reason for c in convert(given, tmp_path / "out")}
    assert done["good"] is None
    assert "zz.dcm: is a pipe, expected a file" in done["bad"]
    with pytest.raises(UnreadableFileError, match=r"zz\.dcm: is a pipe"):
        read_volume(given / "bad")


# Bytes without end


def test_a_stream_that_goes_on_behind_the_voxels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_MOST_BEHIND", 1 << 20)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(1 << 16) + b"\1" * (1 << 23)))
    with pytest.raises(UnreadableFileError, match=r"a\.gz: its compressed content goes on for more than 1048576 bytes"):
        take(path, 0, 1 << 16)
    # Up to the limit the checksum still counts.
    content = bytearray(gzip.compress(bytes(1 << 16) + b"\1" * (1 << 18)))
    path.write_bytes(content)
    assert take(path, 0, 1 << 16).n_behind == 1 << 18
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="checksum does not fit"):
        take(path, 0, 1 << 16)


def test_zeros_behind_are_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_MOST_BEHIND", 1 << 20)
    n_read = [0]
    plain = streams._plain_blocks

    def counted(*how):
        for block in plain(*how):
            n_read[0] += len(block)
            yield block

    monkeypatch.setattr(streams, "_plain_blocks", counted)
    for name, content, how in (
        ("a.gz", gzip.compress(b"\1" * 100), {}),
        ("b.raw", b"\1" * 100, {}),
        ("c.zraw", zlib.compress(b"\1" * 100), {"inside": "zlib"}),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with path.open("ab") as file:
            # A file with holes: no disk is needed.
            file.truncate(1 << 40)
        n_read[0] = 0
        taken = take(path, 0, 100, **how)
        assert bytes(taken.content) == b"\1" * 100
        assert n_read[0] < 1 << 24
        if name == "b.raw":
            assert taken.n_behind == (1 << 40) - 100


def test_what_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    def packed(path, members):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in members:
                archive.writestr(name, bytes(1 << 22))
        return path

    monkeypatch.setattr(memory, "free_bytes", lambda: 1 << 22)
    model = packed(tmp_path / "bomb.segpipe", ["model.json"])
    with pytest.raises(NoRoomError, match=r"bomb\.segpipe: out of memory: its content takes 0\.00419 GB"):
        ModelFile.read(model)
    checkpoint = packed(tmp_path / "bomb.pth", ["archive/data.pkl", "archive/data/0"])
    for read in (read_checkpoint, read_weights, load_tested):
        with pytest.raises(NoRoomError, match=r"bomb\.pth: out of memory"):
            read(checkpoint)
    for name in ("old.pth", "a.safetensors", "a.png"):
        (tmp_path / name).write_bytes(bytes(1 << 22))
        with pytest.raises(NoRoomError, match=f"{name}: out of memory"):
            (whole_file if name == "a.png" else read_weights)(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.nrrd", "a.mha", "a.png", "a.tif", "series"])
def test_voxels_that_do_not_fit_into_the_memory_are_not_decoded(tmp_path, monkeypatch, name):
    if name == "series":
        write_series(tmp_path / name, voxels(rows=64, columns=64))
    elif name == "a.mgz":
        image = nibabel.MGHImage(np.zeros((64, 64, 64), dtype=np.uint8), np.eye(4))
        nibabel.save(image, tmp_path / name)
    else:
        write_volume(
            tmp_path / name,
            np.zeros((1 if name == "a.png" else 16, 128, 128), dtype=np.uint8),
            axis_grid((16, 128, 128)),
        )
    read_volume(tmp_path / name)
    monkeypatch.setattr(memory, "free_bytes", lambda: 20_000)
    for read in (read_volume, read_label_volume):
        with pytest.raises(NoRoomError, match=r"out of memory: its content takes"):
            read(tmp_path / name)
    # Headers are read all the same.
    assert read_header(tmp_path / name).n_channels == 1


def test_a_dicom_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    def deflated(image):
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        image.ImageComments = " " * 8_000

    write_series(tmp_path / "series", change=lambda _, image: deflated(image))
    assert not find_series(tmp_path / "series").series[0].problem
    monkeypatch.setattr(memory, "free_bytes", lambda: 4_000)
    monkeypatch.setattr(dicom_files, "free_bytes", lambda: 4_000)
    assert "out of memory" in find_series(tmp_path / "series").series[0].problem


def test_torch_files_are_read_as_before(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "new.pth")
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        assert read_weights(tmp_path / name)["a"].tolist() == [1, 1, 1]


# What may not be read


def closed_to_all(monkeypatch, name):
    """Refuse to open files of a name, as the system does for who is not root."""
    opened = Path.open

    def refuse(self, *how, **more):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.png", "a.tif", "a.dcm", "a"])
def test_a_file_that_may_not_be_read_is_its_own_failure(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"content")
    closed_to_all(monkeypatch, name)
    for read in (read_header, read_volume, read_label_volume, lambda path: content_of((path,))):
        with pytest.raises(UnreadableFileError, match=rf"{name}: .*Permission denied"):
            read(tmp_path / name)


def test_a_file_that_goes_while_its_case_is_matched_is_a_finding(tmp_path, monkeypatch):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for case in ("one", "two"):
            np.save(tmp_path / folder / case, np.zeros(3))
            (tmp_path / folder / f"{case}.npy").rename(tmp_path / folder / f"{case}.nii.gz")
    stamped = FileStamp.of

    def of(path):
        if path.name == "two.nii.gz":
            path.unlink()
        return stamped(path)

    monkeypatch.setattr(FileStamp, "of", of)
    dataset = match_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["one"]
    assert [(f.case, f.rule) for f in dataset.findings] == [("two", "unreadable")]
    assert "two.nii.gz: No such file or directory" in dataset.findings[0].message


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("too deep"), ValueError("odd"), OSError(5, "Input/output error")]
)
def test_whatever_a_dicom_file_raises_is_its_own_failure(tmp_path, monkeypatch, error):
    write_series(tmp_path / "in" / "good")
    write_series(tmp_path / "in" / "bad")
    read = dicom_files.read_partial

    def raising(stream, **how):
        if Path(stream.name).parent.name == "bad":
            raise error
        return read(stream, **how)

    monkeypatch.setattr(dicom_files, "read_partial", raising)
    done = convert(tmp_path / "in", tmp_path / "out")
    assert sorted(c.series for c in done if c.reason is None) == ["good"]
    assert all("bad" in c.reason for c in done if c.reason is not None)
    assert (tmp_path / "out" / "good.nii.gz").is_file()
    with pytest.raises(CaseError, match="bad"):
        read_volume(tmp_path / "in" / "bad")


# No way round the door

READS = {"read_bytes", "read_text", "open"}
"""Methods of a path that read."""
LIBRARIES = {
    "zipfile.ZipFile", "zipfile.is_zipfile", "tarfile.open", "gzip.open", "bz2.open", "lzma.open", "io.open", "os.open", "open",
    "torch.load", "np.load", "np.fromfile", "np.loadtxt", "np.genfromtxt", "np.memmap", "np.lib.format.open_memmap",
    "nibabel.load", "nib.load", "sitk.ReadImage", "pydicom.dcmread", "dcmread", "pydicom.read_file", "tifffile.TiffFile",
    "tifffile.imread", "tifffile.memmap", "Image.open", "blosc2.open", "blosc2.load_array", "imagecodecs.imread", "safe_open", "load_file",
    "ElementTree.parse", "pd.read_csv", "torch.jit.load", "mmap.mmap", "linecache.getlines", "tokenize.open",
}  # fmt: skip
"""Functions that open a file by its path."""
MORE = {"SetFileName", "SetFileNames", "from_filename", "from_file", "load_weights", "read_model", "imread", "sniff"}
"""Methods of libraries that do."""
ALLOWED = {
    ("core/regular.py", "regular(path).open"): "the door itself",
    ("execution/limits.py", "open"): "the system's place for what nobody reads",
    ("execution/memory.py", "_MEMBERSHIP.read_text"): "the system's own account of memory",
    ("execution/memory.py", "(folder / name).read_text"): "the system's own account of memory",
    ("execution/memory.py", "(folder / 'memory.stat').read_text"): "the system's own account of memory",
    ("execution/memory.py", "Path('/proc/self/status').read_text"): "the system's own account of memory",
    ("execution/device.py", "Path('/proc/cpuinfo').read_text"): "the system's own account of processors",
    ("inference/outputs.py", "file.open"): "an unfinished file of this process, to take its room",
    ("execution/graph.py", "os.open"): "the journal, to add lines to it; it was read through the door before",
}
"""By file, what is called: why it needs no door."""
MAPS = {
    ("evaluation/reliability.py", "np.memmap"): "planes that this process wrote, and nobody else knows of",
    ("inference/memory.py", "np.memmap"): "a file of this process without a name",
    ("inference/outputs.py", "np.lib.format.open_memmap"): "an unfinished file of this process",
}
"""By file, what maps a file into memory: why nobody can cut it short."""


@cache
def nodes():
    """Calls and imports of segpipe, by file."""
    return [
        (path.relative_to(SOURCE).as_posix(), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
    ]


def calls():
    for name, node in nodes():
        if isinstance(node, ast.Call):
            yield name, node, ast.unparse(node.func)


def through_the_door(node):
    parts = [node.func, *node.args, *(k.value for k in node.keywords)]
    return any(
        isinstance(inner, ast.Call) and ast.unparse(inner.func) in ("regular", "open_regular")
        for part in parts
        for inner in ast.walk(part)
    )


def only_writes(node, called):
    place = 1 if called == "open" or called in LIBRARIES else 0
    given = [*node.args[place : place + 1], *(k.value for k in node.keywords if k.arg == "mode")]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else None
    if given and isinstance(given[0], ast.IfExp):
        mode = "".join(part.value for part in (given[0].body, given[0].orelse) if isinstance(part, ast.Constant))
    return isinstance(mode, str) and set(mode) & set("wax") != set() and "r" not in mode


def opens(node, called):
    if called in LIBRARIES:
        return True
    if not isinstance(node.func, ast.Attribute):
        return False
    receiver = ast.unparse(node.func.value)
    # A class that opens something of its own; a reader of another module of segpipe.
    return node.func.attr in MORE or (node.func.attr in READS and receiver != "Project")


def test_no_file_is_read_round_the_door():
    found = {
        (name, called)
        for name, node, called in calls()
        if opens(node, called) and not through_the_door(node) and not only_writes(node, called)
    }
    assert found - ALLOWED.keys() - MAPS.keys() == set()
    assert ALLOWED.keys() - {(name, called) for name, _, called in calls()} == set()


def test_nothing_of_a_user_is_mapped_into_memory():
    found = {
        (name, called)
        for name, node, called in calls()
        if "memmap" in called
        or called.startswith("mmap.")
        or called in ("safe_open", "load_file")
        or any("mmap" in (k.arg or "") for k in node.keywords)
    }
    assert found == MAPS.keys()
    imported = {
        (name, alias.name)
        for name, node in nodes()
        if not isinstance(node, ast.Call)
        for alias in node.names
        if alias.name in ("mmap", "safe_open", "load_file", "memmap")
    }
    assert imported == set()


def test_a_byte_order_mark_of_notepad_is_no_part_of_a_text(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_bytes(b"\xef\xbb\xbf" + 'name = "mine"\ndescription = "für uns"\n'.encode())
    assert load_recipe(recipe).description == "für uns"
    recipe.write_bytes('name = "mine"\ndescription = "für uns"\n'.encode("latin-1"))
    with pytest.raises(SegpipeError, match=r"mine\.toml: is not UTF-8"):
        load_recipe(recipe)
