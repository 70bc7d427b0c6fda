"""Everyday commands with plain flags: `jaxedit info MODEL`, `jaxedit generate --model MODEL`,
`jaxedit data NAME SOURCE`, `jaxedit bound`.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxedit import cli
from jaxedit.progress import Meter, is_first, size

MODEL = "a Hugging Face folder or hub name, or a checkpoint of jaxedit"


def info(argv: Sequence[str]) -> None:
    """What a model is: reads config.json and the headers of the weights, not the weights."""
    ap = cli.Parser("jaxedit info", description=info.__doc__)
    ap.add_argument("model", help=MODEL)
    ap.add_argument("--batch", type=int, default=1, help="rows of the key-value cache (default 1)")
    ap.add_argument("--length", type=int, help="slots per row (default: the model's, up to 4096)")
    ap.add_argument("--json", action="store_true", help="print it for programs")
    cli.add_placement(ap, devices=False)
    args = ap.parse_args(argv)
    facts = describe(args)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    rows = table(facts)
    wide = max(map(len, rows))
    print("\n".join(f"{name:<{wide}}  {text}" for name, text in rows.items()))


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What `info --json` prints: weights and cache in bytes on one device of the mesh."""
    for flag in ("batch", "length", "data", "fsdp", "tensor"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} {value}: info asks for a number, at least 1")
    import jax.numpy as jnp

    from jaxedit.hf.load import inspect
    from jaxedit.models.specs import count, specs
    from jaxedit.sharding import AXES, shard_size

    cfg, stored, on_disk = inspect(args.model)
    mesh = {axis: getattr(args, axis) for axis in AXES}
    held, compute = args.dtype or stored, args.dtype or cfg.dtype
    weights = sum(shard_size(s.shape, s.axes, s.parts, mesh) for s in specs(cfg).values())
    length = args.length or min(cfg.max_len, 4096)
    whole = sum(math.prod(s.shape) for s in specs(cfg).values())
    cut = lambda axis: sum(
        shard_size(s.shape, s.axes, s.parts, dict.fromkeys(AXES, 1) | {axis: mesh[axis]})
        for s in specs(cfg).values()
    )
    idle = [axis for axis in ("fsdp", "tensor") if mesh[axis] > 1 and cut(axis) == whole]
    cache = (2, cfg.layers, args.batch, length, cfg.kv_heads, cfg.head_dim)
    slots = shard_size(cache, (None, "layer", "batch", None, "heads", None), (), mesh)
    return {
        "model": cfg.to_dict(),
        "parameters": count(cfg),
        "stored": stored,
        "disk_bytes": on_disk,
        "mesh": mesh,
        "idle": idle,  # axes of the mesh that no weight is divided by
        "weights": {"dtype": held, "bytes": weights * jnp.dtype(held).itemsize},
        "cache": {
            "dtype": compute,
            "batch": args.batch,
            "length": length,
            "bytes": slots * jnp.dtype(compute).itemsize,
        },
    }


def table(facts: dict[str, Any]) -> dict[str, str]:
    """The same for people."""
    m, weights, cache = facts["model"], facts["weights"], facts["cache"]
    marks = [text for text, on in (("parallel", m["parallel"]), ("tied head", m["tied"])) if on]
    if local := sum(map(bool, m["windows"])):
        marks.append(f"window {max(m['windows'])} in {local} of {m['layers']} layers")
    devices, rows = math.prod(facts["mesh"].values()), cache["batch"]
    idle = "".join(f"; {axis}={facts['mesh'][axis]} divides no weight" for axis in facts["idle"])
    return {
        "family": ", ".join([m["family"], *marks]),
        "parameters": f"{facts['parameters']:,}",
        "layers": f"{m['layers']}",
        "embed": f"{m['embed']:,}",
        "heads": f"{m['heads']} query, {m['kv_heads']} key-value, of {m['head_dim']}",
        "mlp": f"{m['mlp']:,} {m['act']}{', gated' if m['gated'] else ''}",
        "vocab": f"{m['vocab']:,}",
        "positions": f"{m['max_len']:,}",
        "on disk": f"{size(facts['disk_bytes'])} in {facts['stored']}",
        "mesh": " ".join(f"{axis}={n}" for axis, n in facts["mesh"].items())
        + f", {devices} device{'s' if devices > 1 else ''}{idle}",
        "weights": f"{size(weights['bytes'])} per device in {weights['dtype']}",
        "cache": f"{size(cache['bytes'])} per device in {cache['dtype']}, for "
        f"{rows} row{'s' if rows > 1 else ''} of {cache['length']:,} tokens",
    }


def generate(argv: Sequence[str]) -> None:
    """Continues prompts with a model, all in one batch; with --edit, with an edited one."""
    ap = cli.Parser("jaxedit generate", description=generate.__doc__)
    ap.add_argument("--model", required=True, help=MODEL)
    ap.add_argument("--prompt", action="append", default=[], help="may be given several times")
    ap.add_argument("--file", type=Path, help="prompts, one per line")
    ap.add_argument(
        "--edit", type=Path, help="a file that Edit.save wrote, applied without touching the model"
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
    for flag in ("file", "edit"):  # said before a large model is read
        if (file := getattr(args, flag)) and not file.is_file():
            raise FileNotFoundError(f"--{flag} {file}: no such file")
    prompts = list(args.prompt)
    if args.file:
        prompts += [line for line in args.file.read_text().splitlines() if line.strip()]
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT or --file FILE")
    import jaxedit

    edit = jaxedit.Edit.load(args.edit) if args.edit else jaxedit.Edit()
    if edit.prefix or edit.router is not None:
        what = "a router" if edit.router is not None else "prefix tokens"
        raise ValueError(f"{args.edit}: an edit with {what}, which generate cannot apply")
    reading = Meter("reading", "weights")
    model = jaxedit.load(args.model, cli.placement(args), args.dtype, progress=reading)
    edit.check(model, force=args.force)
    texts = jaxedit.generate(
        model,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=args.stop,
        seed=args.seed,
        writes=edit.writes,
        deltas=edit.deltas,
    )
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    bold, plain = ("\033[1m", "\033[0m") if styled else ("", "")
    for prompt, text in zip(prompts, texts, strict=True):
        if not is_first():
            break
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            print(f"{prompt}{bold}{text}{plain}")


def data(argv: Sequence[str]) -> None:
    """Reads a published dataset and says what is in it and which rows were left out, and why."""
    from jaxedit.data.read import READERS, read

    ap = cli.Parser("jaxedit data", description=data.__doc__)
    ap.add_argument("name", help=", ".join(READERS))
    ap.add_argument("source", help="a file, a folder, or a dataset of the hub")
    ap.add_argument("--split", help="train, validation, test: files whose names say so")
    ap.add_argument(
        "--show", type=int, default=1, metavar="N", help="print the first N (default 1)"
    )
    ap.add_argument("--skipped", type=int, default=5, metavar="N", help="reasons (default 5)")
    args = ap.parse_args(argv)
    found = read(args.name, args.source, args.split)
    for item in found.items[: args.show]:
        print(json.dumps(dataclasses.asdict(item), indent=2, ensure_ascii=False))
    print(found.report(args.skipped))


def bound(argv: Sequence[str]) -> int:
    """`jaxedit bound verify CERTIFICATE`, also show, and export FOLDER: the model itself."""
    ap = cli.Parser("jaxedit bound", description="certificates that python -m jaxedit.bounds makes")
    ap.add_argument("action", choices=("verify", "show", "export"))
    ap.add_argument("certificate", type=Path, help="certificate.json, or its folder")
    ap.add_argument("--out", type=Path, help="export: the Hugging Face folder to write")
    args = ap.parse_args(argv)
    if (args.action == "export") != bool(args.out):
        raise ValueError("export writes a model to --out FOLDER; the others have no --out")
    from jaxedit.bounds.verify import certified, read, verify
    from jaxedit.hf.save import save
    from jaxedit.report import bounds

    if args.action == "export":
        save(certified(args.certificate), args.out)
        print(f"wrote {args.out}")
        return 0
    if args.action == "show":
        print(bounds.words(read(args.certificate)[0]))
        return 0
    made, different = verify(args.certificate, Meter)
    print(bounds.words(made))
    if different:
        for what, stated, found in different:
            print(f"{what}: the certificate says {stated}, found {found}", file=sys.stderr)
        return 1
    print("verified: the bytes decode, and everything follows from them and the data to 1e-9")
    return 0
