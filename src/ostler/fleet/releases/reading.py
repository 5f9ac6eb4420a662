"""A bundle as the coordinator sees it: read once as it comes, and checked as a host checks it."""

from collections.abc import Mapping
from typing import IO

from ostler.fleet.host import archive
from ostler.fleet.host.refusals import Refused
from ostler.model.errors import InvalidSpec
from ostler.model.release import Release


def read_bundle(bundle: IO[bytes], trusted: Mapping[str, bytes] | None) -> Release:
    """What a whole bundle is, once all of it was read and is as one of the `trusted` keys signed it (None: one that it brings).

    Blocks. Raises InvalidSpec.
    """
    try:
        with archive.opened(bundle, trusted) as (manifest, _, contents):
            for _file in contents.read():
                pass
        while bundle.read(archive.BLOCK):
            pass
    except Refused as exc:
        raise InvalidSpec(exc.message, hint="`ostler release verify` checks a bundle as a host does") from None
    return Release(
        release=manifest.release, digest=manifest.digest, version=manifest.version, commit=manifest.commit, made=manifest.made,
        protocol=manifest.protocol, schema=manifest.schema, platforms=manifest.platforms, signed_by=manifest.signed_by,
        generation=manifest.generation, keys=manifest.keys,
    )  # fmt: skip
