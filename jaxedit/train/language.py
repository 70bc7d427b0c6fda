"""Language models: pretraining and continued training, of all weights or of low-rank deltas."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxedit.base import Array, LowRank, Params
from jaxedit.data import bytewise
from jaxedit.data.cases import Probe
from jaxedit.data.text import Text, TextConfig
from jaxedit.data.text import load as load_text
from jaxedit.data.world.facts import make
from jaxedit.data.world.questions import GROUPS, questions
from jaxedit.data.world.vocabulary import tokenizer as world_tokenizer
from jaxedit.edit.record import Edit, origin
from jaxedit.evaluate.exact import exact
from jaxedit.hf.load import WEIGHTS, find, load, read_tokenizer
from jaxedit.hf.round_trip import check_config
from jaxedit.hf.save import save
from jaxedit.models import specs
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import check_names, matrices
from jaxedit.progress import Progress, is_first, quiet
from jaxedit.sharding import ONE_DEVICE, MeshConfig
from jaxedit.train.loop import Task
from jaxedit.train.loss import next_token, over_parts
from jaxedit.train.optimizer import OptimizerConfig, adamw, learning_rate

Precision = Literal["float32", "bfloat16", "float16"]
MADE: dict[str, Callable[[], Any]] = {  # tokenizers that are made, not read
    "world": world_tokenizer,
    "world-bos": partial(world_tokenizer, bos=True),
    "bytes": bytewise.tokenizer,
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int = 8
    alpha: float = 16.0  # the delta is alpha / rank times the product of its factors
    targets: tuple[str, ...] = ("attn/q", "attn/v")  # names of matrices, as in deltas


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    batches: int = 8  # of the held-out text
    # Groups of questions about a world (data/world/questions.py), and how many of each at most.
    world: str = ""  # SIZE:SEED
    groups: tuple[str, ...] = ()
    questions: int = 500

    def __post_init__(self) -> None:
        if self.groups and not self.world:
            raise ValueError("groups need world: SIZE:SEED, as in text.source.paths")
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise ValueError(f"group {unknown[0]!r}: one of {', '.join(GROUPS)}")


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """A model, from its architecture or from `start`, trained on text."""

    text: TextConfig
    model: ModelConfig | None = None  # trained from scratch
    start: str = ""  # or: a folder, checkpoint or hub name to go on from
    tokenizer: str = ""  # a folder or hub name, "world", "world-bos", "bytes"; "": that of `start`
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = ONE_DEVICE
    lora: LoraConfig | None = None  # None: all weights are trained
    eval: EvalConfig = EvalConfig()
    accumulate: int = 1  # parts of a batch whose gradients are added up
    remat: bool = False  # activations are computed again in the backward pass
    unroll: bool = False  # no loop over layers: longer to compile, faster for few layers
    dtype: Precision = "float32"  # of the computation; trained weights are float32
    save_dtype: Precision = "float32"  # of the model that is written at the end
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.start):
            raise ValueError("give model (an architecture) or start (a folder): one of them")
        if self.accumulate < 1 or self.text.batch % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate}: a divisor of the batch of {self.text.batch}"
            )

    def task(self, steps: int, progress: Progress = quiet) -> Task:
        return language_task(self, steps, progress)


def tokenizer_of(name: str) -> Any:
    """One that is made, or that of a folder or hub name."""
    return MADE[name]() if name in MADE else read_tokenizer(find(name))


def first_model(cfg: LanguageConfig, mesh: Mesh | None) -> Model:
    """The model before the first step. Weights that are trained are float32."""
    tokenizer = None
    if cfg.tokenizer:
        tokenizer = tokenizer_of(cfg.tokenizer)
    if cfg.start:
        model = load(cfg.start, mesh, cfg.dtype if cfg.lora else "float32")
        model = model._replace(tokenizer=tokenizer or model.tokenizer)
    else:
        assert cfg.model is not None
        model = Model(specs.init(jax.random.key(cfg.seed), cfg.model, mesh=mesh), cfg.model)
        model = model._replace(tokenizer=tokenizer)
    if model.tokenizer is None:
        raise ValueError("no tokenizer: set tokenizer to a folder, a hub name, or world")
    if len(model.tokenizer) > model.cfg.vocab:
        raise ValueError(
            f"the tokenizer has {len(model.tokenizer)} tokens, the model {model.cfg.vocab}"
        )
    return model._replace(cfg=model.cfg.replace(dtype=cfg.dtype))


def first_deltas(cfg: LoraConfig, model: Model, seed: int) -> dict[str, LowRank]:
    """One factor random, the other zero: the model starts as it is."""
    check_names("delta", dict.fromkeys(cfg.targets), matrices(model.cfg), model.cfg)
    deltas = {}
    for i, name in enumerate(cfg.targets):
        rows, columns = matrices(model.cfg)[name]
        key = jax.random.fold_in(jax.random.key(seed), i)
        a = jax.random.normal(key, (model.cfg.layers, rows, cfg.rank)) / math.sqrt(rows)
        deltas[name] = LowRank(a, jnp.zeros((model.cfg.layers, cfg.rank, columns)))
    return deltas


def scaled(deltas: Mapping[str, LowRank], by: float) -> dict[str, LowRank]:
    return {name: dataclasses.replace(d, b=d.b * by) for name, d in deltas.items()}


def language_task(cfg: LanguageConfig, steps: int, progress: Progress = quiet) -> Task:
    """Training as the loop wants it. The state: what is trained, the optimizer's, the step."""
    mesh = cfg.mesh.make()
    model = first_model(cfg, mesh)
    if not cfg.lora:
        check_config(model.cfg)  # before the steps, not when they are done
    check_windows(cfg, model.cfg, mesh)
    asked = sample(cfg.eval)
    train = load_text(cfg.text, model.tokenizer, progress=progress)
    held = None
    if cfg.text.held_out:
        held = load_text(cfg.text, model.tokenizer, part="validation", progress=progress)
    trained = first_deltas(cfg.lora, model, cfg.seed) if cfg.lora else model.params
    if cfg.lora:
        decays: Any = jax.tree.map(lambda _: True, trained)
    else:
        table = specs.specs(model.cfg)
        decays = specs.nest({path: spec.init == "normal" for path, spec in table.items()})
    optimizer = adamw(cfg.optimizer, steps, decays)
    rate = learning_rate(cfg.optimizer, steps)
    base = model.params if cfg.lora else None

    def init() -> Any:
        # copied: the loop gives the state's memory back, and the model is loaded once
        start = jax.tree.map(jnp.copy, trained)
        return {"trained": start, "optimizer": optimizer.init(start), "step": jnp.int32(0)}

    def losses(trained: Any, base: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        params, deltas = model_of(cfg, trained, base)
        return next_token(
            params,
            batch["tokens_BT"],
            model.cfg,
            pos_BT=batch.get("pos_BT"),
            deltas=deltas,
            remat=cfg.remat,
            unroll=cfg.unroll,
            plain=True,  # as data.text lays windows out
        )

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, base: Any, batch: Mapping[str, Array]) -> tuple[Any, dict]:
        loss, grads = over_parts(lambda t, part: losses(t, base, part), state["trained"], batch)
        changes, opt = optimizer.update(grads, state["optimizer"], state["trained"])
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "lr": rate(state["step"]),
        }
        new = optax.apply_updates(state["trained"], changes)
        return {"trained": new, "optimizer": opt, "step": state["step"] + 1}, metrics

    measure = jax.jit(losses)

    def batch(step: int) -> dict[str, Array]:
        return place(train, step, cfg.accumulate, mesh)

    def evaluate(state: Any) -> dict[str, float]:
        out: dict[str, float] = {}
        if held is not None:
            total = count = 0.0
            for i in range(min(cfg.eval.batches, -(-len(held) // cfg.text.batch))):
                parts = place(held, i, 1, mesh)
                loss, n = measure(state["trained"], base, {k: v[0] for k, v in parts.items()})
                total, count = total + float(loss), count + float(n)
            out["loss"] = total / count
        params, deltas = model_of(cfg, state["trained"], base)
        knows = model._replace(params=params)
        for group, some in asked.items():
            out[group] = float(exact(knows, some, ending=".", deltas=deltas).mean())
        return out

    return Task(
        init,
        batch,
        lambda state, batch: update(state, base, batch),
        evaluate if held is not None or cfg.eval.groups else None,
        metadata={"model": model.cfg.to_dict(), "trained": str(cfg.lora or WEIGHTS)},
        tokens=cfg.text.batch * cfg.text.length,
        begin=partial(begin, model),
        finish=partial(finish, cfg, model),
    )


def model_of(cfg: LanguageConfig, trained: Any, base: Any) -> tuple[Params, Any]:
    """Weights and deltas of a state: the one or the other is what is trained."""
    if cfg.lora is None:
        return trained, None
    return base, scaled(trained, cfg.lora.alpha / cfg.lora.rank)


def place(text: Text, step: int, accumulate: int, mesh: Mesh | None) -> dict[str, Array]:
    """A step's batch on the devices, [accumulate, rows, T + 1]; each host gives its own rows."""
    rows = text.batch(step, jax.process_index(), jax.process_count())
    out: dict[str, Array] = {}
    for name in ("tokens_BT", "pos_BT"):
        if name in rows:
            x = rows[name].reshape(accumulate, -1, rows[name].shape[-1])
            if mesh is None:
                out[name] = jnp.asarray(x)
            else:
                where = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
                out[name] = jax.make_array_from_process_local_data(where, x)
    return out


def check_windows(cfg: LanguageConfig, model: ModelConfig, mesh: Mesh | None) -> None:
    """Raises where the windows fit neither the model's positions nor the mesh."""
    length, rows = cfg.text.length, cfg.text.batch // cfg.accumulate
    if model.learned_pos and length > model.max_len:
        raise ValueError(
            f"windows of {length} tokens; {model.family} has {model.max_len} positions"
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    if rows % parts:
        raise ValueError(
            f"{rows} windows at once (text.batch / accumulate): the mesh takes multiples of {parts}"
        )


def sample(cfg: EvalConfig) -> dict[str, list[Probe]]:
    """What is asked at every evaluation: some questions of each group."""
    if not cfg.groups:
        return {}
    size, _, seed = cfg.world.partition(":")
    if not (seed or "0").isdigit():
        raise ValueError(f"eval.world={cfg.world!r}: write SIZE:SEED, as small:0")
    world, random = make(size, int(seed or 0)), np.random.RandomState(0)
    out = {}
    for group in cfg.groups:
        asked = questions(world, group)
        out[group] = [asked[i] for i in random.permutation(len(asked))[: cfg.questions]]
    return out


def begin(model: Model, folder: Path) -> None:
    """The tokenizer beside the checkpoints, which are models too (hf.load)."""
    if is_first():
        model.tokenizer.save_pretrained(folder / "tokenizer")


def finish(cfg: LanguageConfig, model: Model, state: Any, folder: Path) -> Path:
    """Writes what was trained: a Hugging Face folder, or the deltas as an edit of `start`."""
    if cfg.lora is None:
        cast = lambda x: x.astype(cfg.save_dtype)
        params = jax.tree.map(cast, state["trained"])
        save(model._replace(params=params), folder / "model", overwrite=True)
        return folder / "model"
    deltas = scaled(state["trained"], cfg.lora.alpha / cfg.lora.rank)
    about = origin(model, method="lora", config=dataclasses.asdict(cfg))
    if is_first():  # every host has all of the deltas
        Edit(deltas=deltas, provenance=about).save(folder / "edit.safetensors")
    return folder / "edit.safetensors"
