"""`make demo`: a fact of a small model located, changed, measured and changed back, on a CPU."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxedit
from jaxedit import LowRank, Model, Write, cli, merge
from jaxedit.base import Array, Deltas
from jaxedit.checksum import checksum
from jaxedit.data.cases import EditCase, EditRequest
from jaxedit.data.requests import EditBatch, edit_batches
from jaxedit.data.world.cases import cases
from jaxedit.data.world.corpus import documents
from jaxedit.data.world.facts import World, make
from jaxedit.data.world.relations import FACTUAL, RELATIONS, phrases
from jaxedit.edit.record import Edit, origin
from jaxedit.evaluate.exact import exact
from jaxedit.models.specs import count
from jaxedit.report import html, plots

LAYER = 0  # whose MLP is edited, at the subject's last token
NOISE = 1.0  # on the subject in the trace, in standard deviations of the embeddings
STEPS, RATE = 60, 1.0  # of the search for a value
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
    """A prompt with what the model said before and after, and what it should say after."""

    what: str
    prompt: str
    before: str
    after: str
    wanted: tuple[str, ...]

    @property
    def right(self) -> bool:
        return self.after in self.wanted


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
    print(f"\nedit: “{request.text} {request.target}”, one rank in layer {LAYER}")
    edit = rank_one(model, case, list(documents(world, 400, seed=1)))
    lines = ask(model, case, edit.deltas)
    print("\n" + show(lines))
    edited = edit.merge(model)
    kept = merge.original(model.params, edit.deltas)
    back = checksum(merge.restore(edited.params, kept)) == checksum(model.params)
    OUT.mkdir(parents=True, exist_ok=True)
    edit.save(OUT / "edit.safetensors")
    size = (OUT / "edit.safetensors").stat().st_size
    undone = f"undo: the edit is a file of {size:,} bytes; undone, every bit is back: {back}"
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


def rank_one(model: Model, case: EditCase, texts: Sequence[str]) -> Edit:
    """W + a b in one MLP: from the subject's key to a value that makes the target follow, and as
    little as can be for the keys of other text.
    """
    cfg, request = model.cfg, case.request
    # asked in several ways, so that the key is not that of one context
    relation = RELATIONS[case.info["relation"]]
    asked = [dataclasses.replace(request, prompt=phrase) for phrase in phrases(relation)]
    others = [phrases(r)[0] for r in FACTUAL if r.subject == relation.subject and r != relation]
    kept = [EditRequest(phrase, request.subject, ".") for phrase in others]
    _, batch = next(iter(edit_batches(model.tokenizer, asked, size=len(asked))))
    _, about = next(iter(edit_batches(model.tokenizer, kept, size=len(kept))))
    at = jnp.asarray(batch.subject_B)[:, None]
    reads = {"mlp_key": at}
    seen = jaxedit.forward(model.params, batch.tokens_BT, cfg, pos_BT=batch.pos_BT, reads=reads)
    key = seen.reads["mlp_key"][LAYER, :, 0].mean(0)
    tokens = model.tokenizer(list(texts), padding=True, return_tensors="np")
    pos = np.where(tokens["attention_mask"], np.cumsum(tokens["attention_mask"], 1) - 1, -1)
    keys = jaxedit.forward(
        model.params, jnp.asarray(tokens["input_ids"]), cfg, pos_BT=jnp.asarray(pos),
        reads={"mlp_key": None},
    ).reads["mlp_key"][LAYER]  # fmt: skip
    keys = jnp.where((pos >= 0)[..., None], keys, 0).reshape(-1, cfg.mlp)
    second = keys.T @ keys / (pos >= 0).sum()
    ridge = 1e-3 * jnp.trace(second) / cfg.mlp
    a = jnp.linalg.solve(second + ridge * jnp.eye(cfg.mlp), key)
    value = find_value(model, batch, about)
    delta = LowRank((a / (a @ key))[None, :, None], value[None, None], jnp.array([LAYER]))
    provenance = origin(model, method="rank-one", request=request)
    return Edit(deltas={"mlp/down": delta}, provenance=provenance)


def find_value(model: Model, batch: EditBatch, about: EditBatch) -> Array:
    """What to add to the MLP's output at the subject's last token so that the targets of `batch`
    follow, while what the model says after the prompts of `about` stays.
    """
    params, cfg = model.params, model.cfg
    next_BT = jnp.roll(jnp.asarray(batch.tokens_BT), -1, 1)

    def log_p(batch: EditBatch, value: Array) -> Array:
        at = jnp.asarray(batch.subject_B)[:, None]
        here = (jnp.arange(batch.tokens_BT.shape[1]) == at)[None]
        write = Write(here, value[None, None, None], jnp.array([LAYER]), add=True)
        out = jaxedit.forward(
            params, batch.tokens_BT, cfg, pos_BT=batch.pos_BT, writes={"mlp_down": write}
        )
        return jax.nn.log_softmax(out.logits)

    rows = jnp.arange(len(about.prompt_B))
    last = lambda value: log_p(about, value)[rows, about.prompt_B]
    before = last(jnp.zeros(cfg.embed))

    def loss(value: Array) -> Array:
        said = jnp.take_along_axis(log_p(batch, value), next_BT[..., None], -1)[..., 0]
        target = -jnp.where(batch.target_BT, said, 0).sum() / batch.target_BT.sum()
        now = last(value)
        drift = (jnp.exp(now) * (now - before)).sum(-1).mean()
        return target + drift + 1e-3 * jnp.square(value).mean()

    adam = optax.adam(RATE)

    @jax.jit
    def search(value: Array) -> Array:
        def step(_: int, carry: tuple) -> tuple:
            value, state = carry
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                change, state = adam.update(jax.grad(loss)(value), state)
            return value + change, state

        return jax.lax.fori_loop(0, STEPS, step, (value, adam.init(value)))[0]

    return search(jnp.zeros(cfg.embed))


def ask(model: Model, case: EditCase, deltas: Deltas) -> list[Line]:
    """The model's answers to one question of each kind, without the edit and with it."""
    request = case.request
    probes = [case.probes[key][0] for key in ASKED.values() if key]
    prompts = [request.text, *(p.prompt for p in probes)]
    wanted = [(request.target,), *(p.names for p in probes)]
    say = lambda **how: [
        words.split(".")[0].strip()
        for words in jaxedit.generate(model, prompts, max_new_tokens=8, **how)
    ]
    rows = zip(ASKED, prompts, say(), say(deltas=deltas), wanted, strict=True)
    return [Line(*row) for row in rows]


def show(lines: Sequence[Line]) -> str:
    wide = max(len(x.prompt) for x in lines)
    return "\n".join(
        f"  {'✓' if x.right else '✗'} {x.what:<19}{x.prompt:<{wide}}  {x.before} → {x.after}"
        for x in lines
    )


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
    head = ("asked", "prompt", "before", "after")
    cells = [(x.what, x.prompt, x.before, x.after) for x in lines]
    parts = [
        html.paragraph(f"“{request.text} {request.ground_truth[0]}” is to become "
                       f"“{request.text} {request.target}”."),
        html.heading("Where the fact is"), picture,
        html.heading("What the model says"), html.table(head, cells, [x.right for x in lines]),
        html.paragraph(undone),
    ]  # fmt: skip
    (OUT / "index.html").write_text(html.page("One fact, changed and changed back", parts))


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
