"""Every family beside torch, on fresh random weights: logits, sites, gradients, cache, padding."""

import pytest

torch = pytest.importorskip("torch")

import families
import jax
import jax.numpy as jnp
import numpy as np
import reference

from jaxedit import forward
from jaxedit.hf.load import load
from jaxedit.models.cache import init_cache
from jaxedit.models.generate import decode
from jaxedit.models.sites import sites

pytestmark = pytest.mark.parity
LOGITS, SITES, GRAD = 5e-5, 1e-5, 1e-5  # as in tests/test_families.py
B, T = 2, 13


@pytest.fixture(scope="module", params=families.VARIANTS)
def pair(request, tmp_path_factory):
    # (with seed 19 torch's own float32 logits of this one are 5.7e-5 from its float64 logits)
    seed = 1 if request.param == "phi3_longrope" else 1 + families.VARIANTS.index(request.param)
    model = reference.random_model(request.param, seed=seed)
    folder = tmp_path_factory.mktemp("models") / request.param
    model.save_pretrained(folder)
    return request.param, model, load(folder)


def tokens_of(seed, *shape):
    return np.random.RandomState(seed).randint(3, 101, shape).astype(np.int32)


def test_logits_every_site_and_a_gradient(pair):
    _, torch_model, (params, cfg, _) = pair
    tokens_BT = tokens_of(1, B, T)
    want, want_sites = reference.capture(torch_model, tokens_BT)

    @families.jit
    def run(params):
        def loss(down_LFD):
            mlp = params["blocks"]["mlp"]
            mlp = mlp | {"down": mlp["down"] | {"w": down_LFD}}
            tree = params | {"blocks": params["blocks"] | {"mlp": mlp}}
            out = forward(tree, tokens_BT, cfg, reads=dict.fromkeys(sites(cfg)))
            logp_BTV = jax.nn.log_softmax(out.logits[:, :-1])
            return -jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], -1).mean(), out

        return jax.grad(loss, has_aux=True)(params["blocks"]["mlp"]["down"]["w"])

    grad_LFD, out = run(params)
    np.testing.assert_allclose(out.logits, want, rtol=0, atol=LOGITS)
    assert out.reads.keys() == want_sites.keys() == sites(cfg).keys()
    off = {k: families.scaled_error(x, want_sites[k]) for k, x in out.reads.items()}
    assert {site: error for site, error in off.items() if not error <= SITES} == {}
    for layer in range(cfg.layers):
        grad_FD = reference.down_gradient(torch_model, tokens_BT, layer)
        assert families.scaled_error(grad_LFD[layer], grad_FD) <= GRAD, layer


def test_cached_steps(pair):
    """Against torch's cached steps, those of the families whose frequencies change included."""
    _, torch_model, (params, cfg, _) = pair
    tokens_BT = tokens_of(2, B, T)
    step = families.jit(lambda tokens_BT, cache: forward(params, tokens_BT, cfg, cache=cache))
    out = step(tokens_BT[:, :6], init_cache(cfg, B, T))
    logits = [out.logits]
    for t in range(6, T):
        out = step(tokens_BT[:, t : t + 1], out.cache)
        logits.append(out.logits)
    want = reference.stepwise(torch_model, tokens_BT, 6)
    np.testing.assert_allclose(np.concatenate(logits, 1), want, rtol=0, atol=LOGITS)


def test_padding(pair):
    """Rows padded left, right and on both sides, against torch with an attention mask."""
    _, torch_model, (params, cfg, _) = pair
    n, begins = 10, (4, 0, 1)  # of one length: torch takes dynamic frequencies from the longest
    tokens_BT = tokens_of(3, len(begins), n + 4)
    pos_BT = np.full(tokens_BT.shape, -1, np.int32)
    for row, a in enumerate(begins):
        pos_BT[row, a : a + n] = np.arange(n)
    reference.forget(torch_model)
    with torch.no_grad():
        want = torch_model(
            torch.as_tensor(tokens_BT),
            attention_mask=torch.as_tensor((pos_BT >= 0).astype(np.int64)),
            position_ids=torch.as_tensor(pos_BT.clip(0).astype(np.int64)),
        ).logits.numpy()
    got = families.jit(lambda: forward(params, tokens_BT, cfg, pos_BT=jnp.asarray(pos_BT)))().logits
    np.testing.assert_allclose(got[pos_BT >= 0], want[pos_BT >= 0], rtol=0, atol=LOGITS)


def test_greedy_generation(pair):
    """From left-padded prompts of several lengths; alone where torch's rows see the longest one."""
    name, torch_model, (params, cfg, _) = pair
    lengths, steps = (9, 12, 13), 8
    for seed in range(20):
        tokens_BT = tokens_of(seed, len(lengths), max(lengths))
        pos_BT = np.arange(max(lengths)) - (max(lengths) - np.array(lengths))[:, None]
        pos_BT = np.maximum(pos_BT, -1).astype(np.int32)
        alone = name in families.LENGTH_DEPENDENT
        cuts = [(i, i + 1, max(lengths) - n) for i, n in enumerate(lengths)]
        runs = [
            reference.greedy(
                torch_model, tokens_BT[a:b, t:], (pos_BT[a:b, t:] >= 0).astype(np.int64), steps
            )
            for a, b, t in (cuts if alone else [(0, len(lengths), 0)])
        ]
        if min(lead for _, lead in runs) > 1e-3:  # or rounding decides
            break
    got = families.jit(lambda: decode(params, jnp.asarray(tokens_BT), pos_BT, cfg, steps=steps))()
    np.testing.assert_array_equal(got.tokens_BN, np.concatenate([new for new, _ in runs]))
