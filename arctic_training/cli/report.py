"""Write a page about runs: curves, recipes and their differences, samples.

One HTML file with everything in it: it opens in any browser, without a network.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, such as runs/recipe")
    where = "the file to write (default: report.html)"
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help=where)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, and returns the exit code. Raises `InputError` for a folder that is no run."""
    from arctic_training.report.page import write_report

    write_report(arguments.runs, arguments.output)
    print(f"written: {arguments.output}")
    return 0
