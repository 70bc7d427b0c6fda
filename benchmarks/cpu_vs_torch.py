"""Forward and batched greedy decode, GPT-2-small on this CPU, beside Hugging Face in torch.

    .venv/bin/python benchmarks/cpu_vs_torch.py        needs the parity extra; 2 minutes on two
    cores

Same random weights, float32, same threads; the two run in turn. Decode: HF's `generate` with its
default cache. Claims: forward of 8 × 128 tokens at most 1.0, decode of 32 rows and 64 tokens at
most 0.7 of torch's seconds.
"""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from measure import alternate, report

import jaxedit
from jaxedit.models.generate import decode
from jaxedit.models.shapes import SHAPES


def main() -> None:
    cfg = SHAPES["gpt2-small"].replace(eos_ids=())
    params = jaxedit.init(jax.random.key(0), cfg)
    with tempfile.TemporaryDirectory() as folder:
        jaxedit.save(jaxedit.Model(params, cfg), f"{folder}/model")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model").eval()
    torch.set_num_threads(os.cpu_count() or 1)
    random = np.random.RandomState(0)

    tokens = random.randint(0, cfg.vocab, (8, 128))
    tokens_BT, tokens_torch = jnp.asarray(tokens), torch.tensor(tokens)

    @torch.no_grad()
    def forward_torch() -> torch.Tensor:
        return theirs(tokens_torch, use_cache=False).logits

    ours = jaxedit.forward(params, tokens_BT, cfg).logits
    gap = float(np.abs(np.asarray(ours) - forward_torch().numpy()).max())
    times = alternate(
        {"ours": lambda: jaxedit.forward(params, tokens_BT, cfg).logits, "torch": forward_torch}
    )
    compare("forward 8 x 128, GPT-2-small", times, largest_difference=gap)

    rows, steps = 32, 64
    prompts = random.randint(0, cfg.vocab, (rows, 16))
    prompts_BT, prompts_torch = jnp.asarray(prompts), torch.tensor(prompts)
    pos_BT = jnp.broadcast_to(jnp.arange(16), (rows, 16))

    @torch.no_grad()
    def decode_torch() -> torch.Tensor:
        return theirs.generate(
            prompts_torch,
            attention_mask=torch.ones_like(prompts_torch),
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
        )

    decode_ours = lambda: decode(params, prompts_BT, pos_BT, cfg, steps=steps).tokens_BN
    same = float((np.asarray(decode_ours()) == decode_torch().numpy()[:, 16:]).mean())
    times = alternate({"ours": decode_ours, "torch": decode_torch}, repeats=3)
    rate = rows * steps / times["ours"]
    name = "decode 32 rows x 64 tokens, GPT-2-small"
    compare(name, times, tokens_per_second=rate, equal_tokens=same)


def compare(name: str, times: dict[str, float], **more: float) -> None:
    ratio = times["ours"] / times["torch"]
    report(name, ours_s=times["ours"], torch_s=times["torch"], ratio=ratio, **more)


if __name__ == "__main__":
    main()
