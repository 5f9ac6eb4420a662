"""A task module that says what of it is for others."""

__all__ = ["offered"]


def offered():
    return hidden()


def hidden():
    return "offered"
