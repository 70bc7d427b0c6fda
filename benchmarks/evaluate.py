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
other, as the peers do. They are timed on some of the edits, after ours on all of them. Every way
asks the unedited model as well, and finds out the same: first choices, log-probabilities, free
answers, continuations. Making the edits is not counted.
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
from jaxedit import merge
from jaxedit.base import Array, Params
from jaxedit.data.cases import EditCase
from jaxedit.data.requests import Row, bucket, pad, tokenise
from jaxedit.data.world import cases, make
from jaxedit.edit.record import Edit
from jaxedit.edit.runner import run
from jaxedit.evaluate import ask, observe
from jaxedit.evaluate.ask import Answers, Asker
from jaxedit.evaluate.observe import AskConfig
from jaxedit.evaluate.seen import Observed
from jaxedit.evaluate.task import TIMING, for_data, go
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
    texts = observe.Rows(CFG.protocol)
    items = [observe.item(texts, 0, 0, case, k, p) for k, p in observe.questions(case)]
    rows = [r for _, r in tokenise(model.tokenizer, list(enumerate(texts.texts)))
            if isinstance(r, Row)]  # fmt: skip
    found = {}
    keys = list(texts.number)
    for some in parts(rows, batch):
        arrays = ask.answers(some, 1 << (len(some) - 1).bit_length())
        jax.block_until_ready(led(model.params, arrays, model.cfg))
        _, logp = led(merged, arrays, model.cfg)
        for row, logp_U in zip(some, np.asarray(logp), strict=False):
            found[keys[row.place][1:]] = logp_U[: len(row.tokens) - row.prompt]
    prompts = list(dict.fromkeys(it.probe.prompt for it in items))
    for params in (model.params, merged):
        spoken(model, params, prompts, CFG.say, batch, total=False)
        spoken(model, params, observe.beginnings(case, CFG), CFG.continued, batch, total=True)
    return found


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
        by_edit_over_ours=per["by_edit"] / per["ours"],
        by_probe_over_ours=per["by_probe"] / per["ours"], largest_difference_of_logp=gap,
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
