"""Seconds to tokenise CounterFact's requests, rephrasings and locality prompts into batches.

    JAXEDIT_DATA=… .venv/bin/python benchmarks/tokenise.py [cases]       10 seconds; no accelerator

JAXEDIT_DATA holds counterfact/counterfact-train.json and tokenizers/gpt2. Claim: 10,000 cases in at
most 20 s on two cores.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from measure import report, seconds
from transformers import GPT2Tokenizer

from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import Batches, edit_batches, probe_batches


def main() -> None:
    data = Path(os.environ["JAXEDIT_DATA"])
    folder, cases = data / "tokenizers" / "gpt2", int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    tokenizer = GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    rows = json.loads((data / "counterfact" / "counterfact-train.json").read_text())[:cases]
    requests = [EditRequest.of(r["prompt"], r["subject"], r["target_new"]) for r in rows]
    probes = [(r["rephrase_prompt"], r["target_new"]) for r in rows]
    probes += [(r["locality_prompt"], r["locality_ground_truth"]) for r in rows]
    shapes: set[tuple[int, ...]] = set()
    counts = {"texts": 0, "tokens": 0, "cells": 0}

    def run() -> None:
        shapes.clear()
        counts.update(dict.fromkeys(counts, 0))
        made: list[Batches] = [edit_batches(tokenizer, requests), probe_batches(tokenizer, probes)]
        for batches in made:
            counts["texts"] += len(batches.rows)
            counts["tokens"] += sum(len(row.tokens) for row in batches.rows)
            for _, batch in batches:
                shapes.add(batch.tokens_BT.shape)
                counts["cells"] += batch.tokens_BT.size

    spent = seconds(run, repeats=3)
    padding = 1 - counts["tokens"] / counts["cells"]
    report(
        "tokenise CounterFact",
        seconds=spent,
        cases=len(rows),
        texts=counts["texts"],
        tokens=counts["tokens"],
        shapes=len(shapes),
        padding=padding,
    )


if __name__ == "__main__":
    main()
