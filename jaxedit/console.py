"""Everyday commands with plain flags: `jaxedit info MODEL`, `jaxedit generate --model MODEL`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxedit import cli
from jaxedit.progress import Meter, size


def info(argv: Sequence[str]) -> None:
    """What a model is: reads config.json and the headers of the weights, not the weights."""
    ap = cli.Parser("jaxedit info", description=info.__doc__)
    ap.add_argument("model", help="a Hugging Face folder or hub name, or a checkpoint of jaxedit")
    ap.add_argument("--batch", type=int, default=1, help="rows of the key-value cache (default 1)")
    ap.add_argument("--length", type=int, help="slots per row (default: the model's, up to 4096)")
    ap.add_argument("--json", action="store_true", help="print it for programs")
    cli.add_placement(ap, devices=False)
    args = ap.parse_args(argv)
    facts = describe(args)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    wide = max(map(len, facts))
    for name, value in facts.items():
        in_bytes = name.startswith(("on disk", "weights", "cache"))
        text = size(value) if in_bytes else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:<{wide}}  {text}")


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """The table of `info`; what is named "on disk", "weights" and "cache" is in bytes."""
    import jax.numpy as jnp

    from jaxedit.hf.load import inspect
    from jaxedit.models.specs import count, specs
    from jaxedit.sharding import AXES, shard_size

    cfg, stored, on_disk = inspect(args.model)
    mesh = {"data": args.data, "fsdp": args.fsdp, "tensor": args.tensor}
    if min(*mesh.values(), args.batch, args.length or 1) < 1:
        raise ValueError(f"mesh {tuple(mesh.values())}, batch, length: all are at least 1 here")
    dtype, compute = jnp.dtype(args.dtype or stored), jnp.dtype(args.dtype or cfg.dtype)
    held = sum(shard_size(s.shape, s.axes, s.parts, mesh) for s in specs(cfg).values())
    length = args.length or min(cfg.max_len, 4096)
    cache = (2, cfg.layers, args.batch, length, cfg.kv_heads, cfg.head_dim)
    slots = shard_size(cache, (None, "layer", "batch", None, "heads", None), (), mesh)
    marks = [text for text, on in (("parallel", cfg.parallel), ("tied head", cfg.tied)) if on]
    if local := sum(map(bool, cfg.windows)):
        marks.append(f"window {max(cfg.windows)} in {local} of {cfg.layers} layers")
    devices = math.prod(mesh.values())
    return {
        "family": cfg.family + (f" ({', '.join(marks)})" if marks else ""),
        "parameters": count(cfg),
        "layers": cfg.layers,
        "embed": cfg.embed,
        "heads": f"{cfg.heads} query, {cfg.kv_heads} key-value, of {cfg.head_dim}",
        "mlp": f"{cfg.mlp} {cfg.act}{' gated' if cfg.gated else ''}",
        "vocab": cfg.vocab,
        "positions": cfg.max_len,
        "stored as": stored,
        "on disk": on_disk,
        "mesh": " x ".join(f"{a}={mesh[a]}" for a in AXES) + f": {devices} device(s)",
        f"weights per device, {dtype.name}": held * dtype.itemsize,
        f"cache per device, {args.batch} x {length}": slots * compute.itemsize,
    }


def generate(argv: Sequence[str]) -> None:
    """Continues prompts with a model, all in one batch; with --edit, with an edited one."""
    ap = cli.Parser("jaxedit generate", description=generate.__doc__)
    ap.add_argument("--model", required=True, help="a folder or hub name")
    ap.add_argument("--prompt", action="append", default=[], help="may be given several times")
    ap.add_argument("--file", type=Path, help="prompts, one per line")
    ap.add_argument(
        "--edit", help="a file that Edit.save wrote, applied without touching the model"
    )
    ap.add_argument("--force", action="store_true", help="apply an edit made for another base")
    ap.add_argument("--max-new-tokens", type=int, default=32)
    ap.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    ap.add_argument("--top-k", type=int, default=0, help="0 (default): all")
    ap.add_argument("--top-p", type=float, default=1.0)
    ap.add_argument("--stop", action="append", default=[], help="text that ends a continuation")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--json", action="store_true", help="a JSON line per prompt")
    cli.add_placement(ap)
    args = ap.parse_args(argv)
    prompts = list(args.prompt)
    if args.file:
        prompts += [line for line in args.file.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT or --file FILE")
    import jaxedit

    reading = Meter("reading", "weights")
    model = jaxedit.load(args.model, cli.placement(args), args.dtype, progress=reading)
    changes: dict[str, Any] = {}
    if args.edit:
        edit = jaxedit.Edit.load(args.edit)
        edit.check(model, force=args.force)
        changes = {"writes": edit.writes, "deltas": edit.deltas}
    texts = jaxedit.generate(
        model,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=args.stop,
        seed=args.seed,
        **changes,
    )
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    bold, plain = ("\033[1m", "\033[0m") if styled else ("", "")
    for prompt, text in zip(prompts, texts, strict=True):
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            print(f"{prompt}{bold}{text}{plain}")
