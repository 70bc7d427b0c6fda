"""Our metrics beside the peers' own functions, on the same edited models.

    git clone https://github.com/zjunlp/EasyEdit FOLDER/EasyEdit
    git clone https://github.com/kmeng01/rome FOLDER/rome
    JAXEDIT_PEERS=FOLDER python -m pytest -m parity tests/parity/test_peer_metrics.py

Their modules import far more than the functions need, so these are taken out of their files.
"""

import ast
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jaxedit
from jaxedit.data.cases import KEYS
from jaxedit.data.world import cases, make
from jaxedit.edit import run
from jaxedit.evaluate import metrics
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig, observe
from jaxedit.evaluate.scores import score
from jaxedit.evaluate.texts import ngram_entropy, words

PEERS = Path(os.environ.get("JAXEDIT_PEERS", ""))
EASYEDIT = PEERS / "EasyEdit/easyeditor/evaluate/evaluate_utils.py"
ROME = PEERS / "rome/experiments/py"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not EASYEDIT.exists() or not ROME.exists(), reason="needs JAXEDIT_PEERS"),
]
MANY, EDITS = 12, 3


def functions(path, **names):
    """The functions of a file, with these names for its imports, on the CPU."""
    source = path.read_text().replace('.to("cuda")', '.to("cpu")')
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        node.returns = None
        for arg in node.args.args:
            arg.annotation = None
    nltk = SimpleNamespace(
        word_tokenize=words,
        ngrams=lambda tokens, n: zip(*(tokens[i:] for i in range(n)), strict=False),
        FreqDist=Counter,
    )
    found = {"torch": torch, "np": np, "nltk": nltk, "normalize_device": str} | names
    exec(compile(tree, str(path), "exec"), found)
    return SimpleNamespace(**found)


def settings():
    return SimpleNamespace(max_length=64, alg_name="ROME")


def without_begin(name, folder):
    """The model with a tokenizer that puts nothing first, as ROME's functions take for granted."""
    jaxedit.save(jaxedit.load(name, dtype="float32"), folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    return jaxedit.load(folder, dtype="float32")


def in_torch(model, folder):
    jaxedit.save(model, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return theirs, tokenizer


@pytest.fixture(scope="module", params=["world", "world-llama"])
def edited(request, tmp_path_factory):
    """Cases, what we find of them under both protocols, and their edited models in torch."""
    name = request.param
    model = without_begin(name, tmp_path_factory.mktemp(name) / "model")
    some = [c for c in cases(make("small"), MANY) if len(c.requests) == 1][:EDITS]
    edits = run(model, [c.request for c in some], "ft-m")
    ours = {
        protocol: observe(
            Asker(model, 1 << 28), some, edits, cfg=AskConfig(protocol, say=0, continued=0)
        )
        for protocol in ("easyedit", "paper")
    }
    folder = tmp_path_factory.mktemp(name)
    plain = in_torch(model, folder / "plain")
    theirs = [in_torch(e.merge(model), folder / str(i)) for i, e in enumerate(edits)]
    return ours, plain, theirs


def test_scores_under_easyedits_protocol_are_easyedits(edited):
    ours, plain, theirs = edited
    peer = functions(EASYEDIT)
    # One at a time: several are padded on the left, which moves GPT-2's learned positions.
    asked_of = lambda there, prompts, answers, **how: [
        peer.test_prediction_acc(*there, settings(), prompt, answer, "cpu", **how)[0]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    compared = []
    for found, there in zip(ours["easyedit"], theirs, strict=True):
        mine = score(found, "easyedit")
        for key in ("edit", "rephrase", *(k for k in KEYS if k.startswith("portability/"))):
            name = {"edit": "edit_success", "rephrase": "generalization"}.get(key, key)
            if asked := found.of(key):
                prompts = [a.probe.prompt for a in asked]
                answers = [a.probe.answers[0][0] for a in asked]
                same = np.mean(asked_of(there, prompts, answers))
                compared.append((key, mine[f"{name}/token"], same))
        for key in (k for k in KEYS if k.startswith("locality/")):
            if asked := found.of(key):
                prompts = [a.probe.prompt for a in asked]
                answers = [a.probe.answers[0][0] for a in asked]
                before = asked_of(plain, prompts, answers, locality=True)
                after = asked_of(there, prompts, answers, locality=True)
                same = np.mean(
                    [np.mean(np.equal(a, b)) for a, b in zip(after, before, strict=True)]
                )
                compared.append((key, mine[f"{key}/agreement"], same))
    assert len({key for key, *_ in compared}) >= 6
    assert len({value for _, value, _ in compared}) > 2  # not all right, not all wrong
    for key, mine, same in compared:
        assert mine == pytest.approx(same, abs=1e-9), key


def test_probabilities_are_those_of_rome_and_memit(edited):
    ours, _, theirs = edited
    peer = functions(ROME / "eval_utils_counterfact.py")
    count = 0
    for found, there in zip(ours["paper"], theirs, strict=True):
        request = found.case.request
        asked = [a for a in found.asked if a.after.new and a.after.true]
        for a in asked:
            kept = a.key.startswith("locality/")  # a neighbour has an answer of its own
            true = a.probe.answers[0][0] if kept else request.ground_truth[0]
            (both,) = peer.test_batch_prediction(*there, [a.probe.prompt], request.target, true)
            for forced, key in ((a.after.new, "target_new"), (a.after.true, "target_true")):
                assert -np.mean(forced.logp) == pytest.approx(both[key], abs=1e-4)
            won = metrics.probability_success(a.after.new.logp, a.after.true.logp)
            assert won == (both["target_new"] < both["target_true"])
            count += 1
    assert count >= 3 * EDITS


def test_token_accuracy_is_that_of_rome_on_zsre(edited):
    ours, _, theirs = edited
    peer = functions(ROME / "eval_utils_zsre.py")
    for found, (model, tokenizer) in zip(ours["paper"], theirs, strict=True):
        for asked in found.of("edit", "rephrase"):
            target = asked.after.answers[0][0].target
            prompts = [
                asked.probe.prompt + tokenizer.decode(target[:i]) for i in range(len(target))
            ]
            said = [tokenizer.decode(t) for t in target]
            right = peer.test_batch_prediction_acc(model, tokenizer, prompts, said)
            mine = metrics.token_accuracy(asked.after.answers[0][0].said, target)
            assert mine == pytest.approx(np.mean(right), abs=1e-9)


@pytest.mark.parametrize("text", ["a b c a b c a b d.", "Lira was born in Vemo, in Vemo; in Vemo."])
def test_fluency_is_theirs(text):
    import scipy

    for path in (EASYEDIT, ROME / "eval_utils_counterfact.py"):
        peer = functions(path, scipy=scipy)
        assert ngram_entropy(text) == pytest.approx(peer.n_gram_entropy([text]), abs=1e-9)
