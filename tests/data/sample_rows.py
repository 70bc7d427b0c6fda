"""Rows of ours in the forms of published datasets."""

import copy
import json

WIKI = {
    "subject": "Ula Brenn",
    "prompt": "The name of the spouse of Ula Brenn is",
    "target_new": "Odo Falk",
    "ground_truth": "Per Holm",
    "rephrase": "Ula Brenn is married to",
    "portability": {
        "Reasoning": [
            {"prompt": "The spouse of Ula Brenn works as", "ground_truth": [["baker", "cook"]]}
        ],
        "Subject_Aliasing": [{"prompt": "The spouse of U. Brenn is", "ground_truth": "Odo Falk"}],
        "Logical_Generalization": [],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The languages of Ula Brenn are", "ground_truth": [["Ket", "Keti"], ["Ido"]]}
        ],
        "Forgetfulness": [
            {"prompt": "A friend of Ula Brenn is", "ground_truth": ["Ann Lo", "A. Lo"]}
        ],
    },
}
ROME = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "relation_id": "P19",
        "target_new": {"str": "Tarn", "id": "Q1"},
        "target_true": {"str": "Uld", "id": "Q2"},
        "subject": "Ula Brenn",
    },
    "paraphrase_prompts": ["It rained. Ula Brenn hails from", "Ula Brenn is from"],
    "neighborhood_prompts": ["Per Holm was born in"],
    "attribute_prompts": ["Odo Falk was born in"],
    "generation_prompts": ["Ula Brenn grew up", "Ula Brenn grew up"],
}
FLAT = {
    "case_id": 8,
    "prompt": "Ula Brenn was born in",
    "target_new": "Tarn",
    "subject": "Ula Brenn",
    "ground_truth": "Uld",
    "rephrase_prompt": "Ula Brenn is from",
    "locality_prompt": "Per Holm was born in",
    "locality_ground_truth": "Uld",
}
ZSRE = {
    "subject": "Fort Ilm",
    "src": "When was Fort Ilm built?",
    "pred": "1801",
    "rephrase": "In which year did they build Fort Ilm?",
    "alt": "1902",
    "answers": ["1811", "in 1811"],
    "loc": "nq question: who sang the song",
    "loc_ans": "Odo Falk",
    "cond": "1801 >> 1902 || When was Fort Ilm built?",
}
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} is married to",
            "subject": "Ula Brenn",
            "target_new": {"str": "Odo Falk", "id": "Q1"},
            "target_true": {"str": "Per Holm", "id": "Q2"},
            "question": "Who is Ula Brenn married to?",
        },
        {
            "prompt": "{} was born in",
            "subject": "Odo Falk",
            "target_new": {"str": "Tarn", "id": "Q3"},
            "target_true": {"str": "Uld", "id": "Q4"},
            "question": "Where was Odo Falk born?",
        },
    ],
    "questions": ["Where was Ula's spouse born?", "Birthplace of Ula's spouse?", "And hers?"],
    "answer": "Uld",
    "answer_alias": [],
    "new_answer": "Tarn",
    "new_answer_alias": ["Tarnby", "Tarn"],
    "single_hops": [
        {"question": "Ula's spouse?", "cloze": "Ula has", "answer": "Per Holm", "answer_alias": []}
    ],
    "new_single_hops": [
        {
            "question": "Ula's spouse?",
            "cloze": "Ula has",
            "answer": "Odo Falk",
            "answer_alias": ["Odo"],
        },
        {"question": "Odo's town?", "cloze": "Odo is of", "answer": "Tarn", "answer_alias": []},
    ],
}


def write(tmp_path, rows, name="rows.json"):
    file = tmp_path / name
    file.write_text(json.dumps(rows))
    return file


def changed(row, **fields):
    return {**copy.deepcopy(row), **fields}


def without(row, *fields):
    return {k: v for k, v in row.items() if k not in fields}
