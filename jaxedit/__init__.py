"""jaxedit: locate, edit, evaluate, transfer, fuse and bound the knowledge inside language models."""

from jaxedit.base import Cache, Dense, LowRank, Output, Write
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.transformer import forward

__all__ = ["Cache", "Dense", "LowRank", "Model", "ModelConfig", "Output", "Write", "forward"]
