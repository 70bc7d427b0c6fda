"""Safetensors files: the same bytes as the safetensors package, parts of tensors, and damage."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxedit import tensorfile
from jaxedit.tensorfile import Entry, entries, read_header, write

RANDOM = np.random.RandomState(0)
ARRAYS = {
    "f32": RANDOM.standard_normal((3, 5)).astype(np.float32),
    "bf16": RANDOM.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16),
    "f16": RANDOM.standard_normal((7,)).astype(np.float16),
    "i64": RANDOM.randint(-9, 9, (4, 2)),
    "bool": RANDOM.rand(3, 3) > 0.5,
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        x, y = np.asarray(got[name]), want[name]
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


def read_all(file):
    return {name: t.read() for name, t in read_header(file)[0].items()}


def test_the_package_reads_our_files(tmp_path):
    file = tmp_path / "ours.safetensors"
    write(file, entries(ARRAYS), {"format": "pt", "of": "a test"})
    with safe_open(file, framework="numpy") as opened:
        assert_same({name: opened.get_tensor(name) for name in opened.offset_keys()}, ARRAYS)
        assert opened.metadata() == {"format": "pt", "of": "a test"}


def test_we_read_the_packages_files(tmp_path):
    file = tmp_path / "theirs.safetensors"
    save_file(ARRAYS, file, {"format": "pt"})
    assert_same(read_all(file), ARRAYS)
    assert read_header(file)[1] == {"format": "pt"}
    assert {n: t.shape for n, t in read_header(file)[0].items()} == {
        n: x.shape for n, x in ARRAYS.items()
    }


def test_our_files_round_trip(tmp_path):
    file = tmp_path / "x.safetensors"
    write(file, entries(ARRAYS))
    assert_same(read_all(file), ARRAYS)


def test_arrays_of_any_layout_are_written_row_by_row(tmp_path):
    x = RANDOM.standard_normal((4, 6)).astype(np.float32)
    views = {"transposed": x.T, "strided": x[::2, ::3], "reversed": x[::-1]}
    write(tmp_path / "x", entries(views))
    assert_same(read_all(tmp_path / "x"), views)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])  # bytes; a row of x has 96
def test_slices_are_numpys(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tensorfile, "CHUNK", chunk)
    x = RANDOM.standard_normal((10, 6, 4)).astype(np.float32)
    write(tmp_path / "x", entries({"before": ARRAYS["f16"], "x": x, "y": x[0, 0]}))
    tensors = read_header(tmp_path / "x")[0]
    s = np.s_
    for index in (
        s[:],
        s[2:5],
        s[7:],
        s[:, 1:3],
        s[3:9, 2:],
        s[0:10, 0:6, 1:2],
        s[4:5, 5:6, 3:4],
        s[:, -2:],
        s[5:5],
        s[:, 3:3],
        s[8:99],
    ):
        index = index if isinstance(index, tuple) else (index,)
        np.testing.assert_array_equal(tensors["x"].read(*index), x[index], err_msg=str(index))
    np.testing.assert_array_equal(tensors["y"].read(slice(1, 3)), x[0, 0, 1:3])


def test_a_slice_reads_only_what_it_holds(tmp_path, monkeypatch):
    x = RANDOM.standard_normal((1000, 8)).astype(np.float32)
    write(tmp_path / "x", entries({"x": x}))
    tensor, asked, preadv = read_header(tmp_path / "x")[0]["x"], [], tensorfile.os.preadv

    def counted(fd, buffers, offset):
        asked.append(sum(len(b) for b in buffers))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(tensorfile.os, "preadv", counted)
    np.testing.assert_array_equal(tensor.read(slice(10, 13)), x[10:13])
    assert sum(asked) == x[10:13].nbytes
    asked.clear()
    np.testing.assert_array_equal(tensor.read(slice(10, 13), slice(2, 4)), x[10:13, 2:4])
    assert sum(asked) == x[10:13].nbytes  # whole rows, of which columns are cut out


def test_a_short_read_is_continued(tmp_path, monkeypatch):
    """The system may return fewer bytes than were asked for."""
    x = RANDOM.standard_normal((50, 8)).astype(np.float32)
    write(tmp_path / "x", entries({"x": x}))
    preadv = tensorfile.os.preadv
    short = lambda fd, buffers, offset: preadv(fd, [buffers[0][:100]], offset)
    monkeypatch.setattr(tensorfile.os, "preadv", short)
    np.testing.assert_array_equal(read_header(tmp_path / "x")[0]["x"].read(), x)


def header_only(file, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_a_truncated_file_is_refused_before_anything_is_read(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, entries({"a": np.zeros(8, np.float32), "b": np.ones(8, np.float32)}))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated: b ends at byte"):
        read_header(file)
    for n in (0, 5, 8, 30):  # within the length, and within the header
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=rf"model\.safetensors.*cut off \({n} bytes\)"):
            read_header(file)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, entries({"a": np.zeros((8, 8), np.float32)}))
    tensor = read_header(file)[0]["a"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ends inside a; the file is truncated"):
        tensor.read()


@pytest.mark.parametrize(
    "text",
    [
        b"not json at all, but long enough to be one",
        b'["a", "list"]',
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b"\xff\xfe\x00garbage",
    ],
)
def test_a_header_that_is_none(tmp_path, text):
    header_only(tmp_path / "x.safetensors", text)
    with pytest.raises(ValueError, match=r"x\.safetensors: not a safetensors file"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_contradicts_itself(tmp_path, entry):
    """Or a tensor would be read from bytes that are not its own."""
    header_only(tmp_path / "x.safetensors", {"a": entry}, bytes(16))
    with pytest.raises(ValueError, match=r"x\.safetensors: .*\ba\b"):
        read_header(tmp_path / "x.safetensors")


def test_an_unknown_dtype_is_named_when_it_is_read(tmp_path):
    """Not before: a file may hold tensors that nobody asks for."""
    entry = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    header_only(tmp_path / "x.safetensors", {"a": entry}, bytes(2))
    tensor = read_header(tmp_path / "x.safetensors")[0]["a"]
    with pytest.raises(ValueError, match=r"a is stored as F8_E4M3, which is not supported: F64"):
        tensor.read()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, entries({"a": np.ones(3, np.float32)}))
    old = file.read_bytes()

    def fail():
        raise RuntimeError("the disk is full")

    two = lambda: np.zeros(2, np.float32)
    first = Entry("a", (1000,), np.dtype(np.float32), lambda: np.zeros(1000, np.float32))
    with pytest.raises(RuntimeError, match="the disk is full"):
        write(file, [first, Entry("b", (2,), np.dtype(np.float32), fail)])
    with pytest.raises(ValueError, match=r"b: float32\(2,\) to be written as float32\(3,\)"):
        write(file, [first, Entry("b", (3,), np.dtype(np.float32), two)])
    with pytest.raises(ValueError, match="c is complex64"):
        write(file, entries({"c": np.zeros(2, np.complex64)}))
    assert file.read_bytes() == old
    with pytest.raises(RuntimeError):
        write(tmp_path / "new", [Entry("b", (2,), np.dtype(np.float32), fail)])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_are_made_one_after_another(tmp_path):
    """What is written need not exist all at once."""
    alive, most = set(), []

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make():
        x = np.zeros(4, np.float32).view(Counted)
        alive.add(id(x))
        most.append(len(alive))
        return x

    write(tmp_path / "x", [Entry(n, (4,), np.dtype(np.float32), make) for n in "abcd"])
    assert len(most) == 4
    assert max(most) <= 2  # the one before may live until its name is taken
