"""Tables against golden strings, in files and on terminals."""

import io
import math

import pytest

from hwa_jax.report.statistics import Interval
from hwa_jax.report.tables import (
    format_bytes,
    format_interval,
    format_number,
    markdown_table,
    print_table,
)

HEADER = ["method", "accuracy, %", "n"]
ROWS = [["plain", "86.90 ± 0.21", "5"], ["HWA | K=2", "88.41 ± 0.18", "12"], ["", "–", "5"]]

GOLDEN_MARKDOWN = """\
| method     |  accuracy, % |  n |
| :--------- | -----------: | -: |
| plain      | 86.90 ± 0.21 |  5 |
| HWA \\| K=2 | 88.41 ± 0.18 | 12 |
|            |            – |  5 |"""

GOLDEN_PLAIN = """\
Results
method      accuracy, %   n
plain      86.90 ± 0.21   5
HWA | K=2  88.41 ± 0.18  12
                      –   5
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_golden_markdown():
    assert markdown_table(HEADER, ROWS, "lrr") == GOLDEN_MARKDOWN


def test_golden_plain_text_where_there_is_no_terminal():
    file = io.StringIO()
    print_table(HEADER, ROWS, "lrr", title="Results", file=file)
    assert file.getvalue() == GOLDEN_PLAIN


def test_terminal_shows_the_same_cells_and_no_markup_is_interpreted(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    file = Terminal()
    print_table(["method", "[bold]"], [["[red]x[/red]", "1"]], "lr", title="[i]Results", file=file)
    shown = file.getvalue()
    for text in ("method", "[bold]", "[red]x[/red]", "[i]Results"):
        assert text in shown
    assert "─" in shown or "━" in shown


def test_line_break_in_a_cell_does_not_break_the_table():
    table = markdown_table(["a"], [["one\ntwo"]], "l")
    assert table.splitlines()[-1] == "| one two |"


def test_table_without_rows_has_header_and_rule():
    assert markdown_table(["a", "b"], [], "lr") == "| a  |  b |\n| :- | -: |"


def test_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="row 1 has 1 entries, the header has 2"):
        markdown_table(["a", "b"], [["1", "2"], ["1"]], "ll")


@pytest.mark.parametrize("align", ["l", "lc", "lll"])
def test_wrong_alignment_is_refused(align):
    with pytest.raises(ValueError, match="align"):
        print_table(["a", "b"], [["1", "2"]], align)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(91.236, 0.454, 5), "91.24 ± 0.45"),
        (Interval(91.236, math.nan, 1), "91.24 (n=1)"),
        (Interval(91.236, math.nan, 3), "91.24"),
        (Interval(math.nan, math.nan, 3), "–"),
        (None, "–"),
    ],
)
def test_format_interval(interval, expected):
    assert format_interval(interval) == expected


def test_signed_interval_signs_the_mean_only():
    assert format_interval(Interval(0.5, 0.25, 5), signed=True) == "+0.50 ± 0.25"
    assert format_interval(Interval(-0.5, 0.25, 5), signed=True) == "-0.50 ± 0.25"


def test_number_that_rounds_to_zero_has_no_minus():
    assert format_number(-0.001) == "0.00"
    assert format_number(-0.001, signed=True) == "+0.00"
    assert format_number(-0.006) == "-0.01"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (123_456_789, "123 MB"),
        (2.5e12, "2.5 TB"),
        (5e15, "5,000 TB"),
    ],
)
def test_format_bytes(number, expected):
    assert format_bytes(number) == expected
