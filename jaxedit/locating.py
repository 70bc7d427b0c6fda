"""`jaxedit locate trace`, `neurons`, `lens`, `compare`: where a fact is, with plain flags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxedit import cli
from jaxedit.progress import Meter

MODEL = "a Hugging Face folder or hub name, or a checkpoint of jaxedit"
ACTIONS = {
    "trace": "one fact: which states, restored, bring back what noise on its subject has taken",
    "neurons": "one prompt: the neurons that its answer comes from, and what they say",
    "lens": "one prompt: what each layer would say, and the answer's rank there (logit lens)",
    "compare": "many facts: do the neurons that each finder names matter, and for the fact alone",
}


def main(argv: Sequence[str]) -> int | None:
    action, *rest = list(argv) or ["--help"]
    if action in ("-h", "--help"):
        print("usage: jaxedit locate ACTION …    (jaxedit locate ACTION --help says more)\n")
        print("\n".join(f"  {name:<10} {what}" for name, what in ACTIONS.items()))
        return None
    if action not in ACTIONS:
        raise ValueError(f"jaxedit locate {action!r}: one of {', '.join(ACTIONS)}")
    return {"trace": trace, "neurons": neurons, "lens": lens, "compare": compare}[action](rest)


def parser(action: str) -> cli.Parser:
    ap = cli.Parser(f"jaxedit locate {action}", description=ACTIONS[action])
    ap.add_argument("--model", required=True, help=MODEL)
    cli.add_placement(ap)
    return ap


def one_at_least(**flags: int) -> None:
    for name, value in flags.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: at least 1")


def text_of(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError(f"--prompt {prompt!r}: empty; give a text that the answer follows")


def trace(argv: Sequence[str]) -> None:
    ap = parser("trace")
    ap.add_argument("--prompt", required=True, help="names the subject, or has {} for it")
    ap.add_argument("--subject", required=True)
    ap.add_argument("--answer", default="", help="default: what the model says; its first token")
    ap.add_argument("--samples", type=int, default=10, help="of noise (default 10)")
    ap.add_argument("--noise", choices=("gaussian", "uniform", "covariance"), default="gaussian")
    ap.add_argument("--level", type=float, default=0.0,
                    help="of noise; default: three times the embeddings' spread")  # fmt: skip
    ap.add_argument("--window", type=int, default=0,
                    help="of MLPs or attention, together; default: a fifth of all")  # fmt: skip
    ap.add_argument("--sever", choices=("mlp", "attn"), default="",
                    help="which parts are held to the noisy run; default: none")  # fmt: skip
    ap.add_argument("--out", type=Path, default=Path("trace"),
                    help="folder of the page, pictures (default trace)")  # fmt: skip
    args = ap.parse_args(argv)
    one_at_least(samples=args.samples)
    if args.level < 0:
        raise ValueError(f"--level {args.level}: 0 (the default) or more")
    from jaxedit.data.cases import Fact, slotted
    from jaxedit.evaluate.hits import first_tokens
    from jaxedit.hf.load import inspect, load
    from jaxedit.locate import task
    from jaxedit.report import bounds, png, traces

    # what can be seen to be wrong is said before a large model is read
    fact = Fact("0", slotted(args.prompt, args.subject), args.subject, ("?",))
    cfg = task.TraceTask(
        args.model, "", noise=args.noise, samples=args.samples, level=args.level,
        window=args.window, sever=args.sever,
    )  # fmt: skip
    layers = inspect(args.model)[0].layers
    if not 0 <= args.window <= layers:
        raise ValueError(f"a window of {args.window} layers; the model has {layers}")
    model = load(args.model, cli.placement(args), args.dtype)
    made, skipped = task.tokens_of(model, [fact])
    if not made:
        raise ValueError(skipped[0].reason)
    level = task.level_of(cfg, model, made)
    answer = first_tokens(model.tokenizer, [(made[0].text, args.answer)])[0]
    record = task.one(cfg, model, made[0], level, int(answer))
    found: dict[str, Any] = {kind: task.effects([record], kind) for kind in cfg.traced}
    told = traces.fact_in_words(record, cfg.traced, task.recommend(found, cfg.sever))
    drawn = traces.of_fact(record, cfg.traced)
    print(told)
    files = [traces.page(record["prompt"], told, drawn, args.out / "trace.html")]
    for kind, one in drawn.items():
        files += bounds.save(one, args.out, f"trace-{kind}")
    print("\n".join([*(f"wrote {file}" for file in files), *png.lacking()]))


def neurons(argv: Sequence[str]) -> None:
    ap = parser("neurons")
    ap.add_argument("--prompt", required=True)
    ap.add_argument("--answer", default="", help="default: what the model says next")
    ap.add_argument("--finder", choices=("kn", "increase", "activation"), default="kn")
    ap.add_argument("--top", type=int, default=10, help="neurons (default 10)")
    ap.add_argument("--steps", type=int, default=20, help="of the integral of kn (default 20)")
    args = ap.parse_args(argv)
    one_at_least(top=args.top, steps=args.steps)
    text_of(args.prompt)
    import jaxedit
    from jaxedit.locate import explain
    from jaxedit.report import neurons as report

    model = jaxedit.load(args.model, cli.placement(args), args.dtype)
    answer, p, rows = explain.neurons_of(
        model, args.prompt, args.answer, args.finder, top=args.top, steps=args.steps
    )
    print(f"{args.prompt} -> {answer}   p = {p['plain']:.4f}, without all of these "
          f"{p['without']:.4f}, all of them doubled {p['doubled']:.4f}")  # fmt: skip
    print(report.table(rows))


def lens(argv: Sequence[str]) -> None:
    ap = parser("lens")
    ap.add_argument("--prompt", required=True)
    ap.add_argument("--answer", default="", help="default: what the model says; its first token")
    ap.add_argument("--top", type=int, default=5, help="tokens of each layer (default 5)")
    args = ap.parse_args(argv)
    one_at_least(top=args.top)
    text_of(args.prompt)
    import jaxedit
    from jaxedit.locate import explain
    from jaxedit.report import neurons as report

    model = jaxedit.load(args.model, cli.placement(args), args.dtype)
    answer, rows = explain.lens_of(model, args.prompt, args.answer, top=args.top)
    print(f"{args.prompt} -> {answer}")
    print(report.layers(rows, answer))


def compare(argv: Sequence[str]) -> None:
    from jaxedit.locate.compare import FINDERS, CompareTask, run
    from jaxedit.report import neurons as report
    from jaxedit.sharding import MeshConfig

    ap = parser("compare")
    ap.add_argument(
        "--facts",
        default="world:small:0:100",
        metavar="FACTS",
        help="world:SIZE:SEED:COUNT (default world:small:0:100); pararel:PATH",
    )
    ap.add_argument("--finders", nargs="+", default=list(FINDERS), metavar="FINDER",
                    help=f"of {', '.join(FINDERS)} (default: all)")  # fmt: skip
    ap.add_argument("--k", nargs="+", type=int, default=[5, 20],
                    help="neurons of a fact (default 5 20)")  # fmt: skip
    ap.add_argument("--limit", type=int, default=0, help="facts; 0 (default): all")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--out", type=Path, default=Path("neurons"),
                    help="folder; goes on from there (default neurons)")  # fmt: skip
    args = ap.parse_args(argv)
    one_at_least(k=min(args.k))
    cfg = CompareTask(
        args.model, args.facts, tuple(args.finders), tuple(args.k), limit=args.limit,
        seed=args.seed, mesh=MeshConfig(args.data, args.fsdp, args.tensor), dtype=args.dtype,
        workdir=str(args.out),
    )  # fmt: skip
    summary = run(cfg, Meter("comparing", "steps"))
    for line in report.write(summary, args.out):
        print(line)
