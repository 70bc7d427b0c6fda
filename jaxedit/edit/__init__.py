"""Editing: what an edit is, and the methods that make one."""

from jaxedit.edit.record import Edit

__all__ = ["Edit"]
