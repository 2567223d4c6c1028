"""Fuzz for minutes and print a table: `make fuzz MINUTES=10`.

Each target runs in a fork of this process, which a hang or a crash ends without ending the run.
Repeat an input that was a fault with `python tests/fuzz/run.py --target NAME --input NUMBER`.
"""

import argparse
import multiprocessing
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from fuzz.targets import TARGETS, run_one

PATIENCE = 60.0  # seconds until an input has hung, on a machine that does other things too
COLUMNS = ("read", "clear error", "fault", "hang", "crash")
FORK = multiprocessing.get_context("fork")


def serve(name: str, pipe) -> None:
    """Run the inputs whose numbers come through a pipe; answer outcome, report and MiB."""
    run_one(name, random.Random(0))  # makes the seeds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while True:
        number = pipe.recv()
        try:
            outcome, report = run_one(name, random.Random(number)), ""
        except BaseException:
            outcome, report = "fault", traceback.format_exc(limit=-4)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        pipe.send((outcome, report, peak >> 10))


class Worker:
    """A fork that runs inputs of one target, and is replaced when it hangs or crashes."""

    def __init__(self, name: str) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(name, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, number: int) -> tuple[str, str, int]:
        try:
            self.pipe.send(number)
            if self.pipe.poll(PATIENCE):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return "crash", f"exit code {self.process.exitcode}", 0
        return "hang", f"longer than {PATIENCE:.0f} seconds", 0

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def fuzz(name: str, seconds: float, numbers: random.Random) -> tuple[Counter, int]:
    """Run inputs for a while; return how many had each outcome, and the peak in MiB."""
    counts, peak, end, worker = Counter(), 0, time.monotonic() + seconds, Worker(name)
    while time.monotonic() < end:
        number = numbers.randrange(2**32)
        outcome, report, mib = worker.run(number)
        counts[outcome] += 1
        peak = max(peak, mib)
        if outcome not in ("read", "clear error"):
            print(f"\n{name}, input {number}: {outcome}\n{report}", file=sys.stderr, flush=True)
        if outcome in ("hang", "crash"):
            worker.end()
            worker = Worker(name)
    worker.end()
    return counts, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the numbers of inputs")
    parser.add_argument("--target", choices=TARGETS, help="one alone")
    parser.add_argument("--input", type=int, help="one number alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.input is not None:
        print(run_one(args.target, random.Random(args.input)))
        return 0
    names = [args.target] if args.target else list(TARGETS)
    numbers = random.Random(args.seed)
    totals, highest = Counter(), 0
    print("| what | inputs | read | clear errors | faults | hangs | crashes | peak MiB |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for name in names:
        counts, peak = fuzz(name, 60 * args.minutes / len(names), numbers)
        totals += counts
        highest = max(highest, peak)
        print_row(name, counts, peak)
    print_row("all", totals, highest)
    return int(totals.total() != totals["read"] + totals["clear error"])


def print_row(name: str, counts: Counter, peak: int) -> None:
    numbers = [counts.total(), *(counts[column] for column in COLUMNS), peak]
    print(f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
