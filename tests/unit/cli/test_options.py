from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

from ostler.cli.options import folder, moment
from ostler.model.manifest import Manifest


def test_an_empty_folder_is_no_current_directory():
    with pytest.raises(typer.BadParameter, match="is the variable that holds it set"):
        folder("")
    assert folder(".") == Path()


def test_a_moment_is_a_time_or_a_while_from_now():
    assert moment("2030-01-31T20:00:00.5+02:00") == "2030-01-31T20:00:00.5+02:00"
    before = datetime.now(UTC)
    start = Manifest(not_before=moment("90s")).start
    assert start is not None
    assert before + timedelta(seconds=90) <= start <= datetime.now(UTC) + timedelta(seconds=90)
    for text in ("tomorrow", "", "2030-01-31", "2030-01-31T20:00:00", "1e99h"):
        with pytest.raises(typer.BadParameter, match="is neither a time with its offset from UTC"):
            moment(text)
