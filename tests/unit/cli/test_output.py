import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.cli import output

COLUMNS = output.columns("JOB|TITLE~|AGE>")


def test_columns_from_titles() -> None:
    assert output.columns("A|B~|C>") == [
        output.Column("A"),
        output.Column("B", shrink=True),
        output.Column("C", right=True),
    ]


def test_nothing_is_cut_where_no_terminal_is() -> None:
    lines = list(output.layout(COLUMNS, [["j-1", "x" * 200, "3s"]], None))
    assert lines == ["JOB  TITLE" + " " * 195 + "  AGE", "j-1  " + "x" * 200 + "   3s"]


def test_the_widest_column_that_may_gives_way() -> None:
    lines = list(output.layout(COLUMNS, [["j-123456789", "ffmpeg -i in.mp4 out.mp4", "12m"]], 30))
    assert lines == ["JOB          TITLE         AGE", "j-123456789  ffmpeg -i i…  12m"]


def test_what_may_not_be_cut_stands_below_its_row() -> None:
    wrapping = output.columns("NODE|WHY+")
    rows = [["n1", "silent: look at its network and its daemon"], ["n2", "-"]]
    assert list(output.layout(wrapping, rows, 60)) == ["NODE  WHY", "n1    " + rows[0][1], "n2    -"]
    assert list(output.layout(wrapping, rows, 30)) == [
        "NODE",
        "n1",
        "    silent: look at its",
        "    network and its daemon",
        "n2",
    ]


def test_spare_columns_go_before_anything_becomes_unreadable() -> None:
    spare = output.columns("NODE~|POOL?|LOAD?>|SEEN>|WHY~")
    rows = [["node-c2bd487b", "default", "0.10", "3s", "its disk is full"]]
    assert next(iter(output.layout(spare, rows, 60))) == "NODE           POOL     LOAD  SEEN  WHY"
    assert next(iter(output.layout(spare, rows, 48))) == "NODE           POOL     SEEN  WHY"
    assert list(output.layout(spare, rows, 36)) == ["NODE           SEEN  WHY", "node-c2bd487b    3s  its disk is fu…"]


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=5)), min_size=1, max_size=5),
    st.integers(30, 120),
)
def test_a_table_fits_the_terminal_where_it_can(rows: list[tuple[str, str, str]], width: int) -> None:
    cells = [[output.clean(cell) for cell in row] for row in rows]
    fixed = max(3, *(len(row[0]) for row in cells)) + max(3, *(len(row[2]) for row in cells)) + 4
    lines = list(output.layout(COLUMNS, cells, width))
    assert all(len(line) <= max(width, fixed + 6) for line in lines)


def test_empty_cells_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(output.columns("A|B"), [(None, ""), (0, "x")])
    output.table(output.columns("A"), [], empty="no jobs")
    assert capsys.readouterr() == ("A  B\n-  -\n0  x\n", "no jobs\n")


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.paint("done", "done") == "done"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)  # pytest's capture is no terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.paint("done", "done") == "\x1b[32mdone\x1b[0m"
    assert output.paint("other", "other") == "other"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("done", "done") == "done"


@given(st.text())
def test_no_control_character_gets_through(text: str) -> None:
    assert all(c.isprintable() for c in output.clean(text))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12ms"), (1.26, "1.3s"), (59, "59s"), (61, "1m1s"), (3600, "1h"), (90061, "1d1h"), (-3, "0s")],
)
def test_spans(seconds: float, text: str) -> None:
    assert output.span(seconds) == text


def test_ago() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert output.ago(now - timedelta(minutes=3, seconds=20), now) == "3m20s"
    assert output.ago(None, now) is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**60, "1048576.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_no_terminal_obeys_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(map(chr, range(0xA0)))
    output.print_json({"text": text})
    output.print_line({"text": text})
    for line in capsys.readouterr().out.splitlines():
        assert line.isprintable()
        assert json.loads(line) == {"text": text}


def test_json_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"at": datetime(2026, 1, 1, tzinfo=UTC), "text": "ä"})
    assert capsys.readouterr().out == '{"at": "2026-01-01T00:00:00Z", "text": "ä"}\n'
