"""The model that a classifier of scope sees prompts with: the edited one, or another that reads the
same tokens.
"""

from functools import lru_cache

from jax.sharding import Mesh

from jaxedit.hf.load import inspect, load
from jaxedit.models.config import Model, ModelConfig
from jaxedit.sharding import mesh_of


def encoder_of(name: str, model: Model) -> Model:
    """The encoder of that name, laid out as the model is; "": the model."""
    if not name:
        return model
    mesh = mesh_of(model.params)
    found = _load(name, mesh)
    mine, theirs = (m.tokenizer.get_vocab() for m in (model, found))
    if mine != theirs:
        raise ValueError(
            f"encoder={name}: it must read the tokens of the edited model, and has another "
            f"vocabulary ({len(theirs):,} tokens, not {len(mine):,})"
        )
    return found


@lru_cache(maxsize=1)
def _load(name: str, mesh: Mesh | None) -> Model:
    return load(name, mesh)


@lru_cache
def shape_of(name: str, cfg: ModelConfig) -> ModelConfig:
    """Its architecture."""
    return inspect(name)[0] if name else cfg
