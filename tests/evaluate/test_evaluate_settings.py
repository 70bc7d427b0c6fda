"""Settings of an evaluation that do not go together are refused in one line."""

import pytest

from jaxedit import settings
from jaxedit.evaluate.task import for_data

CFG = for_data("world:tiny:0:6", "rome")


@pytest.mark.parametrize("what", [{"drift.sets": ("piqa:a",)}, {"drift.text.paths": ("a",)}])
def test_drift_is_of_a_sequence(what):
    assert settings.rebuild(CFG, what | {"how": "sequence"}, "").how == "sequence"
    for how in ("independent", "round"):
        with pytest.raises(ValueError, match=f"drift: with how={how} nothing accumulates") as told:
            settings.rebuild(CFG, what | {"how": how}, "")
        assert "\n" not in str(told.value)
