"""Rounds until so many faults of the wanted kinds took place."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ucs_pipeline_tests.faults.check import Findings
from ucs_pipeline_tests.faults.feeds import FEEDS, ORDERED
from ucs_pipeline_tests.faults.kinds import KINDS, RUNS, Kind
from ucs_pipeline_tests.faults.rigs import ALWAYS
from ucs_pipeline_tests.faults.rounds import play
from ucs_pipeline_tests.faults.shapes import shapes
from ucs_pipeline_tests.faults.stage import Stage

_MOST_OTHERS_IN_A_ROUND = 12
_MOST_RUNS_IN_A_ROUND = 4
_ROUNDS_TO_SPARE = 20
_AT_ALWAYS = 0.7


@dataclass
class Outcome:
    """What a campaign did and found."""

    injected: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    by_feed: dict[str, "Share"] = field(default_factory=dict)
    """What of it was on feeds of each kind."""
    findings: Findings = field(default_factory=Findings)


@dataclass
class Share:
    """What a campaign did on feeds of one kind."""

    rounds: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    checked: int = 0


def shared_out(faults: int, kinds: Sequence[Kind]) -> Counter[str]:
    """How many faults of each kind make up so many faults; each kind occurs."""
    whole = sum(kind.share for kind in kinds)
    counts = Counter({kind.name: max(1, faults * kind.share // whole) for kind in kinds})
    for position in range(faults - counts.total()):
        counts[kinds[position % len(kinds)].name] += 1
    return counts


def run(
    counts: Mapping[str, int],
    seed: int,
    directory: Path,
    *,
    rows: int,
    seconds: float,
    feeds: Iterable[str] = FEEDS,
    order: str = "strict",
    others: int = _MOST_OTHERS_IN_A_ROUND,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Plays rounds until so many faults of each kind took place, or the time is up.

    Args:
        counts: how many faults of each kind.
        seed: what all random choices follow from.
        directory: where everything is kept.
        rows: rows of each feed.
        seconds: time limit.
        feeds: kinds of feeds to play on; those that only an ordered feed can be are left out if they are not.
        order: of the feeds.
        others: most faults in a round in addition to its first one.
        say: called with a line for each round, and more if something is wrong.
    """
    rng = random.Random(seed)
    left, outcome = Counter(counts), Outcome()
    deadline = time.monotonic() + seconds
    most_rounds = left.total() + _ROUNDS_TO_SPARE
    chosen = [kind for kind in feeds if order == "strict" or kind not in ORDERED]
    with Stage(directory, shapes(rows, chosen), rng, order) as stage:
        while left.total():
            if outcome.rounds == most_rounds or time.monotonic() > deadline:
                outcome.findings.sentences.append(f"not injected in {outcome.rounds} rounds: {dict(left)}")
                break
            place, faults = _drawn(rng, left, others)
            started = time.monotonic()
            injected, found = play(stage, place, faults)
            outcome.rounds += 1
            outcome.injected += injected
            left -= injected
            share = outcome.by_feed.setdefault(stage.shape.kind, Share())
            share.rounds += 1
            share.injected += injected
            share.checked += found.checked
            outcome.findings.add(found)
            names = ", ".join(f"{name} {number}" for name, number in injected.items())
            say(f"round {outcome.rounds}, {place}, {stage.shape.table}, {time.monotonic() - started:.1f} s: {names}")
            if not found.clean:
                drawn = " ".join(kind.name for kind in faults)
                say(f"  FOUND in stream {stage.stream}, drawn {drawn}: {found.numbers()}")
                for sentence in found.sentences:
                    say(f"  {sentence}")
    return outcome


def _drawn(rng: random.Random, left: Mapping[str, int], most: int) -> tuple[str, list[Kind]]:
    names = [name for name, number in left.items() if number > 0]
    first = KINDS[rng.choices(names, [left[name] for name in names])[0]]
    place = ALWAYS if ALWAYS in first.places and rng.random() < _AT_ALWAYS else rng.choice(first.places)
    fitting = [name for name in names if place in KINDS[name].places]
    pool = [name for name in fitting for _ in range(left[name])]
    pool.remove(first.name)
    others = rng.sample(pool, min(len(pool), rng.randint(min(2, most), most)))
    faults = [first, *(KINDS[name] for name in others)]
    if place == RUNS:
        return place, faults[:_MOST_RUNS_IN_A_ROUND]
    rng.shuffle(faults)
    return place, faults
