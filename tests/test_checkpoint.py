"""Checkpoints come back bit for bit, on any mesh, after kill -9; or say why not in one line."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxedit import checkpoint


@flax.struct.dataclass
class TrainState:
    params: Any
    opt: Any
    key: Any
    step: Any


def make_mesh(*shape):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def random_bits(shape, dtype, seed=0):
    """Every bit pattern: subnormals, infinities, NaNs with payloads, negative zeros."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def make_state(seed=0):
    params = {
        "mlp/down": jnp.asarray(random_bits((8, 16), jnp.bfloat16, seed)),
        "layers": [jnp.asarray(random_bits((4, 6), np.float32, seed)), {"b": jnp.ones(3)}],
        "absent": None,
        "empty": jnp.zeros((0, 4), jnp.bfloat16),
    }
    trained = {"w": params["layers"][1]["b"]}
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(trained)
    return TrainState(params, opt, jax.random.key(seed), step=seed)


def assert_same(got, want):
    """The same structure, and leaf by leaf the same type, dtype, place and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(want)]
    for name, g, w in zip(names, jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(g) is type(w), name
        if isinstance(w, jax.Array):
            assert g.dtype == w.dtype, name
            assert g.committed == w.committed, name
            assert g.sharding.is_equivalent_to(w.sharding, w.ndim), name
            if jax.dtypes.issubdtype(w.dtype, jax.dtypes.prng_key):
                g, w = jax.random.key_data(g), jax.random.key_data(w)
        g, w = np.asarray(g), np.asarray(w)
        assert (g.dtype, g.shape, g.tobytes()) == (w.dtype, w.shape, w.tobytes()), name


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert str(word) in message


def test_train_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(3)
    checkpoint.save(tmp_path / "c", state)
    assert_same(checkpoint.restore(tmp_path / "c", make_state(0)), state)


def test_restores_into_shapes(tmp_path):
    state = make_state(3)
    checkpoint.save(tmp_path / "c", state)
    got = checkpoint.restore(tmp_path / "c", jax.eval_shape(make_state))
    assert_same(got, state.replace(step=jnp.asarray(3, jnp.int32)))


@pytest.mark.parametrize(
    "leaf",
    [
        np.arange(6.0).reshape(2, 3).T / 3,  # float64, not contiguous
        np.array(2**64 - 1, np.uint64),
        np.array([True, False]),
        jnp.arange(4).astype(jnp.int4),
        jnp.arange(4.0).astype(jnp.float8_e4m3fn),
        jax.lax.complex(jnp.ones(2), jnp.ones(2)),
        jax.random.split(jax.random.key(1, impl="rbg"), (2, 3)),
        -7,
        0.1,
        float("inf"),
        True,
    ],
    ids=lambda leaf: f"{type(leaf).__name__}-{getattr(leaf, 'dtype', leaf)}",
)
def test_every_kind_of_leaf(tmp_path, leaf):
    checkpoint.save(tmp_path / "c", {"x": leaf})
    assert_same(checkpoint.restore(tmp_path / "c", {"x": leaf}), {"x": leaf})
    host = checkpoint.restore(tmp_path / "c")["x"]
    if isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = np.asarray(leaf)
    assert_same(host, leaf)


@pytest.mark.parametrize("tree", [{}, (), np.float32(2) * np.ones(2, np.float32), (1, [2.5])])
def test_odd_trees(tmp_path, tree):
    checkpoint.save(tmp_path / "c", tree)
    assert_same(checkpoint.restore(tmp_path / "c", tree), tree)


def test_without_a_target_gives_nested_dicts_on_the_host(tmp_path):
    state = make_state(3)
    checkpoint.save(tmp_path / "c", state)
    got = checkpoint.restore(tmp_path / "c")
    assert set(got) == {"params", "opt", "key", "step"}
    assert isinstance(got["params"]["mlp/down"], np.ndarray)
    assert got["params"]["mlp/down"].tobytes() == np.asarray(state.params["mlp/down"]).tobytes()
    assert got["params"]["layers"]["1"]["b"].tolist() == [1, 1, 1]
    assert got["params"]["empty"].shape == (0, 4)
    assert got["step"] == 3
    assert (jax.random.bits(got["key"]) == jax.random.bits(state.key)).all()


def test_a_tree_of_one_array(tmp_path):
    checkpoint.save(tmp_path / "c", jnp.arange(3))
    assert checkpoint.restore(tmp_path / "c").tolist() == [0, 1, 2]


def test_another_mesh_and_another_dtype(tmp_path):
    x_IO = random_bits((16, 8), np.float32)
    x_IO = np.where(np.isnan(x_IO), 1.5, x_IO).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    here = NamedSharding(make_mesh(4, 2), P("data", "model"))
    tree = {"w": jax.device_put(x_IO, here), "keys": keys, "host": x_IO}
    checkpoint.save(tmp_path / "c", tree)

    there = NamedSharding(make_mesh(2, 4), P("model", "data"))
    rows = NamedSharding(make_mesh(8, 1), P("data"))
    target = {
        "w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=there),
        "keys": jax.ShapeDtypeStruct((8,), keys.dtype, sharding=rows),
        "host": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=rows),
    }
    got = checkpoint.restore(tmp_path / "c", target)
    assert_same(
        got,
        {
            "w": jax.device_put(x_IO, there),
            "keys": jax.device_put(keys, rows),
            "host": jax.device_put(x_IO.astype(jnp.bfloat16), rows),
        },
    )
    target = {
        "w": np.zeros((16, 8), jnp.bfloat16),
        "keys": keys,
        "host": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16),
    }
    got = checkpoint.restore(tmp_path / "c", target)
    assert_same(got["w"], x_IO.astype(jnp.bfloat16))
    assert_same(got["host"], jnp.asarray(x_IO.astype(jnp.bfloat16)))


def test_a_restored_counter_meets_arrays_on_a_mesh(tmp_path):
    """Orbax alone pins an optimizer's `count` to device 0, and the next step fails under jit."""
    here = NamedSharding(make_mesh(4, 2), P("data"))
    tree = {"w": jax.device_put(jnp.ones(8), here), "count": jnp.zeros((), jnp.int32)}
    checkpoint.save(tmp_path / "c", tree)
    got = checkpoint.restore(tmp_path / "c", tree)
    stepped = jax.jit(lambda t: t["w"] + t["count"].astype(jnp.float32))(got)
    assert stepped.sharding.is_equivalent_to(here, 1)


def test_a_resumed_run_is_the_run(tmp_path):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))

    @jax.jit
    @jax.numpy_dtype_promotion("standard")  # optax's adam asks for it
    def train(state):
        key = jax.random.fold_in(state.key, state.step)
        noise = jax.random.normal(key, state.params["w"].shape)
        grads = jax.grad(lambda p: jnp.sum((p["w"] - noise) ** 2))(state.params)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt, state.key, state.step + 1)

    def start():
        params = {"w": jnp.ones(5)}
        return TrainState(params, optimizer.init(params), jax.random.key(7), jnp.int32(0))

    straight = start()
    with checkpoint.Checkpointer(tmp_path, keep=2) as ckpt:
        for step in range(6):
            if step < 4:
                ckpt.save(step, straight)
            straight = train(straight)
    with checkpoint.Checkpointer(tmp_path, keep=2) as ckpt:
        assert ckpt.latest == 3
        step, resumed = ckpt.restore(start())
    for _ in range(step, 6):
        resumed = train(resumed)
    assert_same(resumed, straight)


def test_metadata_is_read_without_the_arrays(tmp_path):
    config = {"seed": 1, "model": {"layers": [1, 2.5, None, "gpt2"]}}
    checkpoint.save(tmp_path / "c", {"w": jnp.ones(3)}, metadata=config)
    shutil.rmtree(tmp_path / "c" / "state")
    got = checkpoint.metadata(tmp_path / "c")
    versions = got.pop("versions")
    assert got == config
    assert versions["jax"] == jax.__version__
    assert versions["format"] == checkpoint.FORMAT
    assert set(versions) == {"jax", "jaxedit", "orbax", "format"}


def test_keeps_the_last_and_the_best(tmp_path):
    scores = {0: 0.5, 10: 0.9, 20: float("nan"), 30: 0.7, 40: None, 50: 0.1, 60: np.float32(0.2)}
    with checkpoint.Checkpointer(tmp_path, keep=2, keep_best=1) as ckpt:
        assert ckpt.latest is None
        assert ckpt.best is None
        for step, score in list(scores.items())[:4]:
            ckpt.save(step, {"step": step}, metadata={"name": f"at {step}"}, score=score)
    assert checkpoint.steps(tmp_path) == [10, 20, 30]
    with checkpoint.Checkpointer(tmp_path, keep=2, keep_best=1) as ckpt:
        assert (ckpt.steps, ckpt.latest, ckpt.best) == ([10, 20, 30], 30, 10)
        for step, score in list(scores.items())[4:]:
            ckpt.save(step, {"step": step}, metadata={"name": f"at {step}"}, score=score)
        assert ckpt.restore({"step": 0}) == (60, {"step": 60})
        assert ckpt.restore(step=ckpt.best) == (10, {"step": 10})
    assert sorted(os.listdir(tmp_path)) == ["10", "50", "60"]
    assert checkpoint.metadata(tmp_path / "50")["name"] == "at 50"
    assert checkpoint.restore(tmp_path / "50") == {"step": 50}


@pytest.fixture
def stalled_disk(monkeypatch):
    """An event: until it is set, no checkpoint gets its name."""
    ready, rename = threading.Event(), os.rename

    def stall(source, target, **options):
        if "orbax-checkpoint-tmp" in str(source):
            assert ready.wait(60)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", stall)
    return ready


def test_the_loop_neither_waits_for_the_disk_nor_disturbs_it(tmp_path, stalled_disk):
    here = NamedSharding(make_mesh(8, 1), P("data"))
    bits = random_bits((8, 50_000), np.float32)
    with checkpoint.Checkpointer(tmp_path, keep=3) as ckpt:
        tree = {"w": jax.device_put(bits, here), "one": jnp.asarray(bits), "host": bits.copy()}
        ckpt.save(0, tree)
        assert checkpoint.steps(tmp_path) == []  # it came back before the disk
        assert ckpt.latest == 0
        donate = jax.jit(lambda x: x * 0, donate_argnums=0)
        jax.block_until_ready([donate(tree.pop("w")), donate(tree.pop("one"))])
        tree.pop("host")[:] = 0
        stalled_disk.set()
    for name, got in checkpoint.restore(tmp_path / "0").items():
        assert got.tobytes() == bits.tobytes(), name


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from jaxedit import checkpoint

folder = Path(sys.argv[1])
ckpt = checkpoint.Checkpointer(folder, keep=3)
ckpt.save(0, {"w": np.random.default_rng(0).standard_normal(1000)}, score=1.0)
ckpt.wait()
ckpt.save(1, {"w": np.random.default_rng(1).standard_normal(20_000_000)})
while not list(folder.glob("1.*")):
    time.sleep(0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""

RESUMED = """
import logging, sys
import jax, numpy as np
logging.basicConfig(level=logging.INFO)
logging.getLogger("jax").setLevel(logging.WARNING)
from jaxedit import checkpoint

folder = sys.argv[1]
assert checkpoint.steps(folder) == [0], checkpoint.steps(folder)
with checkpoint.Checkpointer(folder, keep=3) as ckpt:
    assert (ckpt.steps, ckpt.latest, ckpt.best) == ([0], 0, 0)
    step, tree = ckpt.restore({"w": np.zeros(1000)})
    assert step == 0
    assert tree["w"].tobytes() == np.random.default_rng(0).standard_normal(1000).tobytes()
    ckpt.save(2, {"w": np.ones(3)})
assert checkpoint.steps(folder) == [0, 2]
checkpoint.save(folder + "/final", {"w": jax.numpy.ones(3)})
checkpoint.restore(folder + "/final", {"w": jax.numpy.ones(3)})
"""


def run_child(code, folder):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True
    )


def test_kill_9_while_saving_leaves_the_checkpoint_before(tmp_path):
    killed = run_child(KILLED, tmp_path)
    assert killed.returncode == -9, killed.stderr
    left = sorted(os.listdir(tmp_path))
    assert left[0] == "0"
    assert len(left) == 2
    assert left[1].startswith("1.")  # half written
    resumed = run_child(RESUMED, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout + resumed.stderr == ""  # Orbax is quiet, even where INFO is shown
    assert sorted(os.listdir(tmp_path)) == ["0", "2", "final"]  # the leftover is gone


def test_a_killed_single_save_is_no_obstacle(tmp_path, stalled_disk, monkeypatch):
    leftover = tmp_path / "c.orbax-checkpoint-tmp" / "state"
    leftover.mkdir(parents=True)
    (leftover / "d").write_text("half")
    stalled_disk.set()
    checkpoint.save(tmp_path / "c", {"w": np.ones(3)})
    assert checkpoint.restore(tmp_path / "c")["w"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["c"]


@pytest.fixture
def full_disk():
    """Call it with True: files end at 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if full else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_at_the_next_call_and_passes(tmp_path, full_disk):
    big = {"w": np.random.default_rng(0).standard_normal(100_000)}
    with checkpoint.Checkpointer(tmp_path, keep=3) as ckpt:
        ckpt.save(0, {"w": np.ones(3)})
        full_disk(True)
        ckpt.save(1, big)
        with pytest.raises(OSError, match="not written") as error:
            ckpt.save(2, big)
        assert_one_line(error, tmp_path, "File too large")
        assert error.value.__cause__.__traceback__ is None  # not Orbax's hundred lines
        assert ckpt.latest == 0
        full_disk(False)
        ckpt.save(1, big)
    assert checkpoint.restore(tmp_path / "1")["w"].tobytes() == big["w"].tobytes()
    full_disk(True)
    with pytest.raises(OSError, match="not written"):
        checkpoint.save(tmp_path / "single", big)
    with (
        pytest.raises(OSError, match="not written"),
        checkpoint.Checkpointer(tmp_path, keep=3) as ckpt,
    ):
        ckpt.save(2, big)
    assert checkpoint.steps(tmp_path) == [0, 1]


def test_any_cut_or_missing_file_is_one_line(tmp_path):
    here = NamedSharding(make_mesh(4, 2), P("data", "model"))
    bits = random_bits((64, 64), np.float32)
    tree = {"w": jax.device_put(bits, here), "host": random_bits((500,), np.float64), "n": 3}
    good, bad = tmp_path / "good", tmp_path / "bad"
    checkpoint.save(good, tree)
    files = [path for path in good.rglob("*") if path.is_file() and path.name != checkpoint.SIZES]
    assert len(files) > 5
    for file in files:
        for content in (None, file.read_bytes()[:-1]):
            if file.read_bytes() == content:
                continue  # an empty file cannot be cut
            shutil.copytree(good, bad)
            (bad / file.relative_to(good)).unlink()
            if content is not None:
                (bad / file.relative_to(good)).write_bytes(content)
            for target in (tree, None):
                with pytest.raises(ValueError, match="damaged") as error:
                    checkpoint.restore(bad, target)
                assert_one_line(error, bad)
                assert error.value.__cause__ is None  # seen before Orbax reads anything
            shutil.rmtree(bad)


def test_a_run_goes_on_without_its_damaged_last_step(tmp_path):
    with checkpoint.Checkpointer(tmp_path, keep=3) as ckpt:
        for step in range(3):
            ckpt.save(step, {"w": np.full(9, step)})
    for step in (1, 2):
        (tmp_path / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with checkpoint.Checkpointer(tmp_path, keep=3) as ckpt:
        for step in (1, 2):
            with pytest.raises(
                ValueError, match=r"damaged, .* has 0 bytes of .* delete it"
            ) as error:
                ckpt.restore(step=step)
            assert_one_line(error, tmp_path / str(step))
            shutil.rmtree(tmp_path / str(step))
    with checkpoint.Checkpointer(tmp_path, keep=3) as ckpt:
        step, tree = ckpt.restore()
        assert tree["w"].tolist() == [0] * 9
        ckpt.save(step + 1, tree)
    assert checkpoint.steps(tmp_path) == [0, 1]


def test_damage_that_no_size_shows_is_one_line(tmp_path, caplog):
    checkpoint.save(tmp_path / "c", {"w": np.random.default_rng(0).standard_normal(5000)})
    (tmp_path / "c" / checkpoint.SIZES).unlink()  # a job killed just after the checkpoint
    assert checkpoint.restore(tmp_path / "c")["w"].shape == (5000,)
    data = max((tmp_path / "c" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged") as error:
        checkpoint.restore(tmp_path / "c")
    assert_one_line(error, tmp_path / "c", "delete it and restore another")


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.restore(tmp_path / "missing")
    assert_one_line(error, tmp_path / "missing", "does not exist")
    with pytest.raises(FileNotFoundError):
        checkpoint.steps(tmp_path / "missing")

    (tmp_path / "empty").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / "file").write_text("text")
    for name in ("empty", "hf", "file"):
        for read in (checkpoint.restore, checkpoint.metadata):
            with pytest.raises(ValueError, match="not a checkpoint of jaxedit") as error:
                read(tmp_path / name)
            assert_one_line(error, tmp_path / name, "pass another folder")
    with pytest.raises(ValueError, match="is a file"):
        checkpoint.Checkpointer(tmp_path / "file", keep=1)

    with checkpoint.Checkpointer(tmp_path / "run", keep=3) as ckpt:
        with pytest.raises(FileNotFoundError, match="no checkpoints"):
            ckpt.restore()
        ckpt.save(0, {"w": 1})
        ckpt.save(7, {"w": 1})
        with pytest.raises(FileNotFoundError, match=r"no step 3: it has \[0, 7\]"):
            ckpt.restore(step=3)
    with pytest.raises(ValueError, match=r"steps \[0, 7\], add one"):
        checkpoint.restore(tmp_path / "run")


def test_a_later_format_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {"w": 1})
    about = tmp_path / "c" / checkpoint.ABOUT
    text = json.loads(about.read_text())
    text["custom_metadata"]["versions"] |= {"format": 99, "jaxedit": "7.0"}
    about.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"format 99.*use jaxedit 7\.0"):
        checkpoint.restore(tmp_path / "c")


def shape(*dims, dtype=jnp.float32, spec=None):
    sharding = None if spec is None else NamedSharding(make_mesh(4, 2), spec)
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": shape(4, 7)}, ["'w'", "float32[4, 6]", "float32[4, 7]"]),
        ({"w": shape(4, 6, dtype=jnp.int32)}, ["'w'", "float32[4, 6]", "int32[4, 6]"]),
        ({"w": shape(4, 6, spec=P(None, "data"))}, ["'w' cannot be sharded"]),
        ({"w": None}, ["'w' is only in the checkpoint"]),
        ({"v": shape(2)}, ["'v' is only in the target"]),
        (
            {"deep": {"x": shape(2), "y": 1}},
            ["'deep/x' is array int32[3]", "'deep/y' is only in the target"],
        ),
        ({"n": 1.0}, ["'n' is int", "float"]),
        ({"n": True}, ["'n' is int", "bool"]),
        ({"n": jax.random.key(0)}, ["'n' is int", "key<fry>"]),
        ({"key": shape(2, dtype=jnp.uint32)}, ["'key' is key<fry>", "array uint32[2]"]),
        ({"key": jax.random.key(0, impl="rbg")}, ["key<fry>", "key<rbg>"]),
        ({"cov": shape(2, 2, dtype=np.float64)}, ["'cov' is float64 only in NumPy", "x64"]),
        (dict.fromkeys(("w", "n", "key", "cov")), ["'cov'", "and 1 more"]),
    ],
)
def test_a_target_that_does_not_fit(tmp_path, change, words):
    tree = {
        "w": jnp.ones((4, 6)),
        "deep": {"x": np.ones(3, np.int32)},
        "n": 3,
        "key": jax.random.key(0),
        "cov": np.eye(2),
    }
    checkpoint.save(tmp_path / "c", tree)
    checkpoint.restore(tmp_path / "c", tree)
    with pytest.raises(ValueError, match="does not fit the target") as error:
        checkpoint.restore(tmp_path / "c", tree | change)
    assert_one_line(error, tmp_path / "c", *words)


def test_what_cannot_be_saved(tmp_path):
    for leaf in ("text", object(), 1j, np.array(["a"]), 2**70):
        with pytest.raises(ValueError, match="leaf 'a/x' is of type"):
            checkpoint.save(tmp_path / "c", {"a": {"x": leaf}})
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        checkpoint.save(tmp_path / "c", {"a": {"b": 1}, "a/b": 2})
    with pytest.raises(ValueError, match="not JSON"):
        checkpoint.save(tmp_path / "c", {"x": 1}, metadata={"path": tmp_path})
    with pytest.raises(ValueError, match="'versions'"):
        checkpoint.save(tmp_path / "c", {"x": 1}, metadata={"versions": 1})
    assert os.listdir(tmp_path) == []
    checkpoint.save(tmp_path / "c", {"x": 1})
    with pytest.raises(ValueError, match="exists") as error:
        checkpoint.save(tmp_path / "c", {"x": 2})
    assert_one_line(error, tmp_path / "c")
    assert checkpoint.restore(tmp_path / "c") == {"x": 1}


def test_steps_increase(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.Checkpointer(tmp_path, keep=0)
    with checkpoint.Checkpointer(tmp_path, keep=2) as ckpt:
        ckpt.save(np.int64(5), {"x": 1})
        for step in (5, 4, -1):
            with pytest.raises(ValueError, match=f"step {step}: steps increase"):
                ckpt.save(step, {"x": 2})
    assert checkpoint.restore(tmp_path / "5") == {"x": 1}


def test_other_loggers_are_heard(caplog):
    for name in ("absl", "asyncio"):
        logging.getLogger(name).warning("something else")
    assert caplog.messages == ["something else"] * 2
