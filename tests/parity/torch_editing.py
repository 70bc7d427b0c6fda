"""The editing methods in plain torch, on any Hugging Face model: one request at a time, whole rows,
hooks on modules, autograd for the search, explicit inverses in float64 for the updates. Slow and
short, to be read beside the papers.

C contexts, R = C + 1 rows of a request, U target tokens, T time, D embed, F mlp, V vocab, N
requests.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import reference
import torch

Module, Tensor = torch.nn.Module, torch.Tensor


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request: a row per context that ends with its target but for the last token, and the row
    about the subject; `at` is the place of the subject's last token.
    """

    rows: list[list[int]]
    at: list[int]
    target: list[int]
    weights: list[float]  # of the contexts' keys in the mean

    @property
    def prompts(self) -> list[list[int]]:
        """The contexts' rows without the target."""
        cut = len(self.target) - 1
        return [row[: len(row) - cut] for row in self.rows[: len(self.weights)]]


def ask(tokenizer: Any, request: Any, groups: Sequence[Sequence[str]], about: str) -> Asked:
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    target = ids(" " + request.target)
    rows, at = [], []
    texts = [context.format(request.prompt) for group in groups for context in group]
    for text in [*texts, about]:
        end = target[:-1] if len(rows) < len(texts) else []
        rows.append(ids(text.format(request.subject)) + end)
        at.append(len(ids(text[: text.index("{}")] + request.subject)) - 1)
    weights = [1 / (len(group) * len(groups)) for group in groups for _ in group]
    return Asked(rows, at, target, weights)


def run(model: Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """Log probabilities [R, T, V] of rows that are padded on the right."""
    T = max(map(len, rows))
    tokens_RT = torch.tensor([[*row, *[0] * (T - len(row))] for row in rows])
    mask_RT = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rows])
    logits_RTV = model(tokens_RT, attention_mask=mask_RT, use_cache=False).logits
    return logits_RTV.log_softmax(-1)


# Modules


def place(model: Module, site: str, layer: int) -> Module:
    """The module that gives a site's activations: what MEMIT adds to is a block's output, what ROME
    and PMET add to is the product with a matrix, before any norm of it.
    """
    parts = reference.PARTS[model.config.model_type]
    path = f"{parts['blocks']}.{layer}"
    part = {"resid_post": "", "mlp_down": "." + parts["down"], "attn_o": "." + parts["o"]}[site]
    return model.get_submodule(path + part)


@contextmanager
def hook(module: Module, change: Callable[[Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """While open, `change(input, output)` sees what goes through, and may give another output."""

    def on_forward(_: Module, args: tuple, kwargs: dict, out: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        new = change(x, out[0] if isinstance(out, tuple) else out)
        return new if new is None or not isinstance(out, tuple) else (new, *out[1:])

    handle = module.register_forward_hook(on_forward, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def through(
    model: Module, module: Module, rows: Sequence[Sequence[int]], at: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What goes into and comes out of a module at one token of each row, [R, dim], float64."""
    seen: list[Tensor] = []
    order = torch.arange(len(rows))

    def keep(x: Tensor, y: Tensor) -> None:
        seen.extend(z[order, list(at)].double() for z in (x, y))

    with torch.no_grad(), hook(module, keep):
        run(model, rows)
    return seen[0], seen[1]


@contextmanager
def changed(model: Module, updates: dict[int, Tensor]) -> Iterator[None]:
    """The model with updates [F, D] of layers' down projections, then as it was."""
    modules = {i: reference.down_proj(model, i) for i in updates}
    weights = {i: module.weight for i, module in modules.items()}
    kept = {i: w.detach().clone() for i, w in weights.items()}
    with torch.no_grad():
        for i, w in weights.items():
            linear = isinstance(modules[i], torch.nn.Linear)  # [out, in]
            w.add_((updates[i].T if linear else updates[i]).float())
    try:
        yield
    finally:
        with torch.no_grad():
            for i, w in weights.items():
                w.copy_(kept[i])


def second_moment(model: Module, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """E[k kᵀ] over all tokens of the rows, float64."""
    seen: list[Tensor] = []
    with torch.no_grad(), hook(place(model, "mlp_down", layer), lambda x, _: seen.append(x[0])):
        for row in rows:
            run(model, [row])
    keys_MF = torch.cat(seen).double()
    return keys_MF.T @ keys_MF / len(keys_MF)


# The search for values


@dataclasses.dataclass
class Found:
    h0: dict[str, Tensor]
    delta: dict[str, Tensor]
    losses: list[float] = dataclasses.field(default_factory=list)  # of every forward pass
    deltas: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)  # in it
    shares: list[float] = dataclasses.field(default_factory=list)  # of the target's loss, in it

    def value(self, site: str) -> Tensor:
        return self.h0[site] + self.delta[site].double()


def search(model: Module, asked: Asked, layer: int, sites: Sequence[str], opt: Any) -> Found:
    """The vectors, one for each site, that make the target likely when added at the token; `opt`
    holds numbers only (edit.values.ValueConfig).
    """
    modules = {site: place(model, site, layer) for site in sites}
    h0 = {s: through(model, m, asked.rows, asked.at)[1][0] for s, m in modules.items()}
    delta = {s: torch.zeros(len(h), requires_grad=True) for s, h in h0.items()}
    found, adam = Found(h0, delta), torch.optim.Adam(delta.values(), lr=opt.lr)
    before_V, share = None, 1.0
    for step in range(opt.steps):
        logp_CU, best_CU, now_V = said(moved(model, asked, modules, delta), asked)
        before_V = now_V.detach() if before_V is None else before_V
        kl = opt.kl * (now_V.exp() * (now_V - before_V)).sum()
        small = sum(delta[s].norm() / h.float().norm() ** 2 for s, h in h0.items())
        loss = -share * logp_CU.mean(1).mean() + kl + opt.weight_decay * small
        found.losses.append(loss.item())
        found.shares.append(share)
        found.deltas.append({s: d.detach().clone() for s, d in delta.items()})
        if loss < opt.stop_loss:
            break
        if opt.stop_kl is not None:  # PMET
            easy = logp_CU.mean(1).exp().mean() == best_CU.mean(1).exp().mean()
            share = 0.1 if easy else 1.0
            if easy and kl <= opt.stop_kl:
                break
        if step == opt.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for s, d in delta.items():
                d.mul_(min(1.0, float(opt.clamp * h0[s].norm() / d.norm())))
    found.delta = {s: d.detach() for s, d in delta.items()}
    return found


def moved(
    model: Module, asked: Asked, modules: dict[str, Module], delta: dict[str, Tensor]
) -> Tensor:
    """Log probabilities of all rows, with the vectors added at the token of each."""
    order = torch.arange(len(asked.rows))

    def adding(d: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def add(_: Tensor, out: Tensor) -> Tensor:
            return out.index_put((order, torch.tensor(asked.at)), d, accumulate=True)

        return add

    with ExitStack() as hooks:
        for site, module in modules.items():
            hooks.enter_context(hook(module, adding(delta[site])))
        return run(model, asked.rows)


def said(logp_RTV: Tensor, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities of the target's tokens and of the likeliest ones there [C, U], and of all
    tokens at the subject's last one in the row about it [V].
    """
    U, prompts = len(asked.target), asked.rows[: len(asked.weights)]
    there = [logp_RTV[c, len(row) - U : len(row)] for c, row in enumerate(prompts)]
    logp_CUV = torch.stack(there)
    logp_CU = logp_CUV[:, torch.arange(U), torch.tensor(asked.target)]
    return logp_CU, logp_CUV.max(-1).values, logp_RTV[-1, asked.at[-1]]


# The updates of W [F, D]: x W is the value of key x


def rome(model: Module, asked: Asked, layer: int, cov_FF: Tensor, found: Found, key: str) -> Tensor:
    """k W' = v*, where C⁻¹ is of the mean key; k is the bare prompt's ("prompt") or that mean."""
    weight_C = torch.tensor(asked.weights, dtype=torch.float64)
    module, at = reference.down_proj(model, layer), asked.at[: len(weight_C)]
    keys_CF, out_CD = through(model, module, asked.prompts, at)
    mean_F, mean_D = weight_C @ keys_CF, weight_C @ out_CD
    u_F = cov_FF.inverse() @ mean_F
    k_F, o_D = (keys_CF[0], out_CD[0]) if key == "prompt" else (mean_F, mean_D)
    return torch.outer(u_F, (found.value("mlp_down") - o_D) / (k_F @ u_F))


Update = Callable[[int, Tensor, Tensor], Tensor]  # layer, keys K [F, N], R [D, N] -> [F, D]


def spread(
    model: Module,
    all_asked: Sequence[Asked],
    layers: Sequence[int],
    goal_ND: Sequence[Tensor],
    update: Update,
    *,
    site: str = "resid_post",
    power: float = 1.0,
) -> dict[int, Tensor]:
    """Each layer in turn, on the model with the updates so far, takes its share of what is missing
    at the last one.
    """
    updates: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        with changed(model, updates):
            keys_FN = mean_keys(model, all_asked, layer)
            bare = [through(model, place(model, site, layers[-1]), a.prompts[:1], a.at[:1])[1]
                    for a in all_asked]  # fmt: skip
        missing_DN = torch.stack(list(goal_ND), 1) - torch.cat(bare).T
        updates[layer] = update(layer, keys_FN, missing_DN / (len(layers) - i) ** power)
    return updates


def mean_keys(model: Module, all_asked: Sequence[Asked], layer: int) -> Tensor:
    """[F, N]"""
    module, keys = reference.down_proj(model, layer), []
    for asked in all_asked:
        weight_C = torch.tensor(asked.weights, dtype=torch.float64)
        C = len(weight_C)
        keys.append(weight_C @ through(model, module, asked.prompts, asked.at[:C])[0])
    return torch.stack(keys, 1)


def memit(covs: dict[int, Tensor], weight: float) -> Update:
    """R Kᵀ (K Kᵀ + weight · C)⁻¹; PMET's too."""
    return lambda layer, k, r: (r @ k.T @ (k @ k.T + weight * covs[layer]).inverse()).T


def emmet(covs: dict[int, Tensor], weight: float, epsilon: float) -> Update:
    """R (Kᵀ Ĉ⁻¹ K + ε)⁻¹ Kᵀ Ĉ⁻¹ where Ĉ = weight · C; without ε for a single key."""

    def update(layer: int, k: Tensor, r: Tensor) -> Tensor:
        inverse_FF = (weight * covs[layer]).inverse()
        gram_NN = k.T @ inverse_FF @ k
        if k.shape[1] > 1:
            gram_NN = gram_NN + epsilon * torch.eye(len(gram_NN), dtype=torch.float64)
        return (r @ gram_NN.inverse() @ k.T @ inverse_FF).T

    return update


def free(cov_FF: Tensor, threshold: float) -> Tensor:
    """AlphaEdit's P: onto the directions with singular values below the threshold."""
    u_FF, values_F, _ = torch.linalg.svd(cov_FF)
    u_FF = u_FF[:, values_F < threshold]
    return u_FF @ u_FF.T


def alphaedit(frees: dict[int, Tensor], memory: dict[int, Tensor], l2: float) -> Update:
    """Solves (P (K Kᵀ + M) + l2) X = P K Rᵀ."""

    def update(layer: int, k: Tensor, r: Tensor) -> Tensor:
        p, eye = frees[layer], torch.eye(len(k), dtype=torch.float64)
        return torch.linalg.solve(p @ (k @ k.T + memory[layer]) + l2 * eye, p @ k @ r.T)

    return update
