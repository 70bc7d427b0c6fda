"""How the benchmarks measure: warm up, wait for the device, take the median, print JSON."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def seconds(run: Callable[[], Any], repeats: int = 5, warmups: int = 1) -> float:
    """Median wall-clock seconds of `run`, whose result is waited for."""
    for _ in range(warmups):
        jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternate(runs: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of several programs, run in turn, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def report(claim: str, **figures: Any) -> None:
    """One line of JSON: what was measured, on what."""
    device = jax.devices()[0]
    where = {"device": device.device_kind, "devices": jax.device_count(), "cpu": processor()}
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"claim": claim, **rounded, **where, **versions}), flush=True)


def processor() -> str:
    """The processor's name, which `platform` does not tell on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def peak_bytes() -> int | None:
    """The most memory that the device has held, where it tells."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")
