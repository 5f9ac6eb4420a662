"""From the address of a place of backups to the place."""

from pathlib import Path

from ostler.coordinator.config import S3_SCHEME
from ostler.coordinator.upkeep.places.directory import DirectoryPlace
from ostler.coordinator.upkeep.places.port import Place


def open_place(address: str | Path) -> Place:
    """The place of that address, a directory's path or s3://BUCKET/PREFIX; nothing is looked at yet. Raises InvalidSpec."""
    if str(address).startswith(S3_SCHEME):
        from ostler.coordinator.upkeep.places.s3 import S3Place  # its client costs 10 MB, which nobody else shall pay

        return S3Place.at(str(address))
    return DirectoryPlace(Path(address))
