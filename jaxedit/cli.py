"""Commands: `python -m jaxedit.VERB --config FILE.py:PRESET --set a.b=c`, and `jaxedit VERB
--flags`.

A mistake in a file or a flag ends in one line on stderr and exit code 2; JAXEDIT_TRACEBACK=1 brings
the traceback back.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxedit import settings

# Only configs and tokenizers are used of transformers: that there is no PyTorch is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# The verbs of the console script: where each lives, and what it does. Imported only when chosen.
VERBS = {
    "info": ("jaxedit.console:info", "what a model folder is: family, sizes, parameters, memory"),
    "generate": ("jaxedit.console:generate", "continue prompts with a model"),
    "edit": ("jaxedit.editing:main", "change what a model says: one fact, or a file of them"),
    "edits": ("jaxedit.edits:main", "a ledger of edits: list, show, undo, merge, export, check"),
    "locate": (
        "jaxedit.locating:main",
        "where a fact comes from: states, neurons, finders compared",
    ),
    "bound": (
        "jaxedit.console:bound",
        "check the certificate of a generalization bound",
    ),
    "report": ("jaxedit.report.__main__:main", "the page of an evaluation run, or of several"),
    "data": ("jaxedit.console:data", "read a published dataset: what is in it, what was left out"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `jaxedit VERB …`; returns the exit code."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: jaxedit VERB …    (jaxedit VERB --help says more)\n")
        print("\n".join(f"  {name:<10} {what}" for name, (_, what) in VERBS.items()))
        print("\nexperiments: python -m jaxedit.VERB --config FILE.py[:PRESET] [--set KEY=VALUE …]")
        return 0
    if verb == "--version":
        from jaxedit.base import VERSION

        print(f"jaxedit {VERSION}")
        return 0
    with one_line_errors():
        if verb not in VERBS:
            raise ValueError(f"unknown verb {verb!r}; {settings.suggest(verb, VERBS)}")
        module, _, function = VERBS[verb][0].partition(":")
        return getattr(importlib.import_module(module), function)(rest) or 0


def run(verb_main: Callable[..., int | None], *args: Any) -> int:
    """The exit code of `verb_main(*args)`: what the `__main__` of a verb ends with."""
    with one_line_errors():
        return verb_main(*args) or 0


def parse(verb: str, argv: Sequence[str] | None = None) -> Any:
    """The configuration that the command line of `python -m jaxedit.<verb>` asks for."""
    ap = Parser(f"python -m jaxedit.{verb}", add_help=False, allow_abbrev=False)
    ap.formatter_class = argparse.RawDescriptionHelpFormatter
    ap.add_argument("--config", metavar="FILE.py[:PRESET]", help="the file whose config() to call")
    ap.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    ap.add_argument("--dry-run", action="store_true", help="print the config as JSON and stop")
    ap.add_argument("--distributed", action="store_true", help="join the other hosts of this run")
    ap.add_argument("-h", "--help", action="store_true", help="with --config, also its fields")
    with one_line_errors():
        args, unknown = ap.parse_known_args(argv)
        if unknown:
            hint = f"; write --set {unknown[0].lstrip('-')}" if "=" in unknown[0] else ""
            raise ValueError(f"unknown argument {unknown[0]!r}{hint}")
        ap.epilog = f"example: {ap.prog} --config FILE.py --set a.b=1 c=2 --dry-run"
        if args.config:
            cfg, presets = settings.load(args.config)
            cfg = settings.override(cfg, args.set)
            known = ", ".join(presets) or "none"
            ap.epilog = f"{args.config} (presets: {known})\n{settings.table(cfg)}"
        elif not args.help:
            raise ValueError(f"{ap.prog} needs --config FILE.py[:PRESET]; see --help")
        if args.help or args.dry_run:
            print(ap.format_help() if args.help else settings.to_json(dataclasses.asdict(cfg)))
            raise SystemExit(0)
        # After the config, so that a typing mistake does not wait for the other hosts.
        if args.distributed or is_on("JAXEDIT_DISTRIBUTED"):
            start_distributed()
        return cfg


def start_distributed() -> None:
    """Join the other processes of this run; to be called before anything touches a device.

    JAXEDIT_COORDINATOR=host:port, JAXEDIT_NUM_PROCESSES and JAXEDIT_PROCESS_ID say who they are;
    what is not set jax finds out on a TPU pod and under Slurm or Open MPI. Under those two a
    process takes one GPU, elsewhere all that it sees; JAX_LOCAL_DEVICE_IDS=0,1,… chooses.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    given: dict[str, Any] = {}
    if address := os.environ.get("JAXEDIT_COORDINATOR"):
        if not address.rpartition(":")[2].isdigit():
            raise ValueError(f"JAXEDIT_COORDINATOR={address}: expected host:port")
        given["coordinator_address"] = address
    for argument in ("num_processes", "process_id"):
        variable = f"JAXEDIT_{argument.upper()}"
        if text := os.environ.get(variable):
            given[argument] = settings.settle(variable, "", int, text, settings.readings(text))
    if len(given) == 3:  # Nothing is left to find out, and looking would ask the Kubernetes API.
        given["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**given)
    except ValueError as error:
        raise ValueError(
            f"cannot join a distributed run: {error} Set JAXEDIT_COORDINATOR=host:port, "
            "JAXEDIT_NUM_PROCESSES and JAXEDIT_PROCESS_ID"
        ) from error


def is_on(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def add_placement(ap: argparse.ArgumentParser, *, devices: bool = True) -> None:
    """The flags that every command which loads a model has."""
    rest = ", -1 for the rest of the devices" if devices else ""
    ap.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
    ap.add_argument("--data", type=int, default=1, help=f"mesh: parts of the batch{rest}")
    ap.add_argument("--fsdp", type=int, default=1, help="mesh: parts of batch and weights")
    ap.add_argument("--tensor", type=int, default=1, help="mesh: parts of every matrix product")


def placement(args: argparse.Namespace) -> Any:
    """The mesh that those flags ask for; None for one device."""
    sizes = (args.data, args.fsdp, args.tensor)
    if sizes == (1, 1, 1):
        return None
    from jaxedit.sharding import make_mesh

    return make_mesh(*sizes)


class Parser(argparse.ArgumentParser):
    """argparse without a page of usage before every error; inside `run`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def nobody_reads() -> bool:
    """Has whoever reads what is printed, `head` for one, had enough? Then no more is printed."""
    asked = select.poll()
    asked.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in asked.poll(0)):
        return False
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return True


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell a ValueError or OSError in one line on stderr and exit with code 2."""
    try:
        yield
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None
        if is_on("JAXEDIT_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        # Ours says what to change. One from elsewhere may not, so it says where it came from.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if Path(__file__).parent not in Path(frame.filename).parents:
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            message += f" ({place}; JAXEDIT_TRACEBACK=1 shows how it got there)"
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # a progress line may be there
        print(f"{clear}jaxedit: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
