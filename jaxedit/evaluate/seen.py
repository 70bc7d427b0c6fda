"""What a model did with the probes of a case, before and after the edit: what metrics are made of.

All of it is on the host and plain, so that a metric can be checked by hand.
"""

import dataclasses

from jaxedit.data.cases import EditCase, Probe

EDIT = "edit"  # the key of the requests themselves, beside those of `data.cases.KEYS`


@dataclasses.dataclass(frozen=True)
class Forced:
    """An answer with the model led through it, token by token: [U] each."""

    target: tuple[int, ...]  # the answer's tokens
    said: tuple[int, ...]  # the model's first choice in the place of each
    logp: tuple[float, ...]  # natural logarithm of the probability of each


@dataclasses.dataclass(frozen=True)
class Seen:
    """One model and one probe."""

    answers: tuple[tuple[Forced, ...], ...] = ()  # as Probe.answers: by answer, then by name
    new: Forced | None = None  # the request's target and its former answer after this prompt,
    true: Forced | None = None  # where the two are to be compared
    against: tuple[Forced, ...] = ()  # ConvSent: the replies of the other sentiment
    text: str | None = None  # greedy continuation; None where it was not asked for


@dataclasses.dataclass(frozen=True)
class Asked:
    """A probe and what both models did with it."""

    key: str
    probe: Probe
    before: Seen  # the unedited model
    after: Seen
    # KL(before ‖ after) in nats, the mean over the first answer's tokens; of ConvSent over replies
    kl: float | None = None
    known: tuple[
        bool, ...
    ] = ()  # of each of the probe's conditions: does the unedited model know it


@dataclasses.dataclass(frozen=True)
class Observed:
    """A case and all that was asked."""

    case: EditCase
    asked: tuple[Asked, ...]
    # what follows the beginnings of the "generation" probes (of the request, where there are none):
    beginnings: tuple[str, ...] = ()
    continued: tuple[tuple[str, str], ...] = ()  # before and after, without the beginning
    failed: tuple[str, ...] = ()  # why there is no edit; it is then evaluated as the unedited model
    skipped: tuple[str, ...] = ()  # probes that could not be asked, with the reason
    elsewhere: int = 0  # locality probes not asked: the request of another case changes them

    def of(self, *keys: str) -> tuple[Asked, ...]:
        return tuple(a for a in self.asked if a.key in keys)
