"""Errors as a person meets them."""

import traceback

from ostler.model.errors import InvalidSpec, NotFound, Problem


def test_a_traceback_ends_with_the_hint():
    told = "".join(traceback.format_exception_only(NotFound("there is no node n1", hint="ostler node list")))
    assert told == "ostler.model.errors.NotFound: there is no node n1\nhint: ostler node list\n"
    assert str(NotFound("there is no node n1", hint="ostler node list")) == "there is no node n1"


def test_all_mistakes_are_told_and_nothing_is_advised_where_nothing_is_known():
    told = "".join(
        traceback.format_exception_only(InvalidSpec("not valid", [Problem("a", "is missing"), Problem("b", "is no number")]))
    )
    assert told == "ostler.model.errors.InvalidSpec: not valid\n  a: is missing\n  b: is no number\n"
