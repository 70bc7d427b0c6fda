"""Datasets by name: unknown names, and files of another dataset."""

import pytest
from sample_rows import WIKI, write

from jaxedit.data.read import READERS, read


def test_unknown_names_are_suggested(tmp_path):
    with pytest.raises(ValueError, match="dataset 'counterfacts': did you mean counterfact"):
        read("counterfacts", tmp_path)
    with pytest.raises(ValueError, match="one of knowedit/wiki_recent, "):
        read("?", tmp_path)


@pytest.mark.parametrize("name", ["zsre", "counterfact", "mquake", "ripple", "known_1000", "mmlu"])
def test_another_dataset_is_an_error_and_not_a_list_of_skips(tmp_path, name):
    with pytest.raises(ValueError, match=f"none of 2 rows could be read as {name}: rows\\[0\\]: "):
        read(name, write(tmp_path, [WIKI, WIKI]))


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no row could be read as zsre"):
        read("zsre", write(tmp_path, []))


WRONG = [None, 1, "text", [], {}, {"K_F": None}]


@pytest.mark.parametrize("value", [WRONG, {"K_F": None, "P1": {"vocab": WRONG}, "x": 1}])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_breaks_on_rows_of_a_wrong_kind(tmp_path, name, value):
    with pytest.raises(ValueError, match=r"could be read|no requests|not a relation"):
        read(name, write(tmp_path, value))
