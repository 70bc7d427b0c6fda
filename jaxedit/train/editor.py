"""Editors that are trained (MEND and its relatives): lessons in, an editor out."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxedit.base import Array
from jaxedit.data.answers import Answers
from jaxedit.data.lessons import LessonConfig, Lessons
from jaxedit.data.lessons import load as load_lessons
from jaxedit.data.world.facts import make
from jaxedit.edit import learned as saved
from jaxedit.edit import learner as learners
from jaxedit.edit.learner import Learned
from jaxedit.edit.methods import EDITORS, configure, name_of, override
from jaxedit.edit.presets import MODELS
from jaxedit.edit.stats import on_host
from jaxedit.hf.load import load as load_model
from jaxedit.models.config import Model
from jaxedit.progress import Progress, quiet
from jaxedit.settings import Dtype
from jaxedit.sharding import ONE_DEVICE, MeshConfig, mesh_of, on_mesh_of
from jaxedit.train.loop import LoopConfig, Task, TrainConfig
from jaxedit.train.optimizer import OptimizerConfig, adamw, learning_rate

# Adam at one rate, which a warm-up and a decay may be set for
ADAM = OptimizerConfig(
    lr=1e-6, warmup=0, schedule="constant", beta2=0.999, weight_decay=0.0, clip=100.0
)
FOLDER = "editor"
# of every method's config
PRESETS = ("world", "world-llama", "world-people", "world-things", "gpt2-xl-zsre", "gpt-j-6b-zsre",
           "llama-2-7b-zsre")  # fmt: skip
WORLD = "world:small:0:200"  # what is edited of a world
ZSRE = "zsre:data/zsre/zsre_mend_train.json"
# Of the world's facts, those that an editor for a part of them learns from.
DOMAINS = {
    "people": ("birthplace", "profession", "employer", "spouse"),
    "things": ("maker", "color", "price_2019", "price_2023", "author", "genre", "setting"),
}


@dataclasses.dataclass(frozen=True)
class EditorConfig:
    """A method, the model that it edits, and what it learns from."""

    model: str  # a folder, a hub name, a checkpoint, or one that ships
    lessons: LessonConfig
    editor: Any  # a method's config: MendConfig …
    optimizer: OptimizerConfig = ADAM
    step_lr: float = 1e-4  # of the step sizes, where a method learns some [lr_lr]
    batch: int = 10  # lessons of a step
    accumulate: int = 1  # parts of a step, whose gradients are added up
    measured: int = 64  # lessons of a batch when validating
    mesh: MeshConfig = ONE_DEVICE
    dtype: Dtype | None = None  # of the model, None: as stored; what is trained is float32
    seed: int = 0

    def __post_init__(self) -> None:
        name = name_of(self.editor)
        if EDITORS[name].make(self.editor).learner is None:
            raise ValueError(f"{name} is not trained; python -m jaxedit.edit runs it")
        if self.batch < 1 or self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(
                f"batch={self.batch} accumulate={self.accumulate}: accumulate divides batch"
            )

    def task(self, steps: int, progress: Progress = quiet) -> Task:
        return editor_task(self, steps, progress)


def for_model(method: str, preset: str, **changes: Any) -> TrainConfig:
    """Training of a method on MODEL-zsre, or on a model that ships and its world: all of it, or
    MODEL-people, MODEL-things. changes: fields of EditorConfig and, in `loop`, of LoopConfig.
    """
    name, _, domain = preset.rpartition("-")
    name, domain = (name, domain) if domain in ("zsre", *DOMAINS) else (preset, "")
    how: dict[str, Any] = {"dtype": "bfloat16"}
    loop: dict[str, Any] = {"eval_every": 100, "save_every": 500, "log_every": 20, "best": "score"}
    if domain == "zsre":
        lessons = LessonConfig((ZSRE,), validation=500)
        loop |= {"steps": 100_000, "eval_every": 1000, "save_every": 1000, "patience": 20}
    else:
        lessons = of_world(DOMAINS.get(domain, ()))
        how = {"batch": 32, "dtype": "float32", "step_lr": 2e-5,
               "optimizer": dataclasses.replace(ADAM, lr=4e-5, schedule="linear")}  # fmt: skip
        loop |= {"steps": 1000}
    loop |= changes.pop("loop", {})
    editor = configure(method, None, preset=name)
    task = EditorConfig(MODELS[name].hub, lessons, editor, **how | changes)
    return TrainConfig(task, LoopConfig(**loop), f"runs/{method}-{preset}")


def held_out(relations: tuple[str, ...] = ()) -> str:
    """What is edited of a world: nobody learns from it."""
    return f"world:small:0:60:counterfactual:0:{'+'.join(relations)}" if relations else WORLD


def of_world(relations: tuple[str, ...]) -> LessonConfig:
    """Other facts than those: several targets for each, and as many about things that are new."""
    count = sum(not relations or name in relations for _, name in make("small").facts)
    draws = [("counterfactual", draw) for draw in range(16)]
    draws += [("insertion", draw) for draw in range(20, 36)]
    of = ":" + "+".join(relations) if relations else ""
    sources = tuple(f"world:small:0:{count}:{kind}:{draw}{of}" for kind, draw in draws)
    return LessonConfig(sources, without=(held_out(relations),))


def editor_task(cfg: EditorConfig, steps: int, progress: Progress = quiet) -> Task:
    """Training as the loop wants it. The state: what was learned, the optimizer's, the step."""
    model = load_model(cfg.model, cfg.mesh.make(), cfg.dtype, progress=progress)
    return of_model(cfg, model, steps)


def of_model(cfg: EditorConfig, model: Model, steps: int) -> Task:
    """The same of a model that is there already."""
    opt = override(cfg.editor, {}, model.cfg)
    method = name_of(opt)
    learner = EDITORS[method].make(opt).learner
    train, held, skipped = load_lessons(cfg.lessons, model.tokenizer)
    check(cfg, model, train)
    optimizer = adamw(cfg.optimizer, steps, False)
    rate = learning_rate(cfg.optimizer, steps)
    params = learner.given(opt, model) if learner.given else model.params
    how = {"learner": learner, "opt": opt, "cfg": model.cfg}

    def init() -> Any:
        now = saved.start(jax.random.key(cfg.seed), learner, opt, model)
        return {"learned": now, "optimizer": optimizer.init(now.trained), "step": jnp.int32(0)}

    @partial(jax.jit, donate_argnums=0)
    def descend(state: Any, grads: Any, running: Any) -> tuple[Any, dict[str, Array]]:
        now = state["learned"]
        changes, memory = optimizer.update(grads, state["optimizer"], now.trained)
        if "steps" in changes:  # Adam's updates are of the size of the rate, so another rate is
            faster = cfg.step_lr / cfg.optimizer.lr
            changes = {**changes, "steps": jax.tree.map(lambda x: x * faster, changes["steps"])}
        new = Learned(optax.apply_updates(now.trained, changes), running)
        found = {"grad_norm": optax.tree.norm(grads), "lr": rate(state["step"])}
        return {"learned": new, "optimizer": memory, "step": state["step"] + 1}, found

    def update(state: Any, parts: list[Answers]) -> tuple[Any, dict[str, Array]]:
        now, grads, metrics = state["learned"], None, None
        with on_mesh_of(params):
            for lessons in parts:
                more, found, running = learners.gradient(now, params, lessons, **how)
                now = Learned(now.trained, running)
                first = grads is None
                grads = more if first else jax.tree.map(jnp.add, grads, more)
                metrics = found if first else jax.tree.map(jnp.add, metrics, found)
            share = lambda x: x / len(parts)
            grads, metrics = jax.tree.map(share, grads), jax.tree.map(share, metrics)
            state, more = descend(state, grads, now.running)
        return state, metrics | more

    def batch(step: int) -> list[Answers]:
        lessons = train.batch(step, cfg.batch)
        size = cfg.batch // cfg.accumulate
        cut = lambda i: jax.tree.map(lambda x: x[i * size : (i + 1) * size], lessons)
        return [cut(i) for i in range(cfg.accumulate)]

    def evaluate(state: Any) -> dict[str, float]:
        found = []
        with on_mesh_of(params):
            for lessons in held.every(min(cfg.measured, len(held))):
                out = learners.measure(state["learned"], params, lessons, **how)
                found.append({k: float(on_host(v)) for k, v in out.items()})
        return {k: float(np.mean([f[k] for f in found])) for k in found[0]}

    def finish(state: Any, folder: Path) -> Path:
        about = {"lessons": len(train), "left_out": len(skipped)}
        return saved.save(folder / FOLDER, state["learned"], method, opt, model, **about)

    return Task(
        init, batch, update, evaluate, metadata={"method": method}, finish=finish,
    )  # fmt: skip


def check(cfg: EditorConfig, model: Model, train: Lessons) -> None:
    mesh = mesh_of(model.params)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    size = cfg.batch // cfg.accumulate
    if size % parts or cfg.measured % parts:
        raise ValueError(
            f"{size} lessons at once (batch / accumulate), {cfg.measured} measured: the mesh takes "
            f"multiples of {parts}"
        )
    if cfg.batch > len(train):
        raise ValueError(f"batch={cfg.batch}: there are {len(train)} facts to learn from")
