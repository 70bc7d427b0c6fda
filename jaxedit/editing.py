"""The console verb `jaxedit edit`: one fact of a model, or a file of them, with plain flags."""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxedit import cli, settings
from jaxedit.progress import Meter, is_first

if TYPE_CHECKING:
    from jaxedit.data.cases import EditRequest
    from jaxedit.edit.ledger import Ledger
    from jaxedit.edit.record import Edit
    from jaxedit.models.config import Model


def main(argv: Sequence[str]) -> int:
    """Edits a model: --prompt "The capital of {} is" --subject France --target Rome. The model
    itself stays as it is; the edit is a small file (--out), or an entry of a ledger (--ledger).
    """
    args = parse(argv)
    asked = read_requests(args)
    import jaxedit
    from jaxedit.checksum import checksum
    from jaxedit.edit.ledger import Ledger
    from jaxedit.edit.methods import configure, find
    from jaxedit.edit.runner import resolve, run, suitable

    find(args.method)  # said before a large model is read
    ledger = Ledger.open(args.ledger) if args.ledger and args.ledger.exists() else None
    mesh = cli.placement(args)
    model = jaxedit.load(args.model, mesh, args.dtype, progress=Meter("reading", "weights"))
    if ledger is not None:
        ledger.check_base({"checksum": checksum(model.params), "family": model.cfg.family})
    cfg = configure(args.method, model.cfg, preset=args.preset, protocol=args.protocol)
    cfg = settings.override(cfg, args.set)
    wanted = find(args.method).make(cfg).stats
    stats: Any = None
    if wanted:
        given = args.stats or suitable(model)
        stats = resolve(model, given, wanted, Meter("second moments", "batches"))
    start = time.monotonic()
    edits = run(
        model, asked, cfg, not args.sequential, stats=stats, seed=args.seed, skip=len(asked) > 1,
        batch=args.batch, progress=Meter("editing", "requests"),
    )  # fmt: skip
    seconds = time.monotonic() - start
    keep(args, model, edits, ledger)
    if is_first():
        report(model, asked, edits, seconds, args)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    ap = cli.Parser("jaxedit edit", description=main.__doc__)
    ap.add_argument("--model", required=True, help="a folder, hub name, checkpoint, or world")
    ap.add_argument("--prompt", help="with {} for the subject, or naming it")
    ap.add_argument("--subject")
    ap.add_argument("--target", help="what the model is to say after the prompt")
    ap.add_argument("--requests", help="instead: a file, world:SIZE:SEED:COUNT, or DATASET:PATH")
    ap.add_argument("--method", default="rome", help="rome (default), memit, alphaedit, …")
    ap.add_argument("--preset", default="", help="whose published settings; default: by shape")
    ap.add_argument("--protocol", default="paper", help="paper (default) or easyedit")
    ap.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    ap.add_argument("--stats", default="", help="a folder with second moments, or ROME's .npz")
    ap.add_argument(
        "--sequential", action="store_true", help="each on the model as the ones before left it"
    )
    ap.add_argument("--batch", type=int, default=0, help="requests of an edit, with --sequential")
    ap.add_argument("--out", type=Path, help="the edit's file; with several requests, a folder")
    ap.add_argument("--ledger", type=Path, help="a ledger to add the edits to; made if need be")
    ap.add_argument("--seed", type=int, default=0)
    cli.add_placement(ap)
    return ap.parse_args(argv)


def read_requests(args: argparse.Namespace) -> "list[EditRequest]":
    from jaxedit.data.asked import requests
    from jaxedit.data.cases import EditRequest

    one = {name: getattr(args, name) for name in ("prompt", "subject", "target")}
    if args.requests:
        if given := [name for name, value in one.items() if value is not None]:
            raise ValueError(f"--{given[0]} and --requests: one or the other")
        found, skipped = requests(args.requests)
        for skip in skipped[:5]:
            print(f"left out: {skip.row}: {skip.reason}", file=sys.stderr)
        return found
    if missing := [name for name, value in one.items() if value is None]:
        raise ValueError(f"give --{missing[0]} (with --prompt, --subject, --target), or --requests")
    return [EditRequest.of(args.prompt, args.subject, args.target)]


def keep(
    args: argparse.Namespace, model: "Model", edits: "Sequence[Edit]", ledger: "Ledger | None"
) -> None:
    """Writes the edits where the flags say."""
    from jaxedit.edit.ledger import Ledger

    if not is_first():
        return
    if args.out and len(edits) == 1:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        edits[0].save(args.out)
    elif args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for i, edit in enumerate(edits):
            edit.save(args.out / f"{i:06}.safetensors")
    if args.ledger:
        ledger = ledger or Ledger.create(args.ledger, model)
        for edit in edits:
            if not edit.failed:
                ledger.add(edit)


def norms(edits: "Sequence[Edit]") -> list[float]:
    """Of the changes, by request."""
    found: list[float] = []
    for edit in edits:
        norm = [] if edit.failed else edit.provenance["result"].get("norm", [])
        found += norm if isinstance(norm, list) else [norm]
    return [x for x in found if x is not None]


def report(
    model: "Model",
    asked: "Sequence[EditRequest]",
    edits: "Sequence[Edit]",
    seconds: float,
    args: argparse.Namespace,
) -> None:
    """What the model says before and after, and what it took."""
    from jaxedit.edit.record import Edit
    from jaxedit.edit.results import told
    from jaxedit.edit.room import room
    from jaxedit.edit.task import said
    from jaxedit.evaluate.ask import Asker
    from jaxedit.evaluate.protocol import joined

    method = edits[0].provenance["method"] if edits else args.method
    failed = [why for edit in edits for why in edit.provenance.get("failed") or ()]
    gone = sum(bool(edit.failed) for edit in edits) if args.ledger else 0
    for line in told(failed):
        print(line, file=sys.stderr)
    if gone:
        print(f"not kept in {args.ledger}: {gone:,} of {len(edits):,} edits", file=sys.stderr)
    if len(asked) == 1 and not failed:
        (request,), (edit,) = asked, edits
        asker = Asker(model, room(model))
        say = lambda edit: asker.continued([request.text], [0], [edit], 8)[0]
        result = edit.provenance["result"]
        print(f"before  {request.text}{say(Edit())}")
        print(f"after   {request.text}{say(edit)}")
        parts = [f"{k} {result[k]:.3g}" for k in ("loss", "steps", "neurons") if k in result]
        numbers = ", ".join(parts)
        print(f"        {method}, {seconds:.1f} s; {numbers}, norm {result['norm']:.3g}")
        if result["norm"] == 0:
            known = said(model, asked, [Edit()])[0]
            why = f"the model says {request.target!r} without it" if known else "its norm is 0"
            print(f"        the edit changes nothing: {why}")
    else:
        last = ([joined(edits)], [0] * len(asked)) if args.sequential else (edits, None)
        right = int(said(model, asked, *last).sum())
        count = f"{len(asked):,} requests"
        if args.sequential:
            count += f", {len(edits):,} edit{'' if len(edits) == 1 else 's'},"
        print(f"{method}: {count} in {seconds:.1f} s; {right:,} say their target", end="")
        print(f"; mean norm {statistics.fmean(sizes):.3g}" if (sizes := norms(edits)) else "")
    for where in (args.out, args.ledger):
        if where:
            print(where)
