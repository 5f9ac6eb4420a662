"""What the host program answers when it does not do what it was asked."""


class Refused(Exception):
    """The host stays as it is. `code` is for the updater: locked, busy, missing, unfit, untrusted, disk, unit or usage. `message` is one
    line, `details` are more, such as a unit's last words."""

    def __init__(self, code: str, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
