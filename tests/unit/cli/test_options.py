from pathlib import Path

import pytest
import typer

from ostler.cli.options import folder


def test_an_empty_folder_is_no_current_directory():
    with pytest.raises(typer.BadParameter, match="is the variable that holds it set"):
        folder("")
    assert folder(".") == Path()
