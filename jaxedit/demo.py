"""`make demo`: reads, writes and a rank-one edit on a tiny random model, in seconds on a CPU."""

import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxedit
from jaxedit import LowRank, ModelConfig, Write, merge
from jaxedit.base import Array, Deltas, Params
from jaxedit.checksum import checksum
from jaxedit.models.shapes import SHAPES
from jaxedit.models.specs import count, flatten, nest

PROMPT = [1, 11, 16, 10, 83, 25, 82, 92]
SUBJECT = 4  # the column that the trace corrupts
LAYER, TARGET = 1, 77


def main() -> None:
    start = time.time()
    cfg = SHAPES["tiny-llama"]
    # larger weights than training starts from: a random model with something to say
    flat = flatten(jaxedit.init(jax.random.key(0), cfg))
    params = nest({path: x if "norm" in path else 16 * x for path, x in flat.items()})
    tokens = jnp.array([PROMPT])
    print(f"A {cfg.family} of {cfg.layers} layers, {count(cfg):,} random weights; tokens {PROMPT}")
    show_reads(params, cfg, tokens)
    show_writes(params, cfg, tokens)
    show_edit(params, cfg, tokens)
    print(
        f"\n{time.time() - start:.0f} s on {jax.devices()[0].platform}. Next: the tour in README.md"
    )


def show_reads(params: Params, cfg: ModelConfig, tokens: Array) -> None:
    title("reads", "how far each layer moves the residual stream, by position")
    seen = jaxedit.forward(params, tokens, cfg, reads={"resid_pre": None, "resid_post": None}).reads
    move = jnp.linalg.norm(seen["resid_post"] - seen["resid_pre"], axis=-1)[:, 0]
    draw(move)


def show_writes(params: Params, cfg: ModelConfig, tokens: Array) -> None:
    title("writes", "a causal trace: how much of the answer returns if one state is restored")
    T, L = tokens.shape[1], cfg.layers
    answer = int(predict(params, cfg, tokens)[0])
    clean = jaxedit.forward(params, tokens, cfg, reads={"resid_post": None}).reads["resid_post"]
    noise = 3 * params["embed"]["w"].std() * jax.random.normal(jax.random.key(1), (1, T, cfg.embed))
    column = jnp.arange(T)
    corrupt = Write((column == SUBJECT)[None], noise, add=True)
    # one row per cell (layer, position): every restoration of the trace in one batch
    layer_R, column_R = (x.ravel() for x in np.mgrid[:L, :T])
    restore = Write(
        mask=(column == column_R[:, None])[None],
        value=clean[layer_R, 0][None],
        layers=jnp.asarray(layer_R)[None],
    )
    batch = jnp.repeat(tokens, L * T, 0)
    chance = lambda **kw: jax.nn.softmax(jaxedit.forward(params, batch, cfg, **kw).logits[:, -1])
    before = chance()[0, answer]
    broken = chance(writes={"embed": corrupt})[0, answer]
    healed = chance(writes={"embed": corrupt, "resid_post": restore})[:, answer]
    print(f"p(answer): {before:.2f} clean, {broken:.2f} with noise on column {SUBJECT}")
    draw((healed.reshape(L, T) - broken).clip(0))


def show_edit(params: Params, cfg: ModelConfig, tokens: Array) -> None:
    title("deltas", f"a rank-one edit of layer {LAYER} makes the model say {TARGET}")
    at = jnp.array([[len(PROMPT) - 1]])
    value, key = find_value(params, cfg, tokens, at)
    # W + a b with key @ a = 1: what W makes of this key moves by `value`, orthogonal keys stay
    a, b = (key / (key @ key))[None, :, None], value[None, None]
    edit = jaxedit.Edit(deltas={"mlp/down": LowRank(a, b, jnp.array([LAYER]))})
    other = (tokens + 11) % cfg.vocab
    edited = jaxedit.Edit.merge(edit, jaxedit.Model(params, cfg)).params
    weights = {
        "before": (params, {}),
        "edit, live": (params, edit.deltas),
        "edit, merged": (edited, {}),
    }
    for name, (p, d) in weights.items():
        says, others = predict(p, cfg, tokens, d), predict(p, cfg, other, d)
        print(f"{name:<14} says {int(says[0]):>3}    on another prompt {int(others[0]):>3}")
    kept = merge.original(params, edit.deltas)
    same = checksum(merge.restore(edited, kept)) == checksum(params)
    size = 4 * (a.size + b.size)
    print(f"the edit is {size} bytes; undone, every bit of the weights is back: {same}")


def find_value(params: Params, cfg: ModelConfig, tokens: Array, at: Array) -> tuple[Array, Array]:
    """What to add to the MLP's output at one position so that TARGET follows; and the key there."""
    here = (jnp.arange(tokens.shape[1]) == at)[:, None]

    def loss(value: Array) -> Array:
        write = Write(here, value[None, None, None], jnp.array([LAYER]), add=True)
        logits = jaxedit.forward(params, tokens, cfg, writes={"mlp_down": write}).logits[0, -1]
        return -jax.nn.log_softmax(logits)[TARGET] + 0.01 * jnp.linalg.norm(value + 1e-6)

    @jax.jit
    def descend(_: int, value: Array) -> Array:
        gradient = jax.grad(loss)(value)
        return value - 0.3 * gradient / (jnp.linalg.norm(gradient) + 1e-6)

    value = jax.lax.fori_loop(0, 60, descend, jnp.zeros(cfg.embed))
    keys = jaxedit.forward(params, tokens, cfg, reads={"mlp_key": at}).reads["mlp_key"]
    return value, keys[LAYER, 0, 0]


def predict(params: Params, cfg: ModelConfig, tokens: Array, deltas: Deltas | None = None) -> Array:
    return jaxedit.forward(params, tokens, cfg, deltas=deltas).logits[:, -1].argmax(-1)


def title(name: str, what: str) -> None:
    print(f"\n{name}: {what}")


def draw(grid: Array) -> None:
    """A heat map in text: layers from the top down, positions from left to right."""
    shades = " ░▒▓█"
    scaled = np.asarray(grid / grid.max() * (len(shades) - 1)).round().astype(int)
    for layer, row in enumerate(scaled):
        print(f"  layer {layer}  " + "".join(shades[i] * 4 for i in row))
    print("           " + "".join(f"{t:<4}" for t in range(grid.shape[1])))


if __name__ == "__main__":
    main()
