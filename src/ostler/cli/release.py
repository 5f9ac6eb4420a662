"""`ostler release`: what hosts get, as one signed file each, made on an operator's machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostler.cli import output
from ostler.cli.options import JsonOption, folder
from ostler.cli.progress import progress

if TYPE_CHECKING:
    from ostler.assembly.releases import ReleasePlaces
    from ostler.fleet.releases.store import Release

app = typer.Typer(no_args_is_help=True, help="Build the releases that hosts get, and look after them.")
keys_app = typer.Typer(no_args_is_help=True, help="Look after the keys that sign releases.")
app.add_typer(keys_app, name="key")

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="DIR", parser=folder, help="Where the releases are. Default: ~/.local/share/ostler/releases."
    ),
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="DIR", parser=folder, help="Where the release keys are. Default: ~/.local/share/ostler/release-keys."
    ),
]
PushedOption = Annotated[bool, typer.Option("--pushed", help="Those that the coordinator has, in place of this machine's.")]
WhichArgument = Annotated[
    str | None, typer.Argument(metavar="RELEASE", help="Its id, or the beginning of it; the newest if absent.")
]


@app.command()
def build(
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="DIR", parser=folder, help="A checkout of Ostler. Default: the program that runs this command."
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform",
            metavar="PLATFORM",
            help="For which hosts, such as cp311-aarch64; may be repeated. Default: Debian 12 (cp311-x86_64), Ubuntu 24.04 "
            "(cp312-x86_64) and Debian 13 (cp313-x86_64).",
        ),
    ] = None,
    store: StoreOption = None,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a release: the application, all libraries for each platform, unit files, in one signed file.

    Libraries are fetched once, by this machine's pip and the hashes that are pinned; hosts need no package registry. The same input
    gives the same release. The first build makes a release key.
    """  # fmt: skip
    from ostler.fleet.releases.build import build as build_release
    from ostler.fleet.releases.dependencies import DEFAULTS, Platform
    from ostler.fleet.releases.keys import open_keys
    from ostler.fleet.releases.store import ReleaseStore

    places = _places(store, keys)
    platforms = sorted({Platform.parse(one) for one in platform or DEFAULTS})
    signing = open_keys(places.keys)
    if not signing.trusted:
        signing = signing.with_new()
        output.note(
            f"note: made the release key {next(iter(signing.signing))} in {places.keys}; keep a copy where nobody else reads"
        )
    with progress() as tell:
        made = build_release(
            ReleaseStore(places.store),
            signing,
            platforms=platforms,
            cache=places.cache,
            source=source and source.absolute(),
            tell=tell,
        )
    if as_json:
        output.print_json(_facts(made))
        return
    output.say(f"release {made.release}: {output.size(made.size)}, for {', '.join(made.manifest.platforms)}")
    output.say(str(made.bundle))


@app.command("list")
def list_releases(store: StoreOption = None, pushed: PushedOption = False, as_json: JsonOption = False) -> None:
    """Show the releases, the newest first."""
    if pushed:
        from ostler.cli import release_pushed

        release_pushed.show_all(as_json)
        return
    from ostler.cli import exits
    from ostler.fleet.releases.store import ReleaseStore

    place = ReleaseStore(_places(store).store)
    found, wrong = place.releases()
    if as_json:
        output.print_json([_facts(one) for one in found])
    else:
        columns = output.columns("RELEASE|MADE|SIZE>|SCHEMA>?|COMMIT?|PLATFORMS+")
        rows = [
            (
                one.release, f"{one.made_at.astimezone():%Y-%m-%d %H:%M:%S}", output.size(one.size), one.manifest.schema,
                _short(one.manifest.commit), ", ".join(one.manifest.platforms),
            )
            for one in found
        ]  # fmt: skip
        output.table(columns, rows, empty=f"no releases in {place.directory}: `ostler release build`")
    for one in wrong:
        output.note(exits.describe(one))
    if wrong:
        raise exits.Exit(exits.REJECTED)


@app.command()
def show(
    which: WhichArgument = None, store: StoreOption = None, pushed: PushedOption = False, as_json: JsonOption = False
) -> None:
    """Show what is in a release."""
    if pushed:
        from ostler.cli import release_pushed

        release_pushed.show_one(which, as_json)
        return
    from ostler.fleet.releases.store import ReleaseStore

    found = ReleaseStore(_places(store).store).find(which)
    manifest = found.manifest
    if as_json:
        files = [
            {"path": one.path, "sha256": one.sha256, "size": one.size, "platforms": one.platforms}
            for one in manifest.files.values()
        ]
        output.print_json({**_facts(found), "files": files})
        return
    output.fields(
        [
            ("release", found.release),
            ("digest", manifest.digest),
            ("version", manifest.version),
            ("commit", manifest.commit or "unknown"),
            ("speaks", f"protocol {manifest.protocol[0]} to {manifest.protocol[1]}, schema {manifest.schema}"),
            ("platforms", ", ".join(manifest.platforms)),
            ("signed by", ", ".join(manifest.signed_by)),
            ("trusts from then on", ", ".join(sorted(manifest.keys))),
            ("file", f"{found.bundle} ({output.size(found.size)})"),
        ]
    )
    rows = [
        (one.path, output.size(one.size), one.sha256[:12], ", ".join(one.platforms) or "all") for one in manifest.files.values()
    ]
    output.table(output.columns("FILE~|SIZE>|SHA256?|FOR+"), rows, empty="no files")


@app.command()
def verify(
    which: Annotated[
        str | None, typer.Argument(metavar="RELEASE|FILE", help="An id, or a bundle's file; the newest release if absent.")
    ] = None,
    store: StoreOption = None,
    keys: KeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a release as a host does: signed by a trusted key, every file there and as it was, nothing else in it.

    Exits with 3 where it is not.
    """
    from ostler.fleet.releases.keys import open_keys
    from ostler.fleet.releases.store import ReleaseStore
    from ostler.fleet.releases.store import verify as verify_bundle

    places = _places(store, keys)
    is_file = which is not None and (os.sep in which or Path(which).is_file())
    bundle = Path(which) if which is not None and is_file else ReleaseStore(places.store).find(which).bundle
    manifest = verify_bundle(bundle, open_keys(places.keys).trusted)
    if as_json:
        output.print_json(
            {"release": manifest.release, "digest": manifest.digest, "signed_by": list(manifest.signed_by), "verified": True}
        )
        return
    output.say(f"release {manifest.release} is whole: {len(manifest.files)} files, signed by {', '.join(manifest.signed_by)}")
    output.say(f"digest {manifest.digest}")


@app.command()
def push(
    which: WhichArgument = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="As an admin: the coordinator is to believe this release's keys from now on. Needed once."),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a release to the coordinator, from which nodes that have no SSH get it: `ostler rollout start`.

    The coordinator checks it as a host does, by the release keys that it trusts.
    """
    from ostler.cli import release_pushed
    from ostler.fleet.releases.store import ReleaseStore

    release_pushed.push(ReleaseStore(_places(store).store).find(which), trust=trust, as_json=as_json)


@app.command()
def prune(
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=1, help="How many of the newest stay.")],
    store: StoreOption = None,
    pushed: PushedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove all but the newest releases from this machine. What hosts have is not touched.

    Of those that the coordinator has (`--pushed`), what nodes run or are asked to run stays, too.
    """
    from ostler.fleet.releases.store import ReleaseStore

    if pushed:
        from ostler.cli import release_pushed

        gone = release_pushed.prune(keep)
    else:
        gone = ReleaseStore(_places(store).store).prune(keep)
    if as_json:
        output.print_json({"removed": gone})
    else:
        output.say(f"removed {', '.join(gone) or 'nothing'}")


@keys_app.command("new")
def new_key(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Make a release key. Releases are signed by all keys that are there, so hosts that know only the old one learn the new one."""
    from ostler.fleet.releases.keys import open_keys

    before = open_keys(_places(None, keys).keys)
    made = next(iter(set(before.with_new().trusted) - set(before.trusted)))
    if as_json:
        output.print_json({"key": made})
        return
    output.say(f"release key {made}")
    if before.trusted:
        output.say("it signs from the next build on; retire the old one once every host runs a release that both signed")


@keys_app.command("list")
def list_keys(keys: KeysOption = None, as_json: JsonOption = False) -> None:
    """Show the release keys: their ids, and whether they can sign here."""
    from ostler.fleet.releases.keys import open_keys

    found = open_keys(_places(None, keys).keys)
    if as_json:
        output.print_json([{"key": name, "signs": name in found.signing} for name in sorted(found.trusted)])
        return
    rows = [(name, "yes" if name in found.signing else "no") for name in sorted(found.trusted)]
    output.table(output.columns("KEY|SIGNS HERE"), rows, empty="no release keys")


@keys_app.command("retire")
def retire_key(
    name: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")], keys: KeysOption = None, as_json: JsonOption = False
) -> None:
    """Remove a release key: it signs no more, and a host forgets it with the next release that it gets."""
    from ostler.fleet.releases.keys import open_keys

    left = open_keys(_places(None, keys).keys).without(name)
    if as_json:
        output.print_json({"retired": name, "left": sorted(left.trusted)})
    else:
        output.say(f"release key {name} is retired; {', '.join(sorted(left.trusted))} stays")


def _places(store: Path | None = None, keys: Path | None = None) -> "ReleasePlaces":
    from ostler.assembly.releases import release_places

    return release_places(os.environ, store=store and store.absolute(), keys=keys and keys.absolute())


def _short(commit: str | None) -> str:
    if commit is None:
        return "-"
    head, _, changed = commit.partition("+")
    return head[:12] + ("+" if changed else "")


def _facts(found: "Release") -> dict[str, Any]:
    manifest = found.manifest
    return {
        "release": found.release, "version": manifest.version, "commit": manifest.commit, "protocol": list(manifest.protocol),
        "schema": manifest.schema, "platforms": list(manifest.platforms), "size": found.size, "made_at": found.made_at,
        "digest": manifest.digest, "bundle": str(found.bundle), "signed_by": list(manifest.signed_by), "keys": sorted(manifest.keys),
    }  # fmt: skip
