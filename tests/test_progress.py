"""Progress: seldom, short, on stderr, from one process; live on a terminal."""

import sys
import types

import jax
import pytest

from jaxedit import progress
from jaxedit.progress import Meter, clock, size


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    clock = types.SimpleNamespace(seconds=100.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr(progress, "time", clock)

    def at(seconds):
        clock.seconds = 100.0 + seconds

    return at


def said(capsys):
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    return stderr


def test_a_log_gets_a_line_every_ten_seconds(now, capsys):
    meter = Meter("training", "steps")
    now(0.1)
    meter(1, 1000)
    assert said(capsys) == ""
    now(10)
    meter(100, 1000)
    assert said(capsys) == "training:  10%  100 of 1,000 steps, 1:30 left\n"
    now(19)
    meter(150, 1000)
    assert said(capsys) == ""
    now(20)
    meter(250, 1000)
    assert said(capsys) == "training:  25%  250 of 1,000 steps, 1:00 left\n"
    now(61)
    meter(1000, 1000)
    assert said(capsys) == "training: 100%  1,000 of 1,000 steps, in 1:01\n"


def test_what_was_there_at_first_says_nothing_of_the_pace(now, capsys):
    meter = Meter("training", "steps")
    now(30)  # compiled, and gone on from step 500
    meter(501, 1000)
    now(50)
    meter(601, 1000)
    assert said(capsys).splitlines()[1] == "training:  60%  601 of 1,000 steps, 1:20 left"


def test_a_pace_in_what_a_unit_has(now, capsys):
    meter = Meter("training", "steps", each=(1024, "tokens"))
    now(30)
    meter(501, 1000)
    assert "/s" not in said(capsys)  # the first call has only compiled
    now(50)
    meter(601, 1000)
    want = "training:  60%  601 of 1,000 steps, 5,120 tokens/s, 1:20 left\n"
    assert said(capsys) == want
    now(130)
    meter(1000, 1000)
    assert said(capsys) == "training: 100%  1,000 of 1,000 steps, 5,110 tokens/s, in 2:10\n"


def test_a_slow_pace_has_three_digits(now, capsys):
    meter = Meter("training", "steps", each=(1, "steps"))
    meter(0, 100)
    now(30)
    meter(7, 100)
    assert said(capsys) == "training:   7%  7 of 100 steps, 0.233 steps/s, 6:39 left\n"


def test_a_first_crumb_is_no_pace(now, capsys):
    """Which once made 80 hours of a minute."""
    meter = Meter("tokenising", "bytes")
    now(11)
    meter(245, 3_010_448)
    assert said(capsys) == "tokenising:   0%  245 B of 3.01 MB\n"


def test_a_log_may_be_told_less_often(now, capsys):
    meter = Meter("training", "steps", every=60)
    for seconds in range(1, 121):
        now(seconds)
        meter(seconds, 1000)
    assert said(capsys).count("\n") == 2


def test_work_that_is_done_at_once_says_nothing(now, capsys):
    meter = Meter("reading", "weights")
    for done in range(11):
        now(done / 2)
        meter(done, 10)
    assert said(capsys) == ""


def test_a_terminal_shows_one_line_that_changes(now, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    meter = Meter("reading", "bytes")
    now(0.1)
    meter(10**6, 10**10)
    assert said(capsys) == ""  # at most five times a second
    now(30)
    meter(25 * 10**8, 10**10)
    assert said(capsys) == "\r\033[Kreading:  25%  2.5 GB of 10 GB, 1:30 left"
    now(30.1)
    meter(26 * 10**8, 10**10)
    assert said(capsys) == ""
    now(30.15)
    meter(10**10, 10**10)  # the last is always shown, and ends the line
    assert said(capsys) == "\r\033[Kreading: 100%  10 GB of 10 GB, in 0:30\n"


def test_a_terminal_keeps_quiet_about_a_moment_too(now, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    meter = Meter("reading", "weights")
    now(0.15)
    meter(10, 10)
    assert said(capsys) == ""


def test_only_the_first_process_speaks(now, capsys, monkeypatch):
    meter = Meter("reading", "weights")
    now(20)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    meter(5, 10)
    assert said(capsys) == ""
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    meter(5, 10)
    assert said(capsys) == "reading:  50%  5 of 10 weights, 0:20 left\n"


def test_amounts_without_a_unit_and_of_nothing(now, capsys):
    meter = Meter("searching")
    now(10)
    meter(1, 4)
    now(20)
    meter(0, 0)
    assert said(capsys) == (
        "searching:  25%  1 of 4, 0:30 left\nsearching: 100%  0 of 0, in 0:20\n"
    )


def test_nothing_done_yet_promises_nothing(now, capsys):
    meter = Meter("searching", "layers")
    now(10)
    meter(0, 4)
    assert said(capsys) == "searching:   0%  0 of 4 layers\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (32_768, "32.8 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),  # not 1e+03 kB
        (1_234_567, "1.23 MB"),
        (14.5e9, "14.5 GB"),
        (999.7e9, "0.9997 TB"),
        (1.4e12, "1.4 TB"),
        (1.234e15, "1234 TB"),
    ],
)
def test_sizes_for_people(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (9e4, "25:00:00"),
    ],
)
def test_times_for_people(seconds, text):
    assert clock(seconds) == text
