"""An edit as data: what it changes and where it comes from, in one file apart from the model."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import fit, merge, tensorfile
from jaxedit.base import VERSION, Deltas, Dense, LowRank, Write, Writes
from jaxedit.checksum import checksum
from jaxedit.edit.router import Router, Scope
from jaxedit.hf import peft
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import check_names, matrices, sites

LAYOUT = 1  # of the file's layout
KINDS: dict[str, type] = {}  # what a file may hold, by name: reading one never imports anything


def register(cls: type) -> type:
    """Lets files hold this kind of write or delta: a flax.struct dataclass of arrays and JSON, and
    of further ones and mappings of them.
    """
    if KINDS.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"two kinds are called {cls.__name__!r}; rename one")
    return cls


for kind in (LowRank, Dense, Write, Scope, Router):
    register(kind)


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """What one row of a batch carries: prefix tokens, writes, deltas, any of them empty.

    With a router, only a row that one of its memories is about carries anything, and that memory's
    tokens too. `provenance` is JSON: method, config, request, versions, base (see `origin`).
    """

    prefix: tuple[int, ...] = ()
    writes: Writes = dataclasses.field(default_factory=dict)
    deltas: Deltas = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    router: Router | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", tuple(int(t) for t in np.asarray(self.prefix)))

    def save(self, file: str | os.PathLike) -> None:
        """One safetensors file, which appears under its name only when it is whole."""
        arrays: dict[str, np.ndarray] = {"prefix": np.array(self.prefix, np.int32)}
        layout = {
            "writes": _pack("writes", self.writes, arrays),
            "deltas": _pack("deltas", self.deltas, arrays),
        }
        if self.router is not None:
            layout["router"] = _pack("router", {"router": self.router}, arrays)
        about = {"jaxedit": "edit", "version": str(LAYOUT), "layout": json.dumps(layout)}
        about["provenance"] = _to_json(self.provenance)
        about["sha256"] = _digest(about, arrays)
        tensorfile.write(file, tensorfile.entries(arrays), about)

    @classmethod
    def load(cls, file: str | os.PathLike) -> "Edit":
        """The edit that `save` wrote, bit for bit; refuses a damaged or a foreign file."""
        tensors, about = tensorfile.read_header(file)
        if about.get("jaxedit") != "edit":
            raise ValueError(
                f"{file}: a safetensors file, but not an edit; Edit.load reads what edit.save "
                "wrote, jaxedit.hf.peft.read reads adapters"
            )
        if about.get("version") != str(LAYOUT):
            raise ValueError(
                f"{file}: an edit of format {about.get('version')}, this jaxedit reads {LAYOUT}; "
                "use the version that wrote it, or a later one"
            )
        arrays = {name: t.read() for name, t in tensors.items()}
        if about.get("sha256") != _digest(about, arrays):
            raise ValueError(f"{file}: damaged (its content is not what was saved); fetch it again")
        layout = json.loads(about["layout"])
        return cls(
            tuple(arrays["prefix"].tolist()),
            _unpack(file, "writes", layout["writes"], arrays),
            _unpack(file, "deltas", layout["deltas"], arrays),
            json.loads(about["provenance"]),
            _unpack(file, "router", layout.get("router", {}), arrays).get("router"),
        )

    def remembered(self, i: int) -> "Edit":
        """What a row carries that memory i of the router is about; -1: that none is about."""
        if self.router is None or i < 0:
            return Edit(provenance=self.provenance)
        return Edit((*self.router.prefix(i), *self.prefix), self.writes, self.deltas,
                    self.provenance)  # fmt: skip

    def check(self, model: Model, *, force: bool = False) -> None:
        """Raises where the edit does not fit the model, or (not with force) has another base.

        The base is compared by the checksum of its weights: one pass over them.
        """
        cfg = model.cfg
        fit.check(self.deltas, matrices(cfg), cfg.layers)
        widths = sites(cfg)
        check_names("write", self.writes, widths, cfg)
        for site, v in self.writes.items():
            for w in v if type(v) in (tuple, list) else (v,):
                if isinstance(w, Write) and w.value.shape[-1] != widths[site]:
                    raise ValueError(
                        f"write {site!r} has values of {w.value.shape[-1]} numbers; "
                        f"{cfg.family} has {widths[site]} there"
                    )
        held = () if self.router is None else self.router.all_tokens
        if bad := [t for t in (*self.prefix, *held) if not 0 <= t < cfg.vocab]:
            raise ValueError(f"prefix token {bad[0]}: the model knows tokens 0 to {cfg.vocab - 1}")
        base = self.provenance.get("base") or {}
        if force or not base.get("checksum"):
            return
        if base["checksum"] != (have := checksum(model.params)):
            raise ValueError(
                f"the edit was made on a {base.get('family', 'model')} with checksum "
                f"{base['checksum'][:12]}, this is a {cfg.family} with {have[:12]}; load the base "
                "in the precision that was edited, or pass force=True to use it on this one"
            )

    @property
    def failed(self) -> tuple[str, ...]:
        """Why it is none: it changes nothing, as no request could be used. () where it is one."""
        return () if self.deltas or self.beyond else tuple(self.provenance.get("failed") or ())

    @property
    def beyond(self) -> tuple[str, ...]:
        """What it has that weights cannot hold."""
        has = {"a router": self.router is not None, "writes": self.writes}
        return tuple(
            name for name, value in (has | {"prefix tokens": self.prefix}).items() if value
        )

    def merge(self, model: Model, *, force: bool = False) -> Model:
        """The model with the deltas in its weights; the given one stays as it is."""
        if self.beyond:
            raise ValueError(
                f"an edit with {self.beyond[0]} cannot be merged into weights; pass it to each "
                "forward"
            )
        self.check(model, force=force)
        return model._replace(params=merge.apply(model.params, self.deltas))

    def to_peft(
        self, folder: str | os.PathLike, model: Model | ModelConfig, base_name: str | None = None
    ) -> None:
        """The deltas as a PEFT adapter, see `jaxedit.hf.peft.export`."""
        if self.beyond:
            raise ValueError(
                f"an edit with {self.beyond[0]} is not a LoRA adapter; only deltas are"
            )
        cfg = model.cfg if isinstance(model, Model) else model
        peft.export(self.deltas, cfg, folder, base_name)


def origin(model: Model, *, method: str, **more: Any) -> dict[str, Any]:
    """Provenance of an edit made on this model; `more` (config, request, date …) is JSON or
    dataclasses.
    """
    versions = {"jaxedit": VERSION, "jax": jax.__version__}
    base = {"checksum": checksum(model.params), "family": model.cfg.family}
    return {"method": method, "base": base, "versions": versions} | {
        k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) and not isinstance(v, type) else v
        for k, v in more.items()
    }


def _pack(group: str, named: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """JSON of writes or deltas, whose arrays go to `arrays` under "deltas/mlp/down/0/a"."""
    out: dict[str, Any] = {}
    for name, v in named.items():
        chain = type(v) in (tuple, list)
        out[name] = {"chain": chain, "items": []}
        for i, item in enumerate(v if chain else (v,)):
            cls = type(item)
            if KINDS.get(cls.__name__) is not cls:
                raise ValueError(
                    f"{group} {name!r} is a {cls.__name__}, which files do not know: "
                    f"{', '.join(KINDS)} (edit.record.register adds a kind)"
                )
            held, static, inner = [], {}, {}
            for f in dataclasses.fields(item):
                value = getattr(item, f.name)
                if not f.metadata.get("pytree_node", True):
                    static[f.name] = value
                elif isinstance(value, Mapping) or type(value) in KINDS.values():
                    parts = value if isinstance(value, Mapping) else {"": value}
                    inner[f.name] = _pack(f"{group}/{name}/{i}/{f.name}", parts, arrays)
                elif value is not None:
                    held.append(f.name)
                    arrays[f"{group}/{name}/{i}/{f.name}"] = np.asarray(value)
            entry = {"kind": cls.__name__, "arrays": held, "static": static}
            entry |= {"inner": inner} if inner else {}
            out[name]["items"].append(entry)
    return out


def _unpack(
    file: str | os.PathLike, group: str, layout: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, entry in layout.items():
        items = []
        for i, item in enumerate(entry["items"]):
            cls = KINDS.get(item["kind"])
            if cls is None:
                raise ValueError(
                    f"{file}: {group} {name!r} is a {item['kind']}, known are {', '.join(KINDS)}; "
                    "import the method that wrote it first"
                )
            held: dict[str, Any]
            held = {f: jnp.asarray(arrays[f"{group}/{name}/{i}/{f}"]) for f in item["arrays"]}
            for f, parts in item.get("inner", {}).items():
                some = _unpack(file, f"{group}/{name}/{i}/{f}", parts, arrays)
                held[f] = some[""] if [*some] == [""] else some
            fields = {f.name for f in dataclasses.fields(cls)}
            empty = fields - held.keys() - item["static"].keys()
            items.append(cls(**held, **item["static"], **dict.fromkeys(empty)))
        out[name] = tuple(items) if entry["chain"] else items[0]
    return out


def _to_json(provenance: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(provenance))
    except TypeError as error:
        raise ValueError(f"the provenance of an edit is JSON ({error})") from None


def _digest(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of everything in the file: safetensors itself notices only a missing end."""
    out = hashlib.sha256()
    out.update(json.dumps({k: v for k, v in sorted(about.items()) if k != "sha256"}).encode())
    for name, x in sorted(arrays.items()):
        out.update(f"{name} {x.dtype} {x.shape}\n".encode())
        out.update(np.ascontiguousarray(x).tobytes())
    return out.hexdigest()
