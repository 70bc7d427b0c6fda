"""Training steps of MEND.

    .venv/bin/python benchmarks/mend.py cpu        beside PyTorch; needs the parity extra; 2 minutes
    python benchmarks/mend.py gpu [SHAPE …]        steps per second, memory, at the size of a model

cpu: the model, the matrices and the rank of the recorded run (tests/golden/editing/mend), ten edits
in a step, each by itself, which the authors take one after the other and add up. Theirs is their
computation in plain PyTorch on Hugging Face's model: hooks for the factors, the edited matrices put
in place by functional_call, backward through them. Both: float32, the same rows, the same threads,
Adam, in turn. Claim: at least 1.5 times their steps per second.

gpu: random weights in bfloat16, a network in float32, the MLPs of the last three layers. Shapes:
gpt-j-6b, llama-2-7b (the default is both).
"""

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

if sys.argv[1:2] != ["gpu"]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import alternate, peak_bytes, report, seconds

import jaxedit
from jaxedit.data.answers import Answers
from jaxedit.edit import learned as saved
from jaxedit.edit import learner
from jaxedit.edit.presets import gate
from jaxedit.edit.weights import mend
from jaxedit.edit.weights.mend import MendConfig
from jaxedit.models import specs
from jaxedit.models.config import Model
from jaxedit.models.shapes import SHAPES

GOLDEN = Path(__file__).parents[1] / "tests/golden/editing/gpt2-tiny"
EDITS, TOKENS, ANSWER, STEPS = 10, 16, 4, 10


def lessons(vocab: int, rows: int, columns: int) -> Answers:
    """Random texts, of which the last tokens are the answer."""
    random = np.random.RandomState(0)
    shape = (rows, 3, columns)
    tokens = random.randint(1, vocab, shape).astype(np.int32)
    pos = np.broadcast_to(np.arange(columns, dtype=np.int32), shape)
    at = np.broadcast_to(np.arange(columns - ANSWER - 1, columns - 1), (rows, 3, ANSWER))
    target = tokens[..., columns - ANSWER :]
    mask = np.ones(target.shape, bool)
    arrays: Any = (tokens, np.array(pos), np.array(at, np.int32), target, mask)
    return Answers(*arrays)


def step_of(model: Model, opt: MendConfig) -> tuple[Any, Any]:
    """A training step as a program, and what it starts from."""
    optimizer = optax.adam(1e-6)
    start = saved.start(jax.random.key(0), mend.LEARNER, opt, model)

    @jax.jit
    def descend(grads: Any, memory: Any, trained: Any) -> Any:
        changes, memory = optimizer.update(grads, memory, trained)
        return optax.apply_updates(trained, changes), memory

    def step(now: Any, rows: Answers) -> Any:
        what, memory = now
        grads, _, running = learner.gradient(what, model.params, rows, mend.LEARNER, opt, model.cfg)
        trained, memory = descend(grads, memory, what.trained)
        return learner.Learned(trained, running), memory

    return step, (start, optimizer.init(start.trained))


def cpu() -> None:
    import torch

    model = jaxedit.load(GOLDEN, dtype="float32")
    opt = MendConfig(layers=(2, 3), targets=("mlp/down", "mlp/up"), rank=8)
    rows = lessons(model.cfg.vocab, EDITS, TOKENS)
    torch.set_num_threads(os.cpu_count() or 1)
    theirs = Torch(rows, opt.rank)
    step, state = step_of(model, opt)

    def ours() -> Any:
        nonlocal state
        for _ in range(STEPS):
            state = step(state, rows)
        return state[0].trained

    def torches() -> None:
        for _ in range(STEPS):
            theirs.step()

    times = alternate({"ours": ours, "torch": torches})
    report(
        "MEND's training steps, ten edits each, at the recorded model's shape",
        ours_per_s=STEPS / times["ours"],
        torch_per_s=STEPS / times["torch"],
        ours_over_torch=times["torch"] / times["ours"],
    )


class Torch:
    """The authors' step in PyTorch."""

    def __init__(self, rows: Answers, rank: int):
        import torch
        import transformers

        self.torch = torch
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(GOLDEN, dtype=torch.float32, attn_implementation="eager").eval()
        wanted = [f"transformer.h.{i}.mlp.{m}" for i in (2, 3) for m in ("c_proj", "c_fc")]
        self.modules = {name: self.model.get_submodule(name) for name in wanted}
        self.shapes: dict[Any, list[str]] = {}
        for name, module in self.modules.items():
            self.shapes.setdefault(tuple(module.weight.shape), []).append(name)
        make = lambda *s: torch.nn.Parameter(torch.zeros(*s))
        self.nets: dict[Any, list[dict[str, Any]]] = {}
        for (I, O), names in self.shapes.items():
            W, R = I + O, min(rank, I + O)
            self.nets[I, O] = [
                {"U": make(W, R), "V": torch.nn.Parameter(torch.randn(R, W)), "b": make(W),
                 "scale": torch.nn.Parameter(torch.ones(len(names), W)),
                 "shift": make(len(names), W)}
                for _ in range(2)
            ]  # fmt: skip
        self.steps = torch.nn.Parameter(torch.full((len(wanted),), 1e-4))
        self.stats: dict[Any, dict[str, Any]] = {shape: {} for shape in self.shapes}
        flat = [p for net in self.nets.values() for layer in net for p in layer.values()]
        self.optimizer = torch.optim.Adam([*flat, self.steps], lr=1e-6)
        self.tokens = torch.tensor(rows.tokens_BT.astype(np.int64))
        self.factors: dict[str, list[Any]] = {}
        for name, module in self.modules.items():
            module.register_forward_hook(partial(self.look, name))

    def look(self, name: str, module: Any, x: Any, y: Any) -> None:
        """A matrix's input, and the gradient of its output when that comes."""
        seen = self.factors[name] = [x[0].detach()]
        if y.requires_grad:
            y.register_hook(lambda grad: seen.append(grad.detach()))

    def loss(self, logits: Any, tokens: Any) -> Any:
        kept = logits[:, -ANSWER - 1 : -1].reshape(-1, logits.shape[-1])
        return self.torch.nn.functional.cross_entropy(kept, tokens[:, -ANSWER:].reshape(-1))

    def count_in(self, shape: Any, u: Any, v: Any) -> None:
        stats = self.stats[shape]
        for row in range(len(u)):
            for side, x in (("u", u[row]), ("v", v[row])):
                k = stats[f"{side}_k"] = stats.get(f"{side}_k", 0) + 1
                old = stats.get(f"{side}_mean", self.torch.zeros_like(x))
                new = stats[f"{side}_mean"] = old + (x - old) / k
                zero = self.torch.zeros_like(x)
                stats[f"{side}_s"] = stats.get(f"{side}_s", zero) + (x - old) * (x - new)

    def transformed(self, name: str, u: Any, v: Any) -> Any:
        torch = self.torch
        u, v = u.flatten(0, 1), v.flatten(0, 1)
        used = (u != 0).any(-1) & (v != 0).any(-1)
        u, v = u[used], v[used]
        shape = tuple(self.modules[name].weight.shape)
        self.count_in(shape, u, v)
        stats, mode = self.stats[shape], self.shapes[shape].index(name)
        parts = []
        for side, x in (("u", u), ("v", v)):
            std = (stats[f"{side}_s"] / (stats[f"{side}_k"] - 1)).sqrt()
            parts.append((x - stats[f"{side}_mean"]) / (std + 1e-7))
        z = torch.cat(parts, -1)
        for p in self.nets[shape]:
            h = (z @ p["V"].T) @ p["U"].T + p["b"]
            z = z + (p["scale"][mode] * h + p["shift"][mode]).clamp(min=0)
        place = list(self.modules).index(name)
        return self.steps[place] * (z[:, : shape[0]].T @ z[:, shape[0] :])

    def step(self) -> None:
        torch = self.torch
        self.optimizer.zero_grad()
        for edit, said, kept in self.tokens:
            edit, said, kept = edit[None], said[None], kept[None]
            loss = self.loss(self.model(edit).logits, edit)
            torch.autograd.grad(loss, [m.weight for m in self.modules.values()])
            factors, self.factors = self.factors, {}
            changes = {name: self.transformed(name, *factors[name]) for name in self.modules}
            with torch.no_grad():
                before = self.model(kept).logits.log_softmax(-1)
            put = {f"{n}.weight": m.weight.detach() + changes[n] for n, m in self.modules.items()}
            call = lambda x, put=put: torch.func.functional_call(self.model, put, (x,)).logits
            after = call(kept).log_softmax(-1)
            kl = (before.exp() * (before - after)).sum(-1).mean()
            (0.1 * self.loss(call(said), said) + kl).backward()
        self.optimizer.step()


def gpu(shapes: list[str]) -> None:
    for name in shapes or ["gpt-j-6b", "llama-2-7b"]:
        shape = SHAPES[name].replace(dtype="bfloat16")
        params = specs.init(jax.random.key(0), shape)
        model = Model(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), shape)
        L = shape.layers
        opt = MendConfig(layers=tuple(range(max(L - 3, 0), L)), step=-1e-4)
        opt = dataclasses.replace(opt, **gate(shape.gated))
        rows = lessons(shape.vocab, EDITS, 32)
        step, state = step_of(model, opt)
        held = sum(x.nbytes for x in jax.tree.leaves((model.params, state)))

        def run(step: Any = step, rows: Any = rows) -> Any:
            nonlocal state
            state = step(state, rows)
            return state[0].trained

        each = seconds(run)
        report(
            f"MEND's training steps, {EDITS} edits of 32 tokens, {name}, bfloat16",
            steps_per_s=1 / each,
            edits_per_s=EDITS / each,
            base_network_and_adam_gb=held / 2**30,
            peak_gb=(peak_bytes() or 0) / 2**30,
        )


if __name__ == "__main__":
    kind, *rest = sys.argv[1:] or ["cpu"]
    gpu(rest) if kind == "gpu" else cpu()
