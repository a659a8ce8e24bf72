"""Prints the preview of data: in colours on a terminal, with marks elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.text import Text as Styled

from arctic_training.data.batching.loader import Batch
from arctic_training.data.formats.remarks import DROPPED, ROLES, ROWS, TOOLS, TRUNCATED, USED
from arctic_training.data.preview.facts import write_value
from arctic_training.data.preview.preview import SetPreview
from arctic_training.data.preview.rows import PreviewRow, PreviewText
from arctic_training.data.preview.tokens import token_texts, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LABEL = 29
"""Width of the names in tables."""
_BAR = 40
"""Width of the longest bar of a histogram."""
_TARGET, _BETWEEN, _TAG, _WARNING = "bold green", "dim", "yellow", "bold yellow"


def print_preview(
    sets: Mapping[str, SetPreview], tokenizer: "PreTrainedTokenizerBase | None", *, max_tokens: int
) -> None:
    """Prints the rows and statistics of all sets; of a text at most ``max_tokens`` tokens, of which 0 means all."""
    console = Console(highlight=False, markup=False, emoji=False)
    printer = _Printer(console, tokenizer, max_tokens)
    if any(row.texts for one in sets.values() for row in one.rows):
        targets = "⟦targets⟧" if printer.marks else Styled("targets", _TARGET)
        console.print(Styled.assemble(targets, ("  a│b: two tokens  ⏎: line break", _BETWEEN)))
    for name, one in sets.items():
        for number, row in enumerate(one.rows, 1):
            printer.print_row(f"{name}, row {number}", row)
    train = sets.get("train")
    for name, one in sets.items():
        printer.print_statistics(name, one, None if train is one else train)


def show_progress(name: str) -> Callable[[Iterable[Batch]], Iterable[Batch]]:
    """Returns a function that passes the batches of a set on, with a bar where standard error is a terminal."""
    console = Console(stderr=True)
    options: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    return lambda batches: track(batches, f"reading {name}", **options)


class _Printer:
    def __init__(self, console: Console, tokenizer: "PreTrainedTokenizerBase | None", max_tokens: int) -> None:
        self.console, self.tokenizer, self.max_tokens = console, tokenizer, max_tokens
        self.marks = console.no_color or console.color_system is None

    def print_row(self, title: str, row: PreviewRow) -> None:
        """Prints a row of a batch, text by text."""
        counts = []
        documents = sum(not text.name for text in row.texts)
        if documents > 1:
            counts.append(f"{documents} documents")
        if row.texts:
            counts.append(f"{sum(len(text.ids) for text in row.texts):,} tokens")
        learned = [text.targets for text in row.texts if text.targets is not None and not text.is_derived]
        if learned:
            counts.append(f"{sum(int(targets.sum()) for targets in learned):,} targets")
        if padding := sum(text.padding for text in row.texts):
            counts.append(f"{padding:,} tokens of padding")
        self.console.print(Styled(f"\n── {title}" + (f": {', '.join(counts)}" if counts else ""), "bold"))
        for name, value in row.facts.items():
            self.console.print(Styled(f"{name}: ", _BETWEEN) + Styled(visible(write_value(value))))
        for number, text in enumerate(row.texts, 1):
            if text.name or documents > 1:
                name = text.name or f"document {number}"
                self.console.print(Styled(f"─ {name}: {len(text.ids):,} tokens", _BETWEEN))
            self.console.print(self.styled(text))

    def styled(self, text: PreviewText) -> Styled:
        """Returns the tokens of a text, with those in the middle left out where they are too many."""
        count = len(text.ids)
        if not self.max_tokens or count <= self.max_tokens:
            return self._tokens(text, 0, count)
        head, tail = (self.max_tokens + 1) // 2, self.max_tokens // 2
        between = Styled(f"\n… {count - head - tail:,} tokens …\n", _BETWEEN)
        return self._tokens(text, 0, head) + between + self._tokens(text, count - tail, count)

    def _tokens(self, text: PreviewText, start: int, end: int) -> Styled:
        line = Styled()
        decoded = token_texts(self.tokenizer, text.ids[start:end].tolist())
        targets = [False] * len(decoded) if text.targets is None else text.targets[start:end].tolist()
        for n, (token, is_target) in enumerate(zip(decoded, targets, strict=True)):
            opens = is_target and not (n and targets[n - 1])
            if n and not line.plain.endswith("\n"):
                line.append("│", _BETWEEN)
            line.append("⟦" if self.marks and opens else "")
            line.append(visible(token).removesuffix("\n"), _TARGET if is_target else None)
            if tag := text.tags.get(start + n):
                line.append(f"/{tag}", _TAG)
            line.append("⟧" if self.marks and is_target and targets[n + 1 : n + 2] != [True] else "")
            line.append("\n" if visible(token).endswith("\n") else "")
        line.rstrip()
        return line

    def print_statistics(self, name: str, one: SetPreview, train: SetPreview | None) -> None:
        """Prints the tables of a set; ``train`` is the set that it must not share samples with."""
        statistics = one.statistics.summary()
        stream = ", the first of a stream" if one.is_endless else ""
        self.console.print(Styled(f"\n── {name}{stream}", "bold"))
        for label in ("rows", "samples"):
            self.console.print(f"{label:{_LABEL}}{statistics[label]:,}")
        texts: dict[str, dict[str, Any]] = statistics["texts"]
        if texts:
            self.console.print("\n".join(_lengths(texts)))
        for label, value, is_warning in self._findings(one, statistics, train):
            style = _WARNING if is_warning else ""
            lines = wrap(visible(value).replace("⏎\n", "⏎"), self.console.width - _LABEL)
            for number, line in enumerate(lines or [""]):
                self.console.print(Styled.assemble(("" if number else label).ljust(_LABEL), (line, style)))
        for text, numbers in texts.items():
            self.console.print(Styled(f"{text or 'samples'}, by the number of tokens", _BETWEEN))
            self.console.print("\n".join(_bars(numbers["histogram"])))

    def _findings(
        self, one: SetPreview, statistics: Mapping[str, Any], train: SetPreview | None
    ) -> Iterator[tuple[str, str, bool]]:
        """Yields the name and value of each line of the table, and whether something may be wrong."""
        remarks = one.remarks
        for source, rows in remarks.get(ROWS, {}).items():
            yield "source", f"{source}: {remarks[USED][source]:,} of {rows:,} rows", False
        for kind in (DROPPED, TRUNCATED, "split"):
            for why, number in remarks.get(kind, {}).items():
                yield kind, f"{number:,}: {why}", True
            if remarks and not remarks.get(kind) and kind != "split":
                yield kind, "none", False
        for label, kind in (("messages", ROLES), ("tools", TOOLS)):
            if counted := remarks.get(kind):
                yield label, ", ".join(f"{number:,} {what}" for what, number in counted.items()), False
        if statistics["fill"] is not None:
            padding = ", the rest is padding" if statistics["fill"] < 1 else ""
            yield "fill of rows", f"{statistics['fill']:.1%}{padding}", False
        if any(text["targets"] is not None for text in statistics["texts"].values()):
            number = statistics["without_targets"]
            yield "samples without targets", f"{number:,}", bool(number)
        if statistics["target_spans"]:
            number, of = statistics["target_spans_without_end_token"], statistics["target_spans"]
            why = f"{number:,} of {of:,}, after which the model does not learn to stop" if number else f"none of {of:,}"
            yield "targets without end token", why, bool(number)
        if statistics["texts"]:
            number = statistics["double_bos"]
            why = " with two beginning-of-text tokens" if number else ""
            yield "texts that begin twice", f"{number:,}{why}", bool(number)
        yield "duplicates", f"{statistics['duplicates']:,}", bool(statistics["duplicates"])
        for times, texts in one.statistics.most_repeated(2):
            if texts:
                yield f"  {times:,} times", self._excerpt(texts[0]), False
        if train is not None:
            shared = len(train.statistics.occurrences.keys() & one.statistics.occurrences.keys())
            yield "also in train", f"{shared:,}", bool(shared)
        for fact, summary in statistics["values"].items():
            yield fact, _write_summary(summary), "not_finite" in summary

    def _excerpt(self, text: PreviewText) -> str:
        """Returns the beginning of a text, or of its targets."""
        ids = text.ids if text.targets is None or not text.targets.any() else text.ids[text.targets]
        words = " ".join("".join(token_texts(self.tokenizer, ids[:64].tolist())).split())
        return words if len(words) <= 48 else f"{words[:47]}…"


def _lengths(texts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table of lengths and targets of each text."""
    rows = [["", *texts]] if any(texts) else []
    for label in ("tokens", "targets", "shortest", "mean", "longest"):
        row = [f"{label} text" if label in ("shortest", "mean", "longest") else label]
        for numbers in texts.values():
            row.append("-" if numbers[label] is None else f"{numbers[label]:,}")
            if label == "targets" and numbers["targets"] is not None and numbers["tokens"]:
                row[-1] += f" ({numbers['targets'] / numbers['tokens']:.0%})"
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][1:]
    for label, *cells in rows:
        if len(cells) > 1:
            cells = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        yield f"{label:{_LABEL}}{'  '.join(cells)}"


def _bars(bins: Sequence[tuple[int, int, int]]) -> Iterator[str]:
    """Yields the lines of a histogram."""
    largest = max(number for _, _, number in bins)
    for first, last, number in bins:
        bar = "█" * -(-number * _BAR // largest)
        yield f"{f'{first:,}-{last:,}':>{_LABEL - 2}}  {bar} {number:,}"


def _write_summary(summary: Mapping[str, Any]) -> str:
    """Returns the statistics of a value as one line."""
    if values := summary.get("values"):
        return ", ".join(f"{value}: {number:,}" for value, number in values.items())
    if "mean" not in summary:
        return "many different values"
    bounds = f"{summary['min']:.4g} to {summary['max']:.4g}, mean {summary['mean']:.4g}"
    not_finite = f", {summary['not_finite']:,} not finite" if "not_finite" in summary else ""
    kinds = " and ".join(list(summary["shapes"])[:2]) + (" ..." if len(summary["shapes"]) > 2 else "")
    return f"{kinds}: {bounds}, standard deviation {summary['standard_deviation']:.4g}{not_finite}"
