"""Tell what this machine has for a run, and what is missing for what.

Exit code 1 says that something is missing that every run needs.
"""

import argparse
import json
import textwrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings, and returns 1 where something is missing that every run needs."""
    from arctic_training.launch.machine import examine

    report = examine()
    if arguments.json:
        print(json.dumps({title: [one._asdict() for one in findings] for title, findings in report.items()}, indent=2))
    else:
        marks = {"ok": " ", "missing": "!", "optional": "-", "note": "*"}
        for title, findings in report.items():
            print(f"{title}:" if findings else "", end="\n" if findings else "")
            width = max((len(one.name) for one in findings), default=0)
            for one in findings:
                head = f"{marks[one.state]} {one.name:{width}}  "
                text = one.detail or "installed"
                print(
                    textwrap.fill(
                        text, 80, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
                    )
                )
        print("\n! missing for every run   - missing for some runs   * worth knowing")
    return int(any(one.state == "missing" for findings in report.values() for one in findings))
