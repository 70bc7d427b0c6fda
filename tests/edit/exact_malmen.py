"""MALMEN once more in float64, by numpy and by plain autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from small_lessons import LAYERS, parts, world

from jaxedit.edit import learner
from jaxedit.edit.learner import Learned
from jaxedit.edit.weights import malmen
from jaxedit.edit.weights.malmen import MalmenConfig
from jaxedit.edit.weights.mend import by_shape, shapes

OPT = MalmenConfig(LAYERS, ("mlp/down", "mlp/up"), rank=6, step=2e-3, chunk=2)


@partial(jax.jit, static_argnames="opt")
def found_of(edit, opt):
    """The factors, compiled once: they are given to all that is compared. What comes of them is
    right to float32, but the gradient of a nearly singular system is not the same of other factors
    that differ in float32's last digits.
    """
    return malmen.factors(world().params, edit, opt, world().cfg)


@partial(jax.jit, static_argnames="opt")
def around(now, found, some, opt=OPT):
    """The gradient, of factors in as many chunks as a step has."""
    cut = lambda x: jnp.moveaxis(x.reshape(len(x), -1, opt.chunk, *x.shape[2:]), 1, 0)
    return malmen.around(now, world().params, jax.tree.map(cut, found), some, opt, world().cfg)


class Exact:
    """The authors' method in float64: all of it after the factors."""

    def __init__(self, running, found):
        wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        self.running, self.found = wide(running), wide(found)

    def network(self, net, name, g, u, v):
        def normed(x, side):
            r = self.running[name]
            deviation = np.sqrt(r[f"{side}_sum"] / (r["count"] - 1))
            return (x - r[f"{side}_mean"]) / deviation

        y = np.concatenate([normed(u, "u"), normed(v, "v")], -1)
        for i in range(len(net)):
            p = net[str(i)]
            x = np.maximum(y @ p["V"].T @ p["U"].T + p["b"], 0)
            y = y + p["scale"][g] * x + p["shift"][g]
        return y[:, : u.shape[-1]], y[:, u.shape[-1] :]

    def shift(self, trained):
        """S, by shape."""
        trained = jax.tree.map(lambda x: np.asarray(x, np.float64), trained)
        mats = shapes(OPT, world().cfg)
        out = {}
        for name, (u, v) in self.found.items():
            used = (u != 0).any(-1) & (v != 0).any(-1)
            for g in range(len(u)):
                U, G = u[g][used[g]], v[g][used[g]]
                key, grad = self.network(trained["networks"][name], name, g, U, G)
                n, path = mats[name][g]
                step, ridge = (trained[k][path][n] for k in ("steps", "ridges"))
                D = -step * (U * key).sum(-1, keepdims=True) * grad
                gram = U.T @ U + np.exp(ridge) * np.eye(U.shape[1])
                out.setdefault(name, []).append(np.linalg.solve(gram, U.T @ D))
        return {name: np.stack(some) for name, some in out.items()}


def plain(now, found, some, opt):
    """The objective, straight through the solve: what comes after the factors in float64, the model
    of the change in float32, and autodiff of both.
    """
    m, goal = world(), opt.objective
    _, said, kept = parts(some)
    wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)

    def shifts(trained):
        d = malmen.differences(Learned(trained, wide(now.running)), wide(found), opt, m.cfg)
        ridges = by_shape(trained["ridges"], opt, m.cfg)
        out = {}
        for name, f in wide(found).items():
            u, d_GMO = malmen.flat(f.u), malmen.flat(d[name])
            gram = jnp.einsum("gmi,gmj->gij", u, u)
            gram += jnp.exp(ridges[name])[:, None, None] * jnp.eye(gram.shape[-1])
            out[name] = jnp.linalg.solve(gram, jnp.einsum("gmi,gmo->gio", u, d_GMO))
        return out

    @jax.jit
    def loss(shift):
        deltas = malmen.dense(shift, opt, m.cfg)
        how = (m.cfg, opt.places.start, goal.where)
        out = learner.outcome(m.params, deltas, said, kept, *how)
        return goal.edit * out["edit_loss"] + goal.local * out["local_kl"], out

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        shift, back = jax.vjp(shifts, wide(now.trained))
    narrow = {name: jnp.asarray(np.asarray(x, np.float32)) for name, x in shift.items()}
    (value, out), pull = jax.value_and_grad(loss, has_aux=True)(narrow)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return (value, out), back(wide(pull))[0]
