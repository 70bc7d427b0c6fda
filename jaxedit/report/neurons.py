"""Finders of neurons beside each other, in words and bars; one prompt's neurons as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.evaluate.metrics import Interval
from jaxedit.report import bounds, charts, plots, png, traces

NAMES = {
    "kn": "knowledge neurons", "increase": "log-probability increase", "activation": "activation",
    "qrnca": "QRNCA", "lape": "LAPE, of relations", "random": "random",
}  # fmt: skip
MODES = {"suppress": "silenced", "enhance": "doubled"}


def words(summary: Mapping[str, Any]) -> str:
    """For every number of neurons and way to change them a table of finders."""
    out = [
        f"{summary['known']} of {summary['facts']} facts are known to {summary['model']}: their "
        f"answers have p = {summary['p']:.3f} on average; {summary['layers']} layers of "
        f"{summary['neurons']:,} neurons"
    ]
    found = summary["finders"]
    first = next(iter(found.values()))
    ks = [k for k in first if k.isdigit()]
    for k in ks:
        for mode, how in MODES.items():
            shown = [
                g for g in first[k][mode] if isinstance(first[k][mode][g], dict) and g != "pcr"
            ]
            rows = [["", "neurons", *shown, "PCR", "95 % interval"]]
            for name, one in found.items():
                row = [f"{one[k]['neurons']:.1f}"]
                row += [f"{one[k][mode][g]['mean']:+.3f}" for g in shown]
                pcr = one[k][mode].get("pcr")
                range_of = f"{pcr['low']:.1f} to {pcr['high']:.1f}" if pcr else ""
                rows.append([NAMES[name], *row, f"{pcr['mean']:.1f}" if pcr else "", range_of])
            out.append(f"\nthe {k} highest neurons {how}: change of the answers' probability")
            out.append(bounds.columns(rows))
    if "random" in found and (like := summary["like"]) != "kn":
        out.append(f"\nrandom: as many as those of {NAMES[like]}, in the same layers")
    c = summary["consistency"]
    if "within" in c:
        out.append(
            f"\nknowledge neurons of a fact in other wordings agree by R = {c['within']:.2f}, "
            f"those of all facts by {c['across']:.2f} (1: the same, 0: nothing in common);\n"
            f"{c['coarse']:.1f} neurons of a wording are above a fifth of the largest score, "
            f"{c['refined']:.1f} in most of a fact's wordings ({c['refined_forced']:.1f} where the "
            f"share is moved to have few)"
        )
    return "\n".join(out)


def pictures(summary: Mapping[str, Any]) -> dict[str, str]:
    """What silencing takes from each group of questions, and the layers the neurons are in."""
    found = summary["finders"]
    first = next(iter(found.values()))
    k = [k for k in first if k.isdigit()][-1]
    groups = [g for g, v in first[k]["suppress"].items() if isinstance(v, dict) and g != "pcr"]

    def lost(one: Mapping[str, Any], group: str) -> Interval | None:
        got = one[k]["suppress"].get(group)
        # what is gained, by chance, is in the table; here it is nothing lost
        mean, low, high = (max(-got[x], 0.0) if got else 0.0 for x in ("mean", "high", "low"))
        return Interval(mean, low, high, got["n"]) if got else None

    values = [[lost(one, g) for one in found.values()] for g in groups]
    names = [NAMES[n] for n in found]
    layers = np.array([one["by_layer"] for one in found.values()])
    step = max(round(layers.shape[1] / 12), 1)
    columns = [str(i) if i % step == 0 else "" for i in range(layers.shape[1])]
    title = f"Where the {k} neurons of a fact are, by layer"
    return {
        "lost": charts.bars(names, groups, values, title=f"Probability lost without {k} neurons"),
        "layers": plots.heatmap(layers[::-1], columns, names[::-1], title=title),
    }


def write(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The page and the pictures; what is to be told."""
    told, drawn = words(summary), pictures(summary)
    title = f"Neurons of {summary['model']}"
    files = [traces.page(title, told, drawn, folder / "neurons.html")]
    for name, one in drawn.items():
        files += bounds.save(one, folder, f"neurons-{name}")
    return [told, *(f"wrote {file}" for file in files), *png.lacking()]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Neurons of a prompt: where, score, what the value says, the answer's p without it, and with
    twice as much.
    """
    rows = [["layer.neuron", "score", "p without", "p doubled", "  its value says"]]
    for one in found:
        rows.append([
            f"{one['layer']}.{one['neuron']}", f"{one['score']:.4f}", f"{one['without']:.4f}",
            f"{one['doubled']:.4f}", "  " + " ".join(one["says"]),
        ])  # fmt: skip
    wide = max(len(r[4]) for r in rows)
    return bounds.columns([[*r[:4], r[4].ljust(wide)] for r in rows])


def layers(found: Sequence[Mapping[str, Any]], answer: str) -> str:
    """The logit lens of a prompt, the last layer on top."""
    rows = [["layer", "rank", f"p({answer})", "  says"]]
    for one in reversed(found):
        says = "  " + " ".join(one["says"])
        rows.append([str(one["layer"]), str(one["rank"]), f"{one['p']:.4f}", says])
    wide = max(len(r[3]) for r in rows)
    return bounds.columns([[*r[:3], r[3].ljust(wide)] for r in rows])
