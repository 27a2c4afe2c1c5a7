"""`python -m ucs_pipeline_tests.faults`: injects faults and prints what became of the stream."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ucs_pipeline_tests.faults.campaign import Outcome, run, shared_out
from ucs_pipeline_tests.faults.feeds import FEEDS
from ucs_pipeline_tests.faults.kinds import KINDS

_NUMBERED = ["dense", "sparse", "twins"]
"""Feeds whose entries contain their brick, which the comparison of any-order feeds needs."""


def main() -> None:
    """Runs the campaign; ends with 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m ucs_pipeline_tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=500, help="how many faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what all random choices follow from")
    parser.add_argument("--rows", type=int, default=80_000, help="rows of each table (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=28, help="time limit (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--feeds", nargs="+", choices=list(FEEDS), metavar="FEED")
    parser.add_argument("--order", choices=["strict", "any"], default="strict", help="of the feeds (default: strict)")
    options = parser.parse_args()
    counts = shared_out(options.faults, [KINDS[name] for name in options.kinds])
    directory = Path(tempfile.mkdtemp(prefix="ucs-faults-"))
    started = time.monotonic()
    limits = {"rows": options.rows, "seconds": options.minutes * 60}
    feeds = options.feeds or (list(FEEDS) if options.order == "strict" else _NUMBERED)
    more = {"feeds": feeds, "order": options.order}
    outcome = run(counts, options.seed, directory, **limits, **more, say=_say)
    _report(outcome, time.monotonic() - started)
    if outcome.findings.clean:
        shutil.rmtree(directory)
        return
    for sentence in outcome.findings.sentences:
        print(f"found: {sentence}")
    print(f"seed {options.seed}; logs are kept in {directory}")
    sys.exit(1)


def _report(outcome: Outcome, seconds: float) -> None:
    width = max(len(kind.title) for kind in KINDS.values())
    print(f"\n{'fault':{width}} | injected\n{'-' * width} | --------")
    for name, number in outcome.injected.items():
        print(f"{KINDS[name].title:{width}} | {number:8}")
    width = max(len(title) for title, _ in FEEDS.values())
    print(f"\n{'feed':{width}} | rounds | faults | kinds |    entries")
    print(f"{'-' * width} | ------ | ------ | ----- | ----------")
    for name, share in outcome.by_feed.items():
        numbers = f"{share.injected.total():6} | {len(+share.injected):5} | {share.checked:10,}"
        print(f"{FEEDS[name][0]:{width}} | {share.rounds:6} | {numbers}")
    print(
        f"\nrounds {outcome.rounds}, faults injected {outcome.injected.total()}, kinds {len(outcome.injected)}, "
        f"{outcome.findings.numbers()}, {seconds:.0f} s"
    )


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
