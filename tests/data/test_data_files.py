"""Files of datasets: their forms, their names, and what is said about broken or absent ones."""

import gzip
import json
import sys
import types

import pytest

from jaxedit.data import files
from jaxedit.data.read import read

ROWS = [{"a": 1}, {"a": "zwei \u2028 halb"}]


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_form_gives_the_same_rows(tmp_path, suffix):
    text = as_lines(ROWS) if "jsonl" in suffix else json.dumps(ROWS)
    raw = text.encode()
    file = tmp_path / f"some{suffix}"
    file.write_bytes(gzip.compress(raw, mtime=0) if suffix.endswith("gz") else raw)
    assert list(files.rows(file)) == [("some[0]", ROWS[0]), ("some[1]", ROWS[1])]
    assert list(files.rows(tmp_path)) == list(files.rows(str(file)))


def test_json_lines_that_are_called_json(tmp_path):
    file = tmp_path / "test.json"
    file.write_text(as_lines(ROWS))
    assert [row for _, row in files.rows(file)] == ROWS


def test_an_object_of_rows_names_them_by_key(tmp_path):
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"x": ROWS[0]}))
    assert list(files.rows(file)) == [("some[x]", ROWS[0])]


def test_a_folder_is_read_in_order_and_by_split(tmp_path):
    for name in ("test_cf.json", "train_cf.json", "blender-val.json"):
        (tmp_path / name).write_text(json.dumps([{"from": name}]))
    (tmp_path / "README.md").write_text("not data")
    rows = [row["from"] for _, row in files.rows(tmp_path)]
    assert rows == ["blender-val.json", "test_cf.json", "train_cf.json"]
    assert [name for name, _ in files.rows(tmp_path, "test")] == ["test_cf[0]"]
    assert [name for name, _ in files.rows(tmp_path, "validation")] == ["blender-val[0]"]
    with pytest.raises(FileNotFoundError, match="no file of the split 'dev'; it has blender-val"):
        list(files.rows(tmp_path, "dev"))
    with pytest.raises(ValueError, match="is one file: give its folder, or no split"):
        list(files.rows(tmp_path / "test_cf.json", "test"))


def test_a_folder_without_data_says_what_is_inside(tmp_path):
    (tmp_path / "ZsRE").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file ending in .*it has the folders ZsRE"):
        list(files.rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("cut.json", b'[\n{"a": 1},\n{"a": "b', r"cut.json: not JSON at line 3, column 7 \(Unterm"),
        ("cut.jsonl", b'{"a": 1}\n\n{"a": ', r"cut.jsonl: not JSON at line 3, column 7"),
        ("two.json", b"[1] [2]", r"two.json: not JSON at line 1, column 5 \(Extra data\)"),
        ("empty.json", b"", r"empty.json: not JSON at line 1"),
        ("cut.json.gz", gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "not whole gzip"),
        ("not.json.gz", b"[1]", "not whole gzip"),
        ("latin.json", '["é"]'.encode("latin-1"), "not UTF-8 text at byte 2"),
        ("number.json", b"7", "a int, not a list or an object"),
        ("lfs.json", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, raw, said):
    file = tmp_path / name
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=said) as error:
        list(files.rows(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["./absent.json", "/absent/folder", "absent.json", "a/b.json"])
def test_a_missing_path_is_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would fail
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read("zsre", path)


class Failure(Exception):
    """In place of the package's own."""


def hub(monkeypatch, load):
    errors = types.SimpleNamespace(DatasetsError=Failure)
    fake = types.SimpleNamespace(load_dataset=load, exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_hub_names_with_a_config_or_a_path(monkeypatch):
    asked = []

    def load(repo, name, data_files, split):
        asked.append((repo, name, data_files, split))
        return ROWS if split else {"train": ROWS[:1], "test": ROWS[1:]}

    hub(monkeypatch, load)
    assert [n for n, _ in files.rows("me/set", "test")] == ["me/set/test[0]", "me/set/test[1]"]
    assert [n for n, _ in files.rows("me/set:main")] == [
        "me/set:main/train[0]",
        "me/set:main/test[0]",
    ]
    list(files.rows("me/set/some/test.json", "train"))
    assert asked == [
        ("me/set", None, None, "test"),
        ("me/set", "main", None, None),
        ("me/set", None, "some/test.json", "train"),
    ]


@pytest.mark.parametrize("error", [ConnectionError, ValueError, Failure])
def test_a_hub_that_gives_nothing_is_one_line(monkeypatch, error):
    def load(*args, **options):
        raise error("offline\nand more")

    hub(monkeypatch, load)
    with pytest.raises(FileNotFoundError) as raised:
        read("zsre", "me/set")
    assert str(raised.value) == (
        "me/set: neither a file or folder here nor a dataset that the hub could give (offline); "
        "check the name, or give the path of a downloaded file"
    )


def test_without_a_network_the_real_package_is_one_line_too():
    with pytest.raises(FileNotFoundError, match="me/absent: neither a file or folder here nor"):
        read("zsre", "me/absent")
