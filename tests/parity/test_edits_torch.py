"""The editing methods beside torch on other architectures than GPT-2: every step of the search, the
updates, and what the edited models say.

Measured: 5e-5 at most, 1e-4 in AlphaEdit's second batch, whose model differs by the first one's
rounding. Adam turns a gradient that is next to nothing into a whole step: float32 shows there.
"""

import dataclasses
from functools import cached_property
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import families
import jax
import jax.numpy as jnp
import numpy as np
import reference
import torch_editing as plain
from transformers import AutoTokenizer

from jaxedit import delta, merge
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.edit import values
from jaxedit.edit.stats import Stats, of_tokens
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.alphaedit import AlphaEditConfig, alphaedit
from jaxedit.edit.weights.emmet import EmmetConfig, emmet
from jaxedit.edit.weights.memit import MemitConfig, memit
from jaxedit.edit.weights.pmet import PmetConfig, pmet
from jaxedit.edit.weights.rome import RomeConfig, rome
from jaxedit.hf.load import load
from jaxedit.models.config import Model
from jaxedit.models.transformer import forward

pytestmark = pytest.mark.parity
FAMILIES = ("llama", "gemma2", "gptj", "neox", "olmo2", "qwen2", "mistral_window")
LAYERS, LAST = (0, 1), 1  # of three
ABOUT = "{} is a"
ONE = (("{}", "The. {}", "Because I know. {}"),)  # contexts in one group, as ROME has them
TWO = (("{}",), ("The. {}", "Because I know. {}"))  # and in two, as MEMIT has them
REQUESTS = (
    EditRequest("The city of {}", "Jorma Moreau", "pilot"),  # said at the edited token itself
    EditRequest("{} speaks", "Elka Castro", "Sundhaven"),  # six tokens
    EditRequest("Every day {} plays the", "Ilse Okafor", "judge"),
)
NEXT = (
    EditRequest("The mother of {}", "Boris Devlin", "oboe"),
    EditRequest("{} speaks", "Celia Hobart", "Norvale"),
    EditRequest("Every day {} earns a", "Elka Moreau", "Kestrin"),
)
# The thresholds are such that searches of random models meet them.
ROME = ValueConfig(steps=20, lr=1.0, stop_loss=0.75)
MEMIT = ValueConfig(steps=12, lr=1.0, clamp=0.75, stop_loss=1.0)
PMET = ValueConfig(steps=15, lr=1.0, clamp=1.0, stop_kl=0.05)
# What the search for the first request meets, where that is more than its last step.
MEETS = {
    ("rome", "llama"): {"clamped"},
    ("rome", "qwen2"): {"low loss"},
    ("memit", "llama"): {"clamped"},
    ("memit", "gemma2"): {"low loss"},
    ("pmet", "gemma2"): {"clamped"},
    ("pmet", "gptj"): {"clamped", "easy", "stopped"},  # by PMET's rule
}


@dataclasses.dataclass
class Both:
    """The same random model in torch and here, and second moments of its keys."""

    name: str
    theirs: torch.nn.Module
    ours: Model
    tokenizer: Any

    @cached_property
    def rows(self):
        """Random tokens, in rows of several lengths."""
        random = np.random.RandomState(0)
        return [random.randint(0, 500, n).tolist() for n in (49, 52, 60, 64) * 4]

    @cached_property
    def covs(self):
        """Rounded as ours, so that updates differ in nothing else."""
        moment = lambda i: plain.second_moment(self.theirs, self.rows, i)
        return {i: moment(i).float().double() for i in LAYERS}

    @cached_property
    def stats(self):
        moments = {i: jnp.asarray(x.numpy(), jnp.float32) for i, x in self.covs.items()}
        return Stats(moments, sum(map(len, self.rows)))

    def ask(self, requests, groups):
        return [plain.ask(self.tokenizer, r, groups, ABOUT) for r in requests]

    @cached_property
    def memit(self):
        """MEMIT's values in torch."""
        asked = self.ask(REQUESTS, TWO)
        return [plain.search(self.theirs, a, LAST, ("resid_post",), MEMIT) for a in asked]

    def batch(self, requests, groups):
        """All requests in one batch, and their order in it."""
        ((index, batch),) = aligned(self.tokenizer, requests, groups=groups, about=ABOUT)
        return index, (batch,)

    @cached_property
    def say(self):
        def logits(params, deltas, tokens_BT, pos_BT):
            return forward(params, tokens_BT, self.ours.cfg, pos_BT=pos_BT, deltas=deltas).logits

        return families.jit(logits)

    def init(self, editor):
        return editor.init(jax.random.key(0), self.ours, self.stats)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    name, threads = request.param, torch.get_num_threads()
    torch.set_num_threads(1)  # for few numbers, more of them are slower
    # one size of keys, so that programs that do not see the architecture are shared
    size = {"n_inner": 48} if name == "gptj" else {}
    seed = 1 + families.VARIANTS.index(name)
    model = reference.random_model(name, seed, vocab_size=500, **size)
    with torch.no_grad():  # as sure of what it says as trained models are
        model.get_output_embeddings().weight.mul_(3)
    folder = tmp_path_factory.mktemp("models") / name
    model.save_pretrained(folder)
    golden = families.GOLDEN.parent / "editing" / "gpt2-tiny"
    yield Both(name, model, load(folder), AutoTokenizer.from_pretrained(golden))
    torch.set_num_threads(threads)


@pytest.fixture
def searches(monkeypatch):
    """Every search for values that an editor makes, with its trace."""
    found, search = [], values.search

    def traced(*args, **how):
        found.append(search(*args, **how, trace=True))
        return found[-1]

    monkeypatch.setattr(values, "search", traced)
    return found


def off(found, wanted):
    """Relative distance."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def events(want, opt):
    """What became of a search in torch."""
    sizes = [float(want.delta[site].norm() / h0.norm()) for site, h0 in want.h0.items()]
    met = {"clamped"} if all(abs(x - opt.clamp) < 1e-5 for x in sizes) else set()
    met |= {"easy"} if 0.1 in want.shares else set()
    if len(want.losses) == opt.steps:
        return met
    return met | {"low loss" if want.losses[-1] < opt.stop_loss else "stopped"}


def check_search(found, index, theirs, opt, limit=1e-4, case=None):
    """Every step of every request; the loss falls."""
    assert theirs[0].losses[-1] < 0.6 * theirs[0].losses[0]
    assert events(theirs[0], opt) >= MEETS.get(case, set())
    for row, i in enumerate(index):
        want = theirs[i]
        n = len(want.losses)
        assert want.losses[-1] < want.losses[0]
        assert found.steps_N[row] == n
        assert off(found.trace["loss"][row, :n], want.losses) < limit / 10
        assert np.isnan(found.trace["loss"][row, n:]).all()
        for site, h0 in want.h0.items():
            assert off(found.h0[site][row], h0) < limit / 10
            for step, deltas in enumerate(want.deltas[1:], 1):
                assert off(found.trace[site][row, step], deltas[site]) < limit
            assert off(found.delta[site][row], want.delta[site]) < limit


def check_updates(result, wanted, limit=1e-4):
    """One change of the weights of all layers."""
    d = result.deltas["mlp/down"]
    assert d.layers.tolist() == list(wanted)
    for n, update_FD in enumerate(wanted.values()):
        assert off(d.a[n] @ d.b[n], update_FD) < limit


def check_logits(both, params, deltas, wanted, requests, limit=1e-4):
    """What the edited model of each request says of its bare prompt; `wanted`: its updates."""
    prompts = [both.tokenizer(r.text).input_ids for r in requests]
    shape = (4, 12)  # the last request fills the batch, as in aligned ones
    pos_BT, tokens_BT = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row in range(4):
        prompt = prompts[min(row, len(prompts) - 1)]
        pos_BT[row, : len(prompt)], tokens_BT[row, : len(prompt)] = range(len(prompt)), prompt
    ours = both.say(params, deltas, tokens_BT, pos_BT)
    for row, (prompt, updates) in enumerate(zip(prompts, wanted, strict=True)):
        with torch.no_grad(), plain.changed(both.theirs, updates):
            logits = both.theirs(torch.tensor([prompt])).logits[0]
        assert off(ours[row, : len(prompt)], logits) < limit


def check_merged(both, result, wanted):
    params = merge.apply(both.ours.params, result.deltas)
    check_logits(both, params, {}, [wanted] * len(REQUESTS), REQUESTS)


def only(*names):
    """Families that differ in what the test is about."""
    return pytest.mark.parametrize("both", names, indirect=True, scope="module")


@only("llama", "gptj", "mistral_window")
def test_second_moments(both):
    stats = of_tokens(both.ours, both.rows, LAYERS)
    assert stats.count == both.stats.count
    for layer, want_FF in both.covs.items():
        assert off(stats.moment(layer), want_FF) < 1e-5


def test_rome_and_r_rome(both, searches):
    asked = both.ask(REQUESTS, ONE)
    theirs = [plain.search(both.theirs, a, LAST, ("mlp_down",), ROME) for a in asked]
    index, batch = both.batch(REQUESTS, ONE)
    for key in ("prompt", "mean"):
        editor = rome(RomeConfig(layer=LAST, values=ROME, key=key))
        result = editor.each(both.init(editor), both.ours.params, batch)
        wanted = [
            plain.rome(both.theirs, asked[i], LAST, both.covs[LAST], theirs[i], key) for i in index
        ]
        for row, update_FD in enumerate(wanted):
            mine = delta.row(result.deltas, row)["mlp/down"]
            assert off(mine.dense()[0], update_FD) < 1e-4
    check_search(searches[0], index, theirs, ROME, case=("rome", both.name))
    updates, requests = [{LAST: w} for w in wanted], [REQUESTS[i] for i in index]
    check_logits(both, both.ours.params, result.deltas, updates, requests)


def spread(both, asked, found, update, layers=LAYERS, **how):
    goal_ND = [f.value(how.get("site", "resid_post")) for f in found]
    return plain.spread(both.theirs, asked, layers, goal_ND, update, **how)


def test_memit(both, searches):
    index, batch = both.batch(REQUESTS, TWO)
    editor = memit(MemitConfig(layers=LAYERS, weight=2.0, values=MEMIT))
    result, _ = editor.edit(both.init(editor), both.ours.params, batch)
    check_search(searches[0], index, both.memit, MEMIT, case=("memit", both.name))
    asked, update = both.ask(REQUESTS, TWO), plain.memit(both.covs, 2.0)
    wanted = spread(both, asked, both.memit, update)
    check_updates(result, wanted)
    check_merged(both, result, wanted)


@only("gemma2", "gptj", "olmo2")
def test_pmet(both, searches):
    index, batch = both.batch(REQUESTS, TWO)
    editor = pmet(PmetConfig(layers=LAYERS, weight=2.0, values=PMET))
    result, _ = editor.edit(both.init(editor), both.ours.params, batch)
    asked, update = both.ask(REQUESTS, TWO), plain.memit(both.covs, 2.0)
    found = [plain.search(both.theirs, a, LAST, ("mlp_down", "attn_o"), PMET) for a in asked]
    check_search(searches[0], index, found, PMET, case=("pmet", both.name))
    wanted = spread(both, asked, found, update, site="mlp_down", power=0.5)
    check_updates(result, wanted)
    check_merged(both, result, wanted)


@only("llama")
def test_emmet(both, searches):
    """All requests together, and each by itself, without epsilon."""
    index, batch = both.batch(REQUESTS, TWO)
    editor = emmet(EmmetConfig(layer=LAST, weight=10.0, values=MEMIT))
    result, _ = editor.edit(both.init(editor), both.ours.params, batch)
    asked, update = both.ask(REQUESTS, TWO), plain.emmet(both.covs, 10.0, 0.1)
    wanted = spread(both, asked, both.memit, update, (LAST,))
    check_updates(result, wanted)
    check_merged(both, result, wanted)
    each = editor.each(both.init(editor), both.ours.params, batch)
    for row, i in enumerate(index):
        alone = spread(both, [asked[i]], [both.memit[i]], update, (LAST,))
        mine = delta.row(each.deltas, row)["mlp/down"]
        assert off(mine.dense()[0], alone[LAST]) < 1e-4


@only("llama", "gemma2", "neox")
def test_alphaedit(both, searches):
    """Two batches, the second on the model that the first one left."""
    pooled = np.concatenate([np.linalg.eigvalsh(both.covs[i]) for i in LAYERS])
    threshold = float(np.median(pooled))
    editor = alphaedit(AlphaEditConfig(layers=LAYERS, threshold=threshold, l2=0.5, values=MEMIT))
    state, params = both.init(editor), both.ours.params
    frees = {i: plain.free(both.covs[i], threshold) for i in LAYERS}
    memory = {i: torch.zeros_like(both.covs[i]) for i in LAYERS}
    total = {i: torch.zeros((both.ours.cfg.mlp, both.ours.cfg.embed)) for i in LAYERS}
    for requests, limit in ((REQUESTS, 1e-4), (NEXT, 1e-3)):
        index, batch = both.batch(requests, TWO)
        result, state = editor.edit(state, params, batch)
        params = merge.apply(params, result.deltas)
        asked, update = both.ask(requests, TWO), plain.alphaedit(frees, memory, 0.5)
        with plain.changed(both.theirs, total):
            found = [plain.search(both.theirs, a, LAST, ("resid_post",), MEMIT) for a in asked]
            wanted = spread(both, asked, found, update)
        total = {i: total[i] + wanted[i] for i in LAYERS}
        with plain.changed(both.theirs, total):
            keys = {i: plain.mean_keys(both.theirs, asked, i) for i in LAYERS}
        memory = {i: memory[i] + k @ k.T for i, k in keys.items()}
        check_search(searches[-1], index, found, MEMIT, limit)
        check_updates(result, wanted, 1e-3)
        for n, i in enumerate(LAYERS):
            assert off(state.memory_nFF[n], memory[i]) < 1e-3
        check_logits(both, params, {}, [total] * 3, requests, 1e-3)
