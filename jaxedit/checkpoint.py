"""Checkpoints: a tree of arrays to a folder and back, bit for bit, on any mesh. Orbax writes them.

A checkpoint is a folder with an array per leaf, named by its path ("params/mlp/down"), and as JSON
a table of the leaves and the caller's metadata. It gets its name when it is complete, not before.
All processes of a job call `save`, `restore` and `Checkpointer` together, on a folder they share;
`metadata` and `steps` only read: any process may call them alone.
"""

import contextlib
import json
import logging
import math
import pathlib
import re
from typing import Any, Self

import jax
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from jaxedit.leaves import FORMAT, decode, describe, encode, fits, name_leaves, on_host, place

ABOUT = "_CHECKPOINT_METADATA"  # Orbax writes it; its own reader opens every array
SIZES = "sizes.json"
Path = ocp.options.FileOptions().path_class  # what Orbax opens: local folders and gs://

# Orbax logs every step of its work, and asyncio the reads beside one that failed. What goes wrong
# is raised here, in words.
for logger in ("absl", "asyncio"):
    logging.getLogger(logger).addFilter(
        lambda record: not re.search("orbax|tensorstore", f"{record.pathname} {record.msg}")
    )


def save(folder, tree: Any, *, metadata: dict | None = None) -> None:
    """Write a tree of arrays, numbers and PRNG keys to a new folder; return when it is on disk."""
    path = _absolute(folder)
    if path.exists():
        raise ValueError(f"{path} exists: a checkpoint goes to a new folder, choose another name")
    arrays, about = encode(tree, metadata)
    with _writing(path):
        ocp.save(path, arrays, custom_metadata=about)
        _write_sizes(path)


def restore(folder, target: Any = None) -> Any:
    """Read a checkpoint into the structure, dtypes and shardings of `target`.

    The leaves of `target` are `jax.ShapeDtypeStruct`s, or values of which only the type counts. An
    array whose target has no sharding, or is uncommitted, goes to the default device, uncommitted.
    Floats may change their precision; the rest must be as saved. Without a target: nested dicts of
    NumPy arrays, with "0", "1" for positions in lists and tuples.
    """
    path = _absolute(folder)
    saved = _read(path)["leaves"]
    _check_sizes(path)
    if target is None:
        wanted = {name: (have["kind"], on_host(**have)) for name, have in saved.items()}
    else:
        wanted = {name: describe(leaf) for name, (_, leaf) in name_leaves(target).items()}
        _check_fit(path, saved, wanted)
    arrays = _load(path, {name: like for name, (_, like) in wanted.items()})
    leaves = {name: decode(kind, like, arrays[name]) for name, (kind, like) in wanted.items()}
    if target is not None:
        return jax.tree.unflatten(jax.tree.structure(target), leaves.values())
    if list(leaves) == [""]:  # the tree was one leaf
        return leaves[""]
    return traverse_util.unflatten_dict(
        {tuple(saved[name]["path"]): leaves[name] for name in saved}
    )


def metadata(folder) -> dict:
    """The metadata that was saved, and under "versions" what wrote it; no array is read."""
    about = _read(_absolute(folder))
    return about["metadata"] | {"versions": about["versions"]}


def steps(folder) -> list[int]:
    """The steps that a `Checkpointer` has completed in a folder, in order."""
    path = _absolute(folder)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass the folder of a Checkpointer")
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(path))


class Checkpointer:
    """The checkpoints of a run, `folder/0`, `folder/100`, …, written while the run goes on.

    It keeps the last `keep` steps and the `keep_best` with the highest scores. One job writes to a
    folder: opening it removes what a killed job left half written. Other jobs read with `steps`,
    `restore` and `metadata`. Leaving the `with` block waits for the disk.
    """

    def __init__(self, folder, *, keep: int, keep_best: int = 0):
        if keep < 1 or keep_best < 0:
            raise ValueError(f"keep={keep}, keep_best={keep_best}: at least 1 and at least 0")
        self.folder = _absolute(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: pass a folder for the checkpoints")
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"],
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        with _writing(self.folder):
            self._orbax = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                # In a bucket Orbax takes every folder without its commit file for a leftover.
                cleanup_tmp_directories="://" not in str(self.folder),
            )
        self._pending: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are kept, in order, with the one that is being written."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    @property
    def latest(self) -> int | None:
        """The last step, None in a new folder."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the highest score, the later of two equals; None if no step has a score."""
        scores = {c.step: c.metrics["score"] for c in self._orbax.checkpoints if c.metrics}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def save(
        self, step: int, tree: Any, *, metadata: dict | None = None, score: float | None = None
    ) -> None:
        """Copy the tree and write it in the background; waits only for the save before this one.

        The caller may donate or change the arrays at once. If writing fails, the next call raises.
        """
        self.wait()
        step = int(step)  # Orbax takes no NumPy integer
        if step < 0 or (self.latest is not None and step <= self.latest):
            raise ValueError(
                f"step {step}: steps increase from 0, and {self.folder} is at {self.latest}: go on "
                "from there, delete the later steps or choose another folder"
            )
        arrays, about = encode(tree, metadata)
        if score is not None:  # NaN compares to nothing, and is the worst
            score = -math.inf if math.isnan(score) else float(score)
        with _writing(self.folder):
            self._orbax.save_checkpointables_async(
                step,
                {"state": arrays},
                force=True,  # save even right after the last save
                metrics=None if score is None else {"score": score},
                custom_metadata=about,
            )
        self._pending = step

    def restore(self, target: Any = None, *, step: int | None = None) -> tuple[int, Any]:
        """The latest step, or the one asked for, and its tree; `target` as in the function."""
        self.wait()
        step = self.latest if step is None else step
        if step not in self.steps:
            raise FileNotFoundError(
                f"{self.folder} has no step {step}: it has {self.steps or 'no checkpoints'}"
            )
        return step, restore(self.folder / str(step), target)

    def wait(self) -> None:
        """Return when everything is on disk."""
        pending, self._pending = self._pending, None
        with _writing(self.folder):
            self._orbax.wait()
            if pending is not None:
                _write_sizes(self.folder / str(pending))


def _absolute(folder):
    path = Path(folder).expanduser()
    return path if path.is_absolute() else path.absolute()


def _summarize(error: Exception) -> str:
    return re.split(r"\n| \[tensorstore", f"{type(error).__name__}: {error}")[0]


def _without_stack(error: Exception) -> Exception:
    """The same error, to be chained in two lines: Orbax raises it through four threads."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _read(path) -> dict:
    """The JSON of a checkpoint, or one line that says why there is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass the folder of a checkpoint")
    try:
        about = json.loads((path / ABOUT).read_text())["custom_metadata"]
        known = {"metadata", "versions", "leaves"} <= about.keys()
    except (OSError, ValueError, LookupError, AttributeError):
        known = False
    if not known:
        found = steps(path) if path.is_dir() else []
        hint = f"it has the steps {found}, add one of them" if found else "pass another folder"
        raise ValueError(f"{path} is not a checkpoint of jaxedit, or is damaged: {hint}")
    if about["versions"]["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {about['versions']['format']}, this jaxedit reads {FORMAT}: use "
            f"jaxedit {about['versions']['jaxedit']}"
        )
    return about


@contextlib.contextmanager
def _writing(path):
    """Say in one line what Orbax could not write."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"a checkpoint was not written to {path}: {_summarize(error)}"
        ) from _without_stack(error)


def _write_sizes(path) -> None:
    """Note the size of every file of a complete checkpoint, so that a cut one is seen at once."""
    if jax.process_index() == 0 and "://" not in str(path):  # a bucket cuts no files
        local = pathlib.Path(path)
        files = [file for file in local.rglob("*") if file.is_file()]
        sizes = {str(file.relative_to(local)): file.stat().st_size for file in files}
        (local / "sizes.tmp").write_text(json.dumps(sizes))
        (local / "sizes.tmp").replace(local / SIZES)


def _check_sizes(path) -> None:
    try:
        sizes = json.loads((path / SIZES).read_text())
    except (OSError, ValueError):  # the job was killed before it noted them: nothing to compare
        return
    for name, size in sizes.items():
        found = (path / name).stat().length if (path / name).exists() else None
        if found != size:
            was = "is missing" if found is None else f"has {found} bytes of {size}"
            raise ValueError(f"{path} is damaged, {name} {was}: delete it and restore another")


def _check_fit(path, saved: dict[str, dict], wanted: dict[str, tuple[str, Any]]) -> None:
    problems = [f"{name!r} is only in the checkpoint" for name in saved if name not in wanted]
    for name, (kind, like) in wanted.items():
        if name not in saved:
            problems.append(f"{name!r} is only in the target")
        elif not fits(have := saved[name], kind, like):
            was = f"{have['kind']} {have['dtype']}{have['shape']}"
            now = f"{kind} {like.dtype}{list(like.shape)}"
            problems.append(f"{name!r} is {was} in the checkpoint and {now} in the target")
        elif not isinstance(like, np.ndarray) and like.dtype != jax.dtypes.canonicalize_dtype(
            like.dtype
        ):
            problems.append(f"{name!r} is {like.dtype} only in NumPy, or with jax_enable_x64")
        elif (sharding := place(like)) is not None:
            try:
                sharding.shard_shape(tuple(like.shape))
            except ValueError as error:
                problems.append(f"{name!r} cannot be sharded so: {_summarize(error)}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} does not fit the target: {'; '.join(problems[:3])}{more}. Change the target, "
            "or restore without one to see what was saved"
        )


def _load(path, likes: dict[str, Any]) -> dict[str, Any]:
    """The stored arrays: those without a sharding on the host."""
    abstract = {
        name: on_host(like.shape, like.dtype)
        if (sharding := place(like)) is None
        else jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)
        for name, like in likes.items()
    }
    full = {name: like for name, like in abstract.items() if math.prod(like.shape)}
    try:
        loaded = ocp.load(path, full, checkpointable_name="state") if full else {}
    except (RuntimeError, MemoryError):  # such as too little memory: says it by itself
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is damaged ({_summarize(error)}): delete it and restore another"
        ) from _without_stack(error)
    empty = abstract.keys() - full.keys()
    return loaded | {name: np.zeros(abstract[name].shape, abstract[name].dtype) for name in empty}
