"""Causal traces as pictures in the conventional layout, and what they say in words."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.report import bounds, html, plots, png

FEW = 12  # layers, below which the sites of large models are not to be expected
NAMES = {"hidden": "the state after a layer", "mlp": "MLPs", "attn": "attention"}
# those of the authors' figures, and what the axis says there
COLOURS = {"hidden": plots.PURPLE, "mlp": plots.GREEN, "attn": plots.RED}
ROLES = {
    "first": "subject, first token", "middle": "subject, middle", "last": "subject, last token",
    "next": "first after it", "further": "further", "final": "last token",
}  # fmt: skip


def picture(
    values_TL: np.ndarray, names: Sequence[str], title: str, kind: str, window: int,
    bottom: float = 0.0,
) -> str:  # fmt: skip
    """Rows from the top are tokens from the first, columns layers; colours begin at `bottom`."""
    layers = values_TL.shape[1]
    step = max(round(layers / 12), 1)
    columns = [str(i) if i % step == 0 else "" for i in range(layers)]
    axis = (
        "restored layer"
        if kind == "hidden" or window == 1
        else f"centre of {window} restored layers"
    )
    return plots.heatmap(
        values_TL[::-1], columns, list(names)[::-1], title=title, cell=30 if layers <= 16 else 14,
        colours=COLOURS[kind], axis=axis, bottom=bottom,
    )  # fmt: skip


def of_fact(record: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, str]:
    """A picture for each kind, whose colours begin at the score with noise and nothing restored, as
    the authors'; the subject's tokens have a star.
    """
    first, last = record["span"]
    names = [
        (token.strip() or repr(token)) + ("*" if first <= i <= last else "")
        for i, token in enumerate(record["tokens"])
    ]
    said = f"p({record['said']})"
    return {
        kind: picture(
            np.array(record[kind]),
            names,
            f"{said} with {NAMES[kind]} restored",
            kind,
            record["window"],
            record["low"],
        )
        for kind in kinds
    }


def of_summary(summary: Mapping[str, Any]) -> dict[str, str]:
    out = {}
    for kind, found in summary["effects"].items():
        roles = [role for role in ROLES if role in found]
        values = np.maximum(np.array([found[role]["mean"] for role in roles]), 0)
        title = f"Average effect of {NAMES[kind]}"
        out[kind] = picture(values, [ROLES[role] for role in roles], title, kind, summary["window"])
    return out


def words(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{summary['known']} of {summary['facts']} facts are known and traced; "
        f"noise of standard deviation {summary['noise']:.4g}, windows of "
        f"{several(summary['window'], 'layer')}"
    ]
    if not summary["known"]:
        return lines[0]
    lines += severed(summary["sever"])
    lines.append(
        f"the answer's probability: {summary['high']:.3f}, under noise {summary['low']:.3f}; "
        "what restoring adds, at the best layer:"
    )
    rows = [["", *(NAMES[k] for k in summary["effects"])]]
    for role, name in ROLES.items():
        cells = []
        for found in summary["effects"].values():
            if role not in found:
                cells.append("")
                continue
            mean, error = (np.array(found[role][k]) for k in ("mean", "error"))
            at = int(mean.argmax())
            cells.append(f"{mean[at]:.3f} ± {error[at]:.3f} (layer {at})")
        rows.append([name, *cells])
    lines.append(bounds.columns(rows))
    if summary["recommended"]:
        lines += advice(summary["recommended"], summary["layers"], summary["window"])
    for name in ("subject", "relation"):
        if one := summary["overlap"][name]:
            lines.append(
                f"facts of one {name} lie in the same layers: RSim {one['rsim']:.2f} "
                f"({one['related']:.2f} of the layers in common, with others {one['others']:.2f}; "
                f"{one['groups']} groups)"
            )
    return "\n".join(lines)


def severed(sever: str) -> list[str]:
    more = "; no layer to edit is named" if sever == "mlp" else ""
    why = f"held to the values of the noisy run and so not traced{more}"
    return [f"severed: {NAMES[sever]}, {why}"] if sever else []


def advice(best: Mapping[str, Any], layers: int, window: int) -> list[str]:
    """The layer to edit and how sure that is."""
    one = best["n"] == 1
    size = lambda x: f"{x['effect']:.3f}" + ("" if one else f" ± {x['error']:.3f}")
    said = f"{size(best)}, of {'this one fact' if one else str(best['n']) + ' facts'}"
    what = f"restoring {NAMES[best['kind']]} at the subject's last token adds most"
    if best["differs"] is False:
        first = (
            f"to edit: none is named; {what} at layer {best['layer']}, no more than zero ({said})"
        )
    else:
        first = f"to edit: layer {best['layer']}, where {what} ({said})"
    others = ", ".join(f"layer {x['layer']} ({size(x)})" for x in best["next"])
    lines = [f"{first}; next {others}" if others else first]
    if layers < FEW:
        wide = f"windows of {several(window, 'layer')} cover most of"
        few = f"{wide} {layers}" if 2 * window > layers else f"{several(layers, 'layer')} are few"
        lines.append(f"({few}: an order, not a place)")
    return lines


def several(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def write(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The page and the pictures; what is to be told."""
    told = words(summary)
    if not summary["known"]:
        return [told]
    drawn = of_summary(summary)
    files = [page(f"Causal tracing of {summary['model']}", told, drawn, folder / "trace.html")]
    for kind, one in drawn.items():
        files += bounds.save(one, folder, f"trace-{kind}")
    return [told, *(f"wrote {file}" for file in files), *png.lacking()]


def page(title: str, told: str, pictures: Mapping[str, str], file: Path) -> Path:
    figures = [f"<figure>{p}</figure>" for p in pictures.values()]
    return html.write(file, html.page(title, [f"<pre>{escape(told)}</pre>", *figures]))


def fact_in_words(
    record: Mapping[str, Any], kinds: Sequence[str], best: Mapping[str, Any] | None
) -> str:
    """What is said, where restoring a state brings back most of it, and the layer to edit."""
    lines = [
        f"{record['prompt']} -> {record['said']}",
        f"p = {record['high']:.3f}, with noise on the subject {record['low']:.3f}",
    ]
    for kind in kinds:
        scores = np.array(record[kind])
        token, layer = np.unravel_index(scores.argmax(), scores.shape)
        of = scores[record["span"][1]]
        lines.append(
            f"{NAMES[kind]}: most at {record['tokens'][token].strip()!r}, layer {layer} "
            f"({scores[token, layer]:.3f}); at the subject's last token, layer {of.argmax()} "
            f"({of.max():.3f})"
        )
    lines += severed(record["sever"])
    if best:
        lines += advice(best, len(record[best["kind"]][0]), record["window"])
    return "\n".join(lines)
