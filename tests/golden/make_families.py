"""Writes tests/golden/families: what transformers' torch models compute with the tests' weights.

    .venv/bin/python tests/golden/make_families.py [variant ...]      (needs the parity extra)

Per variant: config.json and the names and shapes of the file, both as save_pretrained writes them,
and expected.npz with
    tokens [1, T]            a prompt, and of the model on it:
    logits [1, T, V]
    sites/NAME [L, 1, P, n]  every site at the positions families.AT ("embed" without L)
    grad [F, D]              of the mean next-token loss, for families.GRAD_LAYER's mlp/down
    prompts [B, S]           left-padded prompts of several lengths,
    prompts_pos [B, S]       their positions, -1 at padding,
    generated [B, steps]     and what greedy generation adds
and for families.LENGTH_DEPENDENT also
    short [1, 8, V]          logits of the first 8 tokens alone
    steps [1, T, V]          logits of 6 tokens and then one by one, through torch's cache
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import families
import numpy as np
import reference
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

LENGTHS, STEPS = (9, 11, 13), 8
LEAD, VARIED = 0.02, 12  # of a best logit over the next; different tokens among the generated


def build(variant: str, folder: Path) -> Any:
    """The torch model with the frozen weights, loaded from a folder as any checkpoint is."""
    kind, fields = families.CONFIGS[variant]
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).float().save_pretrained(folder)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    out = families.GOLDEN / variant
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text((folder / "config.json").read_text())
    rows = ",\n".join(f"  {json.dumps(n)}: {list(s)}" for n, s in shapes.items())
    (out / "shapes.json").write_text("{\n" + rows + "\n}\n")
    save_file(families.weights(variant), folder / "model.safetensors", {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def generate(model: Any, variant: str) -> tuple[dict[str, np.ndarray], float]:
    """Greedy continuations of prompts, the first (or of 60, the most) varied of clear lead.

    The lead makes rounding moot; a text that repeats one token would hide an error of positions.
    """
    width = max(LENGTHS)
    best: tuple[int, dict[str, np.ndarray], float] | None = None
    for seed in range(60):
        random = np.random.RandomState(seed)
        tokens = np.zeros((len(LENGTHS), width), np.int64)
        pos = np.full(tokens.shape, -1, np.int32)
        for row, n in enumerate(LENGTHS):
            tokens[row, width - n :] = random.randint(3, 101, n)
            pos[row, width - n :] = np.arange(n)
        mask = (pos >= 0).astype(np.int64)
        if variant in families.LENGTH_DEPENDENT:
            # alone: transformers takes the frequencies of a batch from its longest row
            rows = [
                reference.greedy(
                    model, tokens[i : i + 1, width - n :], mask[i : i + 1, width - n :], STEPS
                )
                for i, n in enumerate(LENGTHS)
            ]
            new, lead = np.concatenate([r[0] for r in rows]), min(r[1] for r in rows)
        else:
            new, lead = reference.greedy(model, tokens, mask, STEPS)
        varied = len(np.unique(new))
        if lead > LEAD and (best is None or varied > best[0]):
            made = {"prompts": tokens, "prompts_pos": pos, "generated": new}
            best = varied, {k: v.astype(np.int32) for k, v in made.items()}, lead
        if best and best[0] >= VARIED:
            break
    if best is None:
        raise SystemExit(f"{variant}: no prompts with clear continuations")
    return best[1:]


def make(variant: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = build(variant, Path(folder))
    tokens = np.random.RandomState(0).randint(3, 101, (1, 13))
    logits, sites = reference.capture(model, tokens)
    out = {"tokens": tokens.astype(np.int32), "logits": logits}
    out |= {f"sites/{k}": v[..., families.AT, :] for k, v in sites.items()}
    out["grad"] = reference.down_gradient(model, tokens, families.GRAD_LAYER)
    made, lead = generate(model, variant)
    out |= made
    if variant in families.LENGTH_DEPENDENT:
        out["short"] = reference.capture(model, tokens[:, :8])[0]
        out["steps"] = reference.stepwise(model, tokens, 6)
    file = families.GOLDEN / variant / "expected.npz"
    np.savez_compressed(file, **out)
    print(
        f"{variant:16s} {file.stat().st_size:6d} bytes, |logit| <= {np.abs(logits).max():.1f}, "
        f"|site| <= {max(np.abs(v).max() for v in sites.values()):.1f}, lead {lead:.2f}, "
        f"different tokens {len(np.unique(made['generated']))}"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or families.VARIANTS:
        make(name)
