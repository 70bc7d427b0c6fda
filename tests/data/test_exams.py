"""Questions, problems and dialogues, on rows of ours in the published forms."""

import json

import pytest

from jaxedit.data.read import read


def write(tmp_path, rows, name="rows.jsonl"):
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reasons(found):
    return [skip.reason for skip in found.skipped]


def test_mmlu(tmp_path):
    row = {"subject": "sums", "question": "1 + 1?", "choices": ["1", " 2", "3", "4"], "answer": 1}
    rows = [row, {**row, "answer": 4}, {**row, "choices": ["1", ""]}, {**row, "answer": "B"}]
    found = read("mmlu", write(tmp_path, [*rows, {**row, "answer": -1}]))
    first, hidden = found
    assert (first.id, first.question, first.subject) == ("rows[0]", "1 + 1?", "sums")
    assert first.choices[first.answer] == "2"
    assert hidden.answer is None
    assert reasons(found) == [
        "answer 4, but there are 4 choices",
        "the choices ('1', '') need to be two or more, none empty",
        "answer is 'B', not the number of a choice",
    ]


def test_commonsense_qa(tmp_path):
    row = {
        "id": "x1",
        "question": "Where is bread sold?",
        "question_concept": "bread",
        "choices": {"label": ["A", "B"], "text": ["bank", "bakery"]},
        "answerKey": "B",
    }
    rows = [row, {**row, "id": "x2", "answerKey": ""}, {**row, "id": "x3", "answerKey": "C"}]
    found = read("commonsense_qa", write(tmp_path, rows))
    assert [(q.id, q.answer, q.subject) for q in found] == [
        ("x1", 1, "bread"),
        ("x2", None, "bread"),
    ]
    assert reasons(found) == ["answerKey 'C': one of A, B"]


def test_piqa_labels_lie_beside_the_questions(tmp_path):
    rows = [{"goal": f"Do {n}", "sol1": "so", "sol2": "or so"} for n in range(2)]
    file = write(tmp_path, rows, "valid.jsonl")
    assert [q.answer for q in read("piqa", file)] == [None, None]
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    found = read("piqa", file)
    assert [q.answer for q in found] == [1, 0]
    assert found[0].choices == ("so", "or so")
    (tmp_path / "valid-labels.lst").write_text("1\n")
    with pytest.raises(ValueError, match="1 labels for 2 questions"):
        read("piqa", file)


def test_piqa_labels_of_the_hub(tmp_path):
    rows = [{"goal": "Do", "sol1": "so", "sol2": "or so", "label": n} for n in (0, 1, -1)]
    assert [q.answer for q in read("piqa", write(tmp_path, rows))] == [0, 1, None]


def test_gsm8k(tmp_path):
    rows = [
        {"question": "How many?", "answer": "It is <<2*600=1200>>1200.\n#### 1,200"},
        {"question": "How many?", "answer": "Nobody knows."},
        {"question": "How many?", "answer": "Nobody knows. #### "},
    ]
    found = read("gsm8k", write(tmp_path, rows))
    (problem,) = found
    assert (problem.solution, problem.answer) == ("It is <<2*600=1200>>1200.", "1200")
    assert reasons(found) == ["the answer does not end in #### and a number"] * 2


def test_transfer(tmp_path):
    user, assistant = ({"role": r, "content": f"{r} speaks"} for r in ("user", "assistant"))
    row = {"dataset": "mmlu", "category": "sums", "id": "sums_1", "messages": [user, assistant]}
    rows = [
        row,
        {"id": "sums_2", "messages": [user]},
        {"id": "sums_3", "messages": []},
        {"id": "sums_4", "messages": [{"role": "tool", "content": "x"}, assistant]},
        {"id": "sums_5", "messages": [user, {"role": "assistant", "content": " "}]},
    ]
    found = read("transfer", write(tmp_path, rows))
    (dialogue,) = found
    assert (dialogue.id, dialogue.dataset, dialogue.subject) == ("sums_1", "mmlu", "sums")
    assert dialogue.messages == (("user", "user speaks"), ("assistant", "assistant speaks"))
    assert reasons(found) == [
        *["the last message is not the assistant's"] * 2,
        "role 'tool': one of system, user, assistant",
        "empty content",
    ]
