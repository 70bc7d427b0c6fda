"""Every test runs on eight CPU devices, with strict dtypes, exact matmuls, a compile cache and no
network. On a GPU: JAX_PLATFORMS=cuda pytest -m gpu.
"""

import gc
import os
import socket
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)  # half the time to compile
# The user's, so that another checkout need not compile it all again.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jaxedit", "tests")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # of the processes that tests start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


MAPS = 20_000  # of 65,530 that Linux allows a process; XLA crashes at the last one


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Every compiled program keeps some mappings of memory: they are let go before there are too
    many, and read again from the cache on disk.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Loopback is open (two-process tests talk over it), everything else fails at once."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "unix"
        if host not in ("unix", "127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}: tests have no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
