"""Causal traces as pictures in the conventional layout, and what they say in words."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.report import bounds, html, plots

FEW = 12  # layers, below which the sites of large models are not to be expected
NAMES = {"hidden": "the state after a layer", "mlp": "MLPs", "attn": "attention"}
# those of the authors' figures, and what the axis says there
COLOURS = {"hidden": plots.PURPLE, "mlp": plots.GREEN, "attn": plots.RED}
ROLES = {
    "first": "subject, first token", "middle": "subject, middle", "last": "subject, last token",
    "next": "first after it", "further": "further", "final": "last token",
}  # fmt: skip


def picture(values_TL: np.ndarray, names: Sequence[str], title: str, kind: str, window: int) -> str:
    """Rows from the top are tokens from the first, columns are layers."""
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
        colours=COLOURS[kind], axis=axis,
    )  # fmt: skip


def of_fact(record: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, str]:
    """A picture for each kind; the subject's tokens have a star."""
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
        f"noise of standard deviation {summary['noise']:.4g}, windows of {summary['window']} layers"
    ]
    if not summary["known"]:
        return lines[0]
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
    if best := summary["recommended"]:
        lines.append(
            f"to edit: layer {best['layer']}, where {NAMES[best['kind']]} at the subject's last "
            f"token add most ({best['effect']:.3f} ± {best['error']:.3f}, {best['n']} facts)"
        )
        if summary["layers"] < FEW:
            lines.append(
                f"(of {summary['layers']} layers windows cover most: an order, not a place)"
            )
    for name in ("subject", "relation"):
        if one := summary["overlap"][name]:
            lines.append(
                f"facts of one {name} lie in the same layers: RSim {one['rsim']:.2f} "
                f"({one['related']:.2f} of the layers in common, with others {one['others']:.2f}; "
                f"{one['groups']} groups)"
            )
    return "\n".join(lines)


def write(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """The page and the pictures; what is to be told."""
    told = words(summary)
    if not summary["known"]:
        return [told]
    drawn = of_summary(summary)
    files = [page(f"Causal tracing of {summary['model']}", told, drawn, folder / "trace.html")]
    for kind, one in drawn.items():
        files += bounds.save(one, folder, f"trace-{kind}")
    return [told, *(f"wrote {file}" for file in files)]


def page(title: str, told: str, pictures: Mapping[str, str], file: Path) -> Path:
    figures = [f"<figure>{p}</figure>" for p in pictures.values()]
    return html.write(file, html.page(title, [f"<pre>{escape(told)}</pre>", *figures]))


def fact_in_words(record: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """What is said, and where restoring a state brings back most of it."""
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
    return "\n".join(lines)
