"""A ledger of edits on the command line: `jaxedit edits list LEDGER`, and what else can be done
with one.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxedit import cli
from jaxedit.progress import Meter

if TYPE_CHECKING:
    from jaxedit.edit.conflicts import Contradiction, Overlap
    from jaxedit.edit.ledger import Ledger
    from jaxedit.edit.log import Entry

WIDE = 48  # characters of a text in a table
VERBS = {
    "list": "every edit: when, how, for what, and whether it stands",
    "show": "one edit as JSON: where it comes from, what it changes and by how much",
    "undo": "take edits out; their files stay",
    "redo": "put undone edits back in their old places",
    "merge": "write the base with the standing edits in its weights, as a Hugging Face folder",
    "export": "write the standing edits as one PEFT adapter",
    "check": "are all files there and undamaged, and which edits conflict; exit code 1 if damaged",
}


def main(argv: Sequence[str]) -> int:
    """Lists, undoes, merges and exports the edits of a ledger. The base model never changes."""
    args = parse(argv)
    from jaxedit.edit.ledger import Ledger

    ledger = Ledger.open(args.ledger)
    match args.verb:
        case "list":
            print_list(ledger, args.json)
        case "show":
            print(json.dumps(describe(ledger, args.id), indent=2, ensure_ascii=False))
        case "undo" | "redo":
            switch(ledger, args.verb, args.id, args.all)
        case "merge":
            merge(ledger, args)
        case "export":
            refuse_existing(args.peft)
            ledger.export_peft(args.peft, args.model)
            print(f"wrote {args.peft}, a PEFT adapter of {count(ledger.edits())}")
        case "check":
            return check(ledger, args.threshold)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    ap = cli.Parser("jaxedit edits", description=main.__doc__)
    commands = ap.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs = {}
    for name, what in VERBS.items():
        verbs[name] = commands.add_parser(name, help=what, description=f"{name}: {what}")
        verbs[name].add_argument("ledger", metavar="LEDGER", help="the folder of a ledger")
    verbs["list"].add_argument("--json", action="store_true", help="a JSON line per edit")
    verbs["show"].add_argument("id", metavar="ID", help="0007, or 7")
    for name in ("undo", "redo"):
        verbs[name].add_argument("id", metavar="ID", nargs="*", help="0007, or 7")
        verbs[name].add_argument("--all", action="store_true", help="all that can be")
    flags = verbs["merge"]
    flags.add_argument("--model", required=True, help="the base: a folder, hub name or checkpoint")
    flags.add_argument("--out", required=True, type=Path, help="the folder to write")
    flags.add_argument("--force", action="store_true", help="merge into another model")
    cli.add_placement(flags)
    flags = verbs["export"]
    flags.add_argument("--peft", required=True, type=Path, help="the folder to write")
    flags.add_argument("--model", help="what the adapter calls its base")
    verbs["check"].add_argument(
        "--threshold", type=float, help="|cosine| above which two edits overlap (default 0.9)"
    )
    return ap.parse_args(argv)


def print_list(ledger: "Ledger", for_programs: bool) -> None:
    entries = ledger.edits(None)
    if for_programs:
        for e in entries:
            line = {"id": e.id, "time": e.time, "method": e.method, "active": e.active}
            line |= {"requests": e.requests, "norm": e.norm}
            print(json.dumps(line, ensure_ascii=False))
        return
    head = ("id", "time", "method", "state", "subject", "prompt → target", "norm")
    print(table([head, *map(row, entries)]))


def row(e: "Entry") -> tuple[str, ...]:
    first: Mapping[str, str] = e.requests[0] if e.requests else {}
    asks = f"{shorten(first['prompt'])} → {shorten(first['target'])}" if first else ""
    asks += f" and {len(e.requests) - 1:,} more" if len(e.requests) > 1 else ""
    subject = shorten(first.get("subject", ""))
    return e.id, e.time, e.method, state(e), subject, asks, f"{e.norm:.4g}"


def state(e: "Entry") -> str:
    return "active" if e.active else "undone"


def shorten(text: str) -> str:
    """On one line, and not too wide."""
    text = " ".join(text.split())
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"


def table(rows: Sequence[Sequence[str]]) -> str:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = lambda cells: "  ".join(f"{c:<{n}}" for c, n in zip(cells, wide, strict=True)).rstrip()
    return "\n".join(map(line, rows))


def describe(ledger: "Ledger", id: str) -> dict[str, Any]:
    """What `show` prints."""
    from jaxedit import delta

    e, edit = ledger.entry(id), ledger.load(id)
    facts = {"id": e.id, "state": state(e), "time": e.time, "file": e.file, "sha256": e.sha256}
    changes = [{"matrix": c.path, "layer": c.layer, "norm": c.norm} for c in e.changes]
    return facts | {
        "norm": e.norm,
        "changes": changes,
        "rank": delta.rank(edit.deltas),
        "writes": list(edit.writes),
        "prefix_tokens": len(edit.prefix),
        "provenance": edit.provenance,
    }


def switch(ledger: "Ledger", verb: str, ids: Sequence[str], every: bool) -> None:
    """undo and redo; says on stderr what they leave without its ground."""
    if bool(ids) == every:
        raise ValueError(f"{verb} needs the ids of edits, or --all and no ids")
    if every:
        ids = [e.id for e in ledger.edits(active=verb == "undo")]
    names = [ledger.entry(id).id for id in ids]
    left = ledger.undo(*ids) if verb == "undo" else ledger.redo(*ids)
    print(f"{'undone' if verb == 'undo' else 'redone'}: {', '.join(names) or 'nothing'}")
    if left:
        one = len(left) == 1
        was, stays, undone = ("was", "stays", "is") if one else ("were", "stay", "are")
        why = {
            "undo": f"{was} made on top of it and {stays}",
            "redo": f"{was} there when it was made and {undone} undone",
        }
        which = f"edit{'' if one else 's'} {', '.join(left)}"
        print(f"jaxedit: warning: {which} {why[verb]}", file=sys.stderr)


def merge(ledger: "Ledger", args: argparse.Namespace) -> None:
    refuse_existing(args.out)
    ledger.compose()  # what cannot be merged is said before a large model is read
    import jaxedit

    reading = Meter("reading", "weights")
    model = jaxedit.load(args.model, cli.placement(args), args.dtype, progress=reading)
    writing = Meter("writing", "bytes")
    ledger.export_hf(model, args.out, force=args.force, progress=writing)
    print(f"wrote {args.out}, {args.model} with {count(ledger.edits())}")


def refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another name")


def count(entries: Sequence["Entry"]) -> str:
    return f"{len(entries):,} edit{'' if len(entries) == 1 else 's'}"


def check(ledger: "Ledger", threshold: float | None) -> int:
    """Prints what is wrong; 1 where an edit is missing or damaged."""
    from jaxedit.edit.conflicts import ALIKE

    damage = ledger.find_damage()
    lines = [
        f"base       {ledger.base['family']}, checksum {ledger.base['checksum'][:12]}",
        f"edits      {len(ledger.edits(None)):,}, {len(ledger.edits()):,} of them active",
        f"files      {f'{len(damage):,} missing or damaged' if damage else 'whole'}",
        *damage.values(),
    ]
    if not damage:  # what overlaps is read from the files
        found = ledger.conflicts(threshold=ALIKE if threshold is None else threshold)
        lines += [f"conflicts  {len(found) or 'none'}", *map(tell, found)]
    print("\n".join(lines))
    return 1 if damage else 0


def tell(found: "Contradiction | Overlap") -> str:
    """A conflict in a line."""
    from jaxedit.edit.conflicts import Contradiction

    pair = f"{found.one} and {found.other}"
    if isinstance(found, Contradiction):
        one, other = map(shorten, found.targets)
        return f"{pair}: {shorten(found.text)} → {one}, or {other}"
    layer = "" if found.layer is None else f" layer {found.layer}"
    return f"{pair}: {found.path}{layer}, |cosine| {found.cosine:.3f}"
