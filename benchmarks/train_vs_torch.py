"""Training steps of the shipped model's shape on this CPU, beside a plain loop in PyTorch.

    .venv/bin/python benchmarks/train_vs_torch.py        needs the parity extra; 2 minutes
    .venv/bin/python benchmarks/train_vs_torch.py given-back     free memory is not kept

Both: float32, 16 windows of 64 tokens, AdamW with weight decay, gradients clipped to a norm of 1,
the same threads, the two in turn. Theirs is Hugging Face's model (sdpa attention) and fused AdamW.
Claim: at least 1.0 times torch's tokens per second.
"""

import os
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers
from measure import alternate, report

import jaxedit
from jaxedit import memory, settings
from jaxedit.train.language import language_task

ROWS, LENGTH, STEPS = 16, 64, 20


def main() -> None:
    if sys.argv[1:] != ["given-back"]:
        memory.keep()  # as training does; it holds for torch in the same process too
    for preset in ("small", "small-llama"):
        compare(preset)


def compare(preset: str) -> None:
    run, _ = settings.load(f"configs/world.py:{preset}")
    cut = ["task.text.source.paths=(world:small:0:4000,)", "task.text.mode=stream"]
    cfg = settings.override(run, cut).task
    task = language_task(cfg, 1000)
    state = task.init()
    batches = [task.batch(i) for i in range(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        assert cfg.model is not None
        jaxedit.save(jaxedit.Model(state["trained"], cfg.model), f"{folder}/model")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model").train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.set_num_threads(os.cpu_count() or 1)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.02, fused=True)
    rows = [torch.tensor(np.array(b["tokens_BT"][0], np.int64)) for b in batches]

    def ours() -> object:
        nonlocal state
        for batch in batches:
            state, metrics = task.update(state, batch)
        return metrics["loss"]

    def torches() -> None:
        for x in rows:
            optimizer.zero_grad()
            logits = theirs(x[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()

    times = alternate({"ours": ours, "torch": torches})
    tokens = ROWS * LENGTH * STEPS
    report(
        f"training steps, configs/world.py:{preset}",
        ours_tokens_per_second=tokens / times["ours"],
        torch_tokens_per_second=tokens / times["torch"],
        ratio=times["torch"] / times["ours"],
    )
    jax.clear_caches()


if __name__ == "__main__":
    main()
