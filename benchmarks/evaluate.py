"""Evaluating independent edits: hundreds of edited models in one program, beside one at a time.

    python benchmarks/evaluate.py               256 ROME edits of the world, all probes and
                                                generations; a CPU, 10 minutes
    python benchmarks/evaluate.py 64            another number of edits
    python benchmarks/evaluate.py gpu FOLDER [SHAPE] [LIMIT]
                                                ZsRE's test set by ROME on random weights of
                                                Llama-2-7B's shape, end to end, seconds by
                                                stage; one H200. FOLDER holds ZsRE-test-all.json and
                                                GPT-2's encoder.json and vocab.bpe

The plain ways merge an edit into the weights and ask that model in the same JAX, jitted, in the
same buckets of lengths: "by edit" all probes of a case in one batch, "by probe" one after the
other, as the peers do. With the parity extra there is also "in PyTorch": Hugging Face's model with
the edit merged, asked one probe after the other with `generate`, as the peers' code is written.
They are timed on some of the edits, after ours on all of them. Every way asks the unedited model as
well, and finds out the same: first choices, log-probabilities, free answers, continuations. Making
the edits is not counted.
"""

import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import gigabytes
from measure import report
from transformers import GPT2Tokenizer

import jaxedit
from jaxedit import delta, merge
from jaxedit.base import Array, Params
from jaxedit.data.cases import EditCase
from jaxedit.data.requests import Row, bucket, pad, tokenise
from jaxedit.data.world import cases, make
from jaxedit.edit.record import Edit
from jaxedit.edit.runner import run
from jaxedit.evaluate import ask, observe
from jaxedit.evaluate.ask import Answers, Asker
from jaxedit.evaluate.observe import AskConfig
from jaxedit.evaluate.outcome import TIMING
from jaxedit.evaluate.seen import Observed
from jaxedit.evaluate.task import for_data, go
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.generate import decode
from jaxedit.models.shapes import SHAPES
from jaxedit.progress import Meter

QUICK: dict[str, Any] = {"rows.contexts.lengths": ((10, 5),), "covariance": False}
CFG = AskConfig()
ROOM = 1 << 31
Found = dict[tuple[str, str], np.ndarray]  # log-probabilities by prompt and answer


@functools.partial(jax.jit, static_argnames="cfg")
def led(params: Params, rows: Answers, cfg: ModelConfig) -> tuple[Array, Array]:
    logp_BUV = ask.choices(params, rows, cfg)
    at = jnp.take_along_axis(logp_BUV, rows.target_BU[..., None], -1)[..., 0]
    return logp_BUV.argmax(-1), at


def plain(model: Model, case: EditCase, edit: Edit, batch: bool) -> Found:
    """Both models asked everything about a case; log-probabilities of answers by prompt, answer."""
    merged = merge.apply(model.params, edit.deltas)
    keys, rows, prompts = asked_of(model, case)
    found = {}
    for some in parts(rows, batch):
        arrays = ask.answers(some, 1 << (len(some) - 1).bit_length())
        jax.block_until_ready(led(model.params, arrays, model.cfg))
        _, logp = led(merged, arrays, model.cfg)
        for row, logp_U in zip(some, np.asarray(logp), strict=False):
            found[keys[row.place][1:]] = logp_U[: len(row.tokens) - row.prompt]
    for params in (model.params, merged):
        spoken(model, params, prompts, CFG.say, batch, total=False)
        spoken(model, params, observe.beginnings(case, CFG), CFG.continued, batch, total=True)
    return found


def asked_of(model: Model, case: EditCase) -> tuple[list, list[Row], list[str]]:
    """The rows of a case with the keys of their places, and the prompts."""
    texts = observe.Rows(CFG.protocol)
    items = [observe.item(texts, 0, 0, case, k, p) for k, p in observe.questions(case)]
    rows = [r for _, r in tokenise(model.tokenizer, list(enumerate(texts.texts)))
            if isinstance(r, Row)]  # fmt: skip
    return list(texts.number), rows, list(dict.fromkeys(it.probe.prompt for it in items))


def spoken(
    model: Model, params: Params, prompts: Sequence[str], steps: int, batch: bool, total: bool
) -> None:
    ids = model.tokenizer(list(prompts))["input_ids"]
    for some in parts([Row(i, tuple(t), len(t), (-1, -1)) for i, t in enumerate(ids)], batch):
        arrays = pad(some, 1 << (len(some) - 1).bit_length(), "left")
        jax.block_until_ready(
            decode(params, jnp.asarray(arrays.tokens_BT), jnp.asarray(arrays.pos_BT), model.cfg,
                   steps=128 if total else steps, stop_ids=model.cfg.eos_ids,
                   sampling=observe.CONTINUED if total else None, key=jax.random.key(0))
        )  # fmt: skip


def peer(model: Model) -> Callable[[EditCase, Edit], Found] | None:
    """The same of a case in PyTorch, if it is there."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        jaxedit.save(model, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()

    def weight(path: str, layer: int) -> Any:
        assert path == "mlp/down", path  # Conv1D's is [in, out], as ours
        return theirs.transformer.h[layer].mlp.c_proj.weight

    def change(edit: Edit, sign: int) -> None:
        for path, d in delta.single(edit.deltas).items():
            for layer, w in zip(np.asarray(d.layers), np.asarray(delta.product(d)), strict=True):
                weight(path, int(layer)).add_(sign * torch.tensor(w))

    def forced(rows: Sequence[Row]) -> list[np.ndarray]:
        out = []
        for row in rows:
            logp = theirs(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
            at = range(row.prompt - 1, len(row.tokens) - 1)
            out.append(logp[list(at), list(row.tokens[row.prompt :])].numpy())
        return out

    def say(case: EditCase, prompts: Sequence[str]) -> None:
        ends = {"eos_token_id": list(model.cfg.eos_ids), "pad_token_id": model.cfg.eos_ids[0]}
        for ids in model.tokenizer(list(prompts))["input_ids"]:
            theirs.generate(torch.tensor([ids]), max_new_tokens=CFG.say, do_sample=False, **ends)
        for ids in model.tokenizer(list(observe.beginnings(case, CFG)))["input_ids"]:
            theirs.generate(
                torch.tensor([ids]), max_length=CFG.continued, do_sample=True, top_k=5, **ends
            )

    def run(case: EditCase, edit: Edit) -> Found:
        keys, rows, prompts = asked_of(model, case)
        forced(rows)
        say(case, prompts)
        change(edit, 1)
        found = {keys[row.place][1:]: x for row, x in zip(rows, forced(rows), strict=True)}
        say(case, prompts)
        change(edit, -1)
        return found

    return lambda case, edit: torch.inference_mode()(run)(case, edit)


def parts(rows: Sequence[Row], batch: bool) -> list[list[Row]]:
    if not batch:
        return [[row] for row in rows]
    by: dict[int, list[Row]] = {}
    for row in rows:
        by.setdefault(bucket(len(row.tokens)), []).append(row)
    return list(by.values())


def on_cpu(count: int, sample: int = 8) -> None:
    model = jaxedit.load("world", dtype="float32")
    some = list(cases(make("small"), count))
    edits = run(model, [case.request for case in some], "rome", **QUICK)
    asker = Asker(model, ROOM)
    few = np.linspace(0, count - 1, sample).astype(int).tolist()
    ours = functools.partial(observe.observe, asker, some, edits, None, CFG)
    beside = lambda batch: [plain(model, some[i], edits[i], batch) for i in few]
    seen, by_edit = ours(), beside(True)  # compiles
    beside(False)
    gap = largest_gap([seen[i] for i in few], by_edit)
    ways: dict[str, Callable[[], Any]] = {
        "ours": ours, "by_edit": lambda: beside(True), "by_probe": lambda: beside(False)
    }  # fmt: skip
    gaps = {"largest_difference_of_logp": gap}
    if torches := peer(model):
        in_torch = lambda: [torches(some[i], edits[i]) for i in few]
        gaps["to_pytorch"] = largest_gap([seen[i] for i in few], in_torch())
        ways["in_pytorch"] = in_torch
    seconds = {}
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        seconds[name] = time.perf_counter() - start
    per = {k: s / (count if k == "ours" else sample) for k, s in seconds.items()}
    report(
        f"{count} independent ROME edits of the world evaluated, generations and all",
        seconds=seconds["ours"], probes=sum(len(case.asked) for case in seen),
        **{f"seconds_per_edit_{k}": s for k, s in per.items()},
        **{f"{k}_over_ours": s / per["ours"] for k, s in per.items() if k != "ours"}, **gaps,
    )  # fmt: skip


def largest_gap(ours: Sequence[Observed], theirs: Sequence[Found]) -> float:
    """Of log-probabilities of answers' tokens."""
    gap = 0.0
    for seen, there in zip(ours, theirs, strict=True):
        for asked in seen.asked:
            for names, forced in zip(asked.probe.answers, asked.after.answers, strict=True):
                for name, one in zip(names, forced, strict=True):
                    logp = there[asked.probe.prompt, name]
                    gap = max(gap, float(np.abs(logp - np.array(one.logp)).max()))
    return gap


def on_gpu(folder: str, shape: str = "llama-2-7b", limit: str = "0") -> None:
    tokenizer = GPT2Tokenizer(vocab=f"{folder}/encoder.json", merges=f"{folder}/vocab.bpe")
    cfg = SHAPES[shape].replace(vocab=len(tokenizer), dtype="bfloat16", eos_ids=(), bos_id=None)
    model = Model(jaxedit.init(jax.random.key(0), cfg, "bfloat16"), cfg, tokenizer)
    file = f"{folder}/ZsRE-test-all.json"
    with tempfile.TemporaryDirectory() as workdir:
        task = for_data(f"knowedit/zsre:{file}", "rome", "llama-2-7b-easyedit", workdir=workdir,
                        limit=int(limit), chunk=256)  # fmt: skip
        layer = min(task.editor.layer, cfg.layers - 1)  # of a smaller shape
        task = dataclasses.replace(task, editor=dataclasses.replace(task.editor, layer=layer))
        start = time.perf_counter()
        found = go(task, model, progress=Meter("evaluating", "cases"))
        took = time.perf_counter() - start
        stages = json.loads(Path(workdir, TIMING).read_text())
    report(
        f"ZsRE by ROME, {shape}, compilation and all", cases=found["cases"], minutes=took / 60,
        seconds=stages, peak_gb=gigabytes(),
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:
        on_gpu(*sys.argv[2:])
    else:
        on_cpu(int(sys.argv[1]) if sys.argv[1:] else 256)


if __name__ == "__main__":
    main()
