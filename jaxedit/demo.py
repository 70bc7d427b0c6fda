"""`make demo`: a fact of a small model located, changed, measured and changed back, on a CPU."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxedit
from jaxedit import Model, Write, cli, merge
from jaxedit.base import Deltas
from jaxedit.checksum import checksum
from jaxedit.data.cases import EditCase, EditRequest
from jaxedit.data.requests import edit_batches
from jaxedit.data.world.cases import cases
from jaxedit.data.world.facts import World, make
from jaxedit.edit.runner import run
from jaxedit.evaluate.exact import exact
from jaxedit.models.specs import count
from jaxedit.report import html, plots

# the methods, and how they are set for a quick look
METHODS: dict[str, dict[str, Any]] = {
    "rome": {"rows.contexts.lengths": ((10, 5),)},
    "ft-m": {},
    "lora": {},
}
NOISE = 1.0  # on the subject in the trace, in standard deviations of the embeddings
OUT = Path("runs/demo")
ASKED = {  # what is asked before and after, by the keys of a case's probes
    "the edit itself": "",
    "in other words": "rephrase",
    "by another name": "portability/subject_aliasing",
    "another subject": "locality/neighborhood",
    "another fact of it": "locality/relation_specificity",
    "something else": "locality/unrelated",
}


class Line(NamedTuple):
    """A prompt with what the model says: as it is, and with each method's edit."""

    what: str
    prompt: str
    before: str
    after: tuple[str, ...]
    wanted: tuple[str, ...]


def main() -> None:
    start = time.time()
    model, world = jaxedit.load("world", dtype="float32"), make("small")
    case = choose(model, world)
    request = case.request
    print(f"A {model.cfg.family} of {count(model.cfg):,} weights that knows a world of "
          f"{len(world.facts):,} facts.\n")  # fmt: skip
    print(f"locate: which states carry “{request.text} {request.ground_truth[0]}”")
    effect, tokens = trace(model, request)
    draw(effect)
    print(f"\nedit: “{request.text} {request.target}”, by {', '.join(METHODS)}")
    edits = [run(model, [request], method, **how)[0] for method, how in METHODS.items()]
    lines = ask(model, case, [edit.deltas for edit in edits])
    print("\n" + show(lines))
    edit = edits[0]
    edited = edit.merge(model)
    kept = merge.original(model.params, edit.deltas)
    back = checksum(merge.restore(edited.params, kept)) == checksum(model.params)
    OUT.mkdir(parents=True, exist_ok=True)
    edit.save(OUT / "edit.safetensors")
    size = (OUT / "edit.safetensors").stat().st_size
    undone = (
        f"undo: {next(iter(METHODS))}'s edit is a file of {size:,} bytes; merged and undone, every "
        f"bit is back: {back}"
    )
    print(f"\n{undone}")
    write(request, effect, tokens, lines, undone)
    print(f"\n{OUT}/trace.svg, {OUT}/index.html; {time.time() - start:.0f} s on "
          f"{jax.devices()[0].platform}. Next: the tour in README.md")  # fmt: skip


def choose(model: Model, world: World) -> EditCase:
    """The first edit whose questions the model answers rightly before it."""
    for case in cases(world, 300):
        asked = [case.probes[key][0] for key in ASKED.values() if key in case.probes]
        if case.request.ground_truth and len(asked) == len(ASKED) - 1:
            true = (case.request.ground_truth,)  # what the edit changes had this answer before
            before = [
                dataclasses.replace(p, answers=true) if case.request.target in p.names else p
                for p in asked
            ]
            if exact(model, before, ending=".").all():
                return case
    raise ValueError("the model knows no fact well enough to edit it: train it again")


def trace(model: Model, request: EditRequest) -> tuple[np.ndarray, list[str]]:
    """How much of the answer's probability returns when one state of the noised run is restored,
    [layers, columns].
    """
    _, batch = next(iter(edit_batches(model.tokenizer, [true_request(request)], size=1)))
    tokens, T = jnp.asarray(batch.tokens_BT), int(batch.prompt_B[0]) + 1
    answer = int(tokens[0, T])
    tokens, L, cfg = tokens[:, :T], model.cfg.layers, model.cfg
    column = jnp.arange(T)
    subject = (column >= batch.subject_first_B[0]) & (column <= batch.subject_B[0])
    clean = jaxedit.forward(model.params, tokens, cfg, reads={"resid_post": None})
    noise = jax.random.normal(jax.random.key(1), (1, T, cfg.embed))
    corrupt = Write(subject[None], NOISE * model.params["embed"]["w"].std() * noise, add=True)
    # one row per cell (layer, column): every restoration of the trace in one batch
    layer_R, column_R = (x.ravel() for x in np.mgrid[:L, :T])
    restore = Write(
        mask=(column == column_R[:, None])[None],
        value=clean.reads["resid_post"][layer_R, 0][None],
        layers=jnp.asarray(layer_R)[None],
    )
    rows = jnp.repeat(tokens, L * T, 0)
    chance = lambda **kw: jax.nn.softmax(
        jaxedit.forward(model.params, rows, cfg, **kw).logits[:, -1]
    )[:, answer]
    broken = chance(writes={"embed": corrupt})[0]
    healed = chance(writes={"embed": corrupt, "resid_post": restore})
    words = [model.tokenizer.decode([t]) for t in tokens[0].tolist()]
    return np.asarray((healed.reshape(L, T) - broken).clip(0)), words


def true_request(request: EditRequest) -> EditRequest:
    return EditRequest(request.prompt, request.subject, request.ground_truth[0])


def ask(model: Model, case: EditCase, deltas: Sequence[Deltas]) -> list[Line]:
    """The model's answers to one question of each kind, without an edit and with each."""
    request = case.request
    probes = [case.probes[key][0] for key in ASKED.values() if key]
    prompts = [request.text, *(p.prompt for p in probes)]
    wanted = [(request.target,), *(p.names for p in probes)]
    say = lambda **how: [
        words.split(".")[0].strip()
        for words in jaxedit.generate(model, prompts, max_new_tokens=8, **how)
    ]
    after = zip(*(say(deltas=d) for d in deltas), strict=True)
    rows = zip(ASKED, prompts, say(), after, wanted, strict=True)
    return [Line(*row) for row in rows]


def show(lines: Sequence[Line]) -> str:
    wide = max(len(x.prompt) for x in lines)
    head = f"  {'':<19}{'':<{wide}}  {'before':<12}" + "".join(f"{m:<14}" for m in METHODS)
    rows = [
        f"  {x.what:<19}{x.prompt:<{wide}}  {x.before:<12}"
        + "".join(f"{'✓' if said in x.wanted else '✗'} {said:<12}" for said in x.after)
        for x in lines
    ]
    return "\n".join(line.rstrip() for line in [head, *rows])


def draw(grid: np.ndarray) -> None:
    """A heat map in text: layers from the top down, columns from left to right."""
    shades = " ░▒▓█"
    scaled = (grid / max(grid.max(), 1e-9) * (len(shades) - 1)).round().astype(int)
    for layer, row in enumerate(scaled):
        print(f"  layer {layer}  " + "".join(shades[i] * 4 for i in row))


def write(
    request: EditRequest, effect: np.ndarray, tokens: list[str], lines: list[Line], undone: str
) -> None:
    """The picture and the page."""
    rows = [f"layer {i}" for i in range(len(effect))]
    title = "Probability of the answer, by the one state restored"
    picture = plots.heatmap(effect, tokens, rows, title=title)
    (OUT / "trace.svg").write_text(picture)
    head = ("asked", "prompt", "before", *METHODS)
    mark = lambda x, said: f"{'✓' if said in x.wanted else '✗'} {said}"
    cells = [(x.what, x.prompt, x.before, *(mark(x, said) for said in x.after)) for x in lines]
    good = [all(said in x.wanted for said in x.after) for x in lines]
    parts = [
        html.paragraph(f"“{request.text} {request.ground_truth[0]}” is to become "
                       f"“{request.text} {request.target}”."),
        html.heading("Where the fact is"), picture,
        html.heading("What the model says"), html.table(head, cells, good),
        html.paragraph(undone),
    ]  # fmt: skip
    (OUT / "index.html").write_text(html.page("One fact, changed and changed back", parts))


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
