"""The recorded runs of the authors' code, as our types."""

import json
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jaxedit
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.data.contexts import ContextConfig
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.stats import Stats
from jaxedit.edit.values import ValueConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "editing"


@cache
def model():
    return jaxedit.load(GOLDEN / "gpt2-tiny", dtype="float32")


@cache
def stats():
    arrays = np.load(GOLDEN / "cov/gpt2-tiny_cov.npz")
    moments = {i: jnp.asarray(arrays[f"C_layer{i}_float32"]) for i in range(3)}
    return Stats(moments, int(arrays["count_layer0"]))


@cache
def recorded(name):
    """The arrays and the settings of a run."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    return arrays, json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def requests(start=0, stop=4):
    rows = json.loads((GOLDEN / "requests.json").read_text())
    return [EditRequest(r["prompt"], r["subject"], r["target_new"]) for r in rows[start:stop]]


def value_config(hparams):
    return ValueConfig(
        steps=hparams["v_num_grad_steps"],
        lr=hparams["v_lr"],
        weight_decay=hparams["v_weight_decay"],
        clamp=hparams["clamp_norm_factor"],
        kl=hparams["kl_factor"],
    )


def groups(templates):
    nested = templates if isinstance(templates[0], list) else [templates]
    return tuple(tuple(group) for group in nested)


def rows_config(settings):
    return RowsConfig(contexts=ContextConfig(given=groups(settings["context_templates"])))


def batches(settings, which=None, **how):
    """The requests in their order, in one batch."""
    found = aligned(
        model().tokenizer,
        requests() if which is None else which,
        groups=groups(settings["context_templates"]),
        **how,
    )
    (index, batch), *more = list(found)
    assert not more
    order = np.argsort(index)
    every = {k: np.asarray(getattr(batch, k)) for k in ("tokens_NRS", "pos_NRS", "target_NU")}
    every |= {k: np.asarray(getattr(batch, k)) for k in ("mask_NU", "at_NQ", "valid_N")}
    return (batch.replace(**{k: x[order] for k, x in every.items()}),)


def off(found, wanted):
    """Relative distance."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
