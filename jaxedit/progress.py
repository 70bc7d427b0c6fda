"""How far a long piece of work is, and how long it still takes; on stderr, one process of a job."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with what is done and the whole, in any unit


def quiet(done: int, total: int) -> None:
    """The progress of library calls, unless the caller asks for another."""


class Meter:
    """A line that is rewritten on a terminal, and repeated every `every` seconds in a log file."""

    def __init__(
        self,
        label: str,
        unit: str = "",
        every: float = 10.0,
        *,
        each: tuple[int, str] | None = None,  # so many of what a unit has: (1024, "tokens")
    ):
        self.label, self.unit, self.each = label, unit, each
        self.start = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()
        self.every = 0.2 if self.live else every
        self.begun: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now, last = time.monotonic(), done >= total
        # The pace is that since the first call: what came before has compiled the programs, or was
        # done by a run that this one goes on from.
        at, since = self.begun = self.begun or (done, now)
        at, since = (at, since) if done > at else (0, self.start)
        guess = done and (at or done * 1000 >= total)  # else there is too little to go by
        # A line that was begun is ended; work that was done at once is not worth a line.
        due = now - self.shown >= self.every or (last and self.live and self.shown > self.start)
        if not due or not is_first():
            return
        self.shown = now
        spent = now - self.start
        left = (now - since) * (total - done) / max(done - at, 1)
        if self.unit == "bytes":
            amount = f"{size(done)} of {size(total)}"
        else:
            amount = f"{done:,} of {total:,} {self.unit}".rstrip()
        if self.each and done > self.begun[0]:
            rate = (done - at) / max(now - since, 1e-9) * self.each[0]
            amount += f", {rate:,.0f}" if rate >= 100 else f", {rate:.3g}"
            amount += f" {self.each[1]}/s"
        when = f", in {clock(spent)}" if last else f", {clock(left)} left" if guess else ""
        text = f"{self.label}: {done / total if total else 1:4.0%}  {amount}{when}"
        clear, end = ("\r\033[K", "\n" if last else "") if self.live else ("", "\n")
        print(clear + text, end=end, file=sys.stderr, flush=True)


class Clock:
    """Seconds by stage: called when one begins."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.stage, self.since = "", time.monotonic()

    def __call__(self, stage: str) -> None:
        self.stop()
        self.stage = stage

    def stop(self) -> None:
        now = time.monotonic()
        if self.stage:
            self.spent[self.stage] = self.spent.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = "", now


def is_first() -> bool:
    """Is this the process that speaks for the job; jax is not imported for programs without it."""
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # 999.9 would be rounded to 1e+03
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
