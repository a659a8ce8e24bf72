"""`python -m benchmarks`: measures this package beside bare loops and other trainers, and prints a table."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import workload
from benchmarks.contestant import HERE, contestants
from benchmarks.figures import Figures, as_json, complaints
from benchmarks.machine import describe
from benchmarks.report import text
from benchmarks.run import Bench, note


def main() -> int:
    arguments = _parse()
    known = contestants(Path(sys.executable), arguments.peers)
    names = arguments.only.split(",") if arguments.only else [one.name for one in known]
    if unknown := set(names) - {one.name for one in known}:
        raise SystemExit(f"no contestant is named {', '.join(unknown)}; there are {', '.join(o.name for o in known)}")
    chosen = [one for one in known if one.name in {"ours", *names}]
    for one in chosen:
        if not one.installed:
            note(f"{one.title} is left out: {one.python} is not there; `make bench` makes it")
    chosen = [one for one in chosen if one.installed]
    quick = arguments.quick
    tasks = [workload.QUICK] if quick else [workload.THROUGHPUT, workload.FIXED]
    with tempfile.TemporaryDirectory(prefix="arctic_training_bench_") as temporary:
        bench = Bench(tasks, chosen, arguments.work or Path(temporary), arguments.stage)
        bench.make_corpora()
        wrong = _rounds(bench, arguments.rounds, warm_up=not quick)
    for what in wrong:
        print(f"not comparable: {what}", file=sys.stderr)
    if wrong:
        return 1
    if not bench.rounds:
        return 130
    figures, machine = Figures(bench), describe()
    print(text(figures, machine, rounds=bench.rounds, stage=arguments.stage))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(figures, machine), indent=1) + "\n")
    return 0


def _rounds(bench: Bench, count: int, *, warm_up: bool) -> list[str]:
    """So many rounds, with ``warm_up`` after a round 0 that is not counted; why their results cannot be compared.

    Nothing is said when they can. Asked to end before the last, it stops, and the rounds that are complete are shown.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        numbers = range(0 if warm_up else 1, count + 1)
        for number in numbers:
            if wrong := bench.round(number, complaints, first=number == numbers[0]):
                return [f"round {number}: {what}" for what in wrong]
    except KeyboardInterrupt:
        note(f"asked to end after {bench.rounds} of {count} rounds")
    return []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are counted (5)")
    parser.add_argument("--only", help="names of contestants, with commas; ours is always one")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny task, without a round to warm up: shows that it works"
    )
    parser.add_argument("--stage", type=int, default=0, choices=(0, 1, 2, 3), help="the ZeRO stage (0)")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", type=Path, help="folder to work in and keep; a temporary one when left out")
    parser.add_argument("--peers", type=Path, default=HERE, help="folder of the other trainers' environments")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
