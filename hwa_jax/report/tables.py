"""Tables of text: markdown for files, rich for terminals, and how numbers are written."""

import math
import sys
from collections.abc import Sequence
from typing import TextIO

from hwa_jax.report.statistics import Interval

NOT_AVAILABLE = "–"


def format_interval(interval: Interval | None, digits: int = 2, *, signed: bool = False) -> str:
    """Writes ``mean ± half_width``; a single value says so, one that has no interval stands alone, None and nan are a dash.

    Example:
        >>> format_interval(Interval(91.234, 0.456, 5))
        '91.23 ± 0.46'
        >>> format_interval(Interval(0.5, float("nan"), 1), signed=True)
        '+0.50 (n=1)'
    """
    if interval is None or math.isnan(interval.mean):
        return NOT_AVAILABLE
    mean = format_number(interval.mean, digits, signed=signed)
    if interval.n == 1:
        return f"{mean} (n=1)"
    if math.isnan(interval.half_width):
        return mean
    return f"{mean} ± {format_number(interval.half_width, digits)}"


def format_number(number: float, digits: int = 2, *, signed: bool = False) -> str:
    """Writes a number with fixed digits, thousands separated; nan is a dash.

    Example:
        >>> format_number(12345.678, 1), format_number(0.25, signed=True)
        ('12,345.7', '+0.25')
    """
    if math.isnan(number):
        return NOT_AVAILABLE
    rounded = round(number, digits) + 0.0  # -0.001 is written 0.00, never -0.00
    return f"{rounded:{'+' if signed else ''},.{digits}f}"


def format_bytes(number: float) -> str:
    """Writes a number of bytes in decimal units, three significant digits.

    Example:
        >>> format_bytes(0), format_bytes(1234567)
        ('0 B', '1.23 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            break
        number /= 1000
    else:
        unit = "TB"
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"


def format_seconds(number: float) -> str:
    """Writes a time in the unit that suits it, three significant digits.

    Example:
        >>> format_seconds(0.0123), format_seconds(99.0), format_seconds(5400), format_seconds(400_000)
        ('12.3 ms', '99 s', '1.5 h', '4.63 days')
    """
    for unit, seconds, limit in (("ms", 1e-3, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 3600.0), ("h", 3600.0, 172_800.0)):
        if number < limit:
            return f"{number / seconds:.3g} {unit}"
    return f"{number / 86_400:,.3g} days" if number < 86_400_000 else f"{number / 86_400:,.0f} days"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A markdown table whose columns also line up when read as plain text.

    Args:
        header: one title per column.
        rows: as many cells per row; pipes are escaped, line breaks become spaces.
        align: one letter per column, "l" or "r".

    Returns:
        The lines of the table, without a final line break.

    Raises:
        ValueError: a row or ``align`` has not one entry per column, or another letter.

    Example:
        >>> print(markdown_table(["method", "%"], [["plain", "9.5"], ["hwa", "10.5"]], "lr"))
        | method |    % |
        | :----- | ---: |
        | plain  |  9.5 |
        | hwa    | 10.5 |
    """
    _check(header, rows, align)
    lines = [[_escape(cell) for cell in line] for line in (header, *rows)]
    widths = _widths(lines, minimum=2)
    rule = [
        ":" + "-" * (width - 1) if side == "l" else "-" * (width - 1) + ":"
        for width, side in zip(widths, align)
    ]
    padded = [_pad(line, widths, align) for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str,
    *,
    title: str = "",
    file: TextIO | None = None,
) -> None:
    """Prints a table: with rich on a terminal, as aligned plain text anywhere else.

    Args:
        header: one title per column.
        rows: as many cells per row.
        align: one letter per column, "l" or "r".
        title: a line above the table, left out when empty.
        file: where to print; standard output by default.

    Raises:
        ValueError: a row or ``align`` has not one entry per column, or another letter.

    Example:
        >>> print_table(["method", "%"], [["plain", "9.5"], ["hwa", "10.5"]], "lr")
        method     %
        plain    9.5
        hwa     10.5
    """
    _check(header, rows, align)
    file = sys.stdout if file is None else file
    if file.isatty():
        _print_rich(header, rows, align, title, file)
        return
    lines = [header, *rows]
    widths = _widths(lines)
    if title:
        print(title, file=file)
    for line in lines:
        print("  ".join(_pad(line, widths, align)).rstrip(), file=file)


def print_metrics(metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints accuracy, NLL and ECE by weights and split.

    Args:
        metrics: weights -> split -> {"accuracy": 0..1, "nll": nats, "ece": 0..1}.

    Example:
        >>> print_metrics({"hwa": {"test": {"accuracy": 0.975, "nll": 0.1, "ece": 0.01}}})
        weights  split  accuracy %     NLL     ECE
        hwa      test        97.50  0.1000  0.0100
    """
    rows = [
        [name, split, f"{100 * m['accuracy']:.2f}", f"{m['nll']:.4f}", f"{m['ece']:.4f}"]
        for name, splits in metrics.items() for split, m in splits.items()
    ]
    print_table(["weights", "split", "accuracy %", "NLL", "ECE"], rows, "llrrr")


def _print_rich(header, rows, align, title, file):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for name, side in zip(header, align):
        table.add_column(Text(name), justify="left" if side == "l" else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=file).print(table)


def _check(header, rows, align):
    if set(align) - {"l", "r"}:
        raise ValueError(f"align={align!r}: one letter per column, 'l' or 'r'")
    for name, line in (("align", align), *((f"row {i}", row) for i, row in enumerate(rows))):
        if len(line) != len(header):
            raise ValueError(f"{name} has {len(line)} entries, the header has {len(header)}")


def _escape(cell):
    return " ".join(cell.split()).replace("|", r"\|")


def _widths(lines, minimum=1):
    return [max(minimum, *(len(cell) for cell in column)) for column in zip(*lines)]


def _pad(line, widths, align):
    return [
        cell.ljust(width) if side == "l" else cell.rjust(width)
        for cell, width, side in zip(line, widths, align)
    ]
