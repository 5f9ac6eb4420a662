"""The releases that the coordinator has: pushed, listed, removed."""

from typing import TYPE_CHECKING

from ostler.cli import output
from ostler.cli.session import Session, open_session
from ostler.model.errors import Conflict, NotFound
from ostler.protocol import routes
from ostler.protocol.messages import ReleaseQuery, ReleaseView

if TYPE_CHECKING:
    from ostler.fleet.releases.store import Release

PUSH_S = 600.0


def push(release: "Release", *, trust: bool, as_json: bool) -> None:
    """Upload a bundle, unless it is there. Raises the error tree."""
    with open_session() as session:
        view = None if trust else _there(session, release.release)
        was_there = view is not None
        if view is None:
            query = ReleaseQuery(digest=release.manifest.digest, trust=trust)
            view = session.upload(routes.PUSH_RELEASE, release.bundle, query=query, timeout_s=PUSH_S, release=release.release)
    if as_json:
        output.print_json(view)
    elif was_there:
        output.say(f"the coordinator has release {view.release}")
    else:
        output.say(
            f"the coordinator has release {view.release} now ({output.size(view.size)}, signed by {', '.join(view.signed_by)})"
        )


def _there(session: Session, release: str) -> ReleaseView | None:
    try:
        view: ReleaseView = session.call(routes.SHOW_RELEASE, release=release)
    except NotFound:
        return None
    return view


def show_all(as_json: bool) -> None:
    """What there is, and whom the coordinator trusts."""
    with open_session() as session:
        page = session.call(routes.LIST_RELEASES)
    if as_json:
        output.print_json(page)
        return
    columns = output.columns("RELEASE|PUSHED|BY?|SIZE>|SCHEMA>?|NODES>|PLATFORMS+")
    rows = [
        (
            one.release, f"{one.pushed_at.astimezone():%Y-%m-%d %H:%M:%S}", one.pushed_by, output.size(one.size), one.schema, one.nodes,
            ", ".join(one.platforms),
        )
        for one in page.items
    ]  # fmt: skip
    output.table(columns, rows, empty="the coordinator has no releases: `ostler release push`")
    if page.trusted:
        output.say(f"trusted release keys: {', '.join(page.trusted)}")


def find(session: Session, which: str | None) -> ReleaseView:
    """One by its id or a beginning of it that no other one has; the newest for None. Raises NotFound."""
    found = session.call(routes.LIST_RELEASES).items
    if not found:
        raise NotFound("the coordinator has no releases", hint="ostler release push")
    fits = [one for one in found if which is None or one.release == which][:1] or [
        one for one in found if one.release.startswith(which or "")
    ]
    if len(fits) != 1:
        if not fits:
            raise NotFound(f"the coordinator has no release {which}", hint=f"ostler release push {which}")
        raise NotFound(f"{len(fits)} releases begin with {which}", hint="ostler release list --pushed")
    one: ReleaseView = fits[0]
    return one


def show_one(which: str | None, as_json: bool) -> None:
    """What the coordinator knows of a release."""
    with open_session() as session:
        view = find(session, which)
    if as_json:
        output.print_json(view)
        return
    output.fields(
        [
            ("release", view.release),
            ("digest", view.digest),
            ("commit", view.commit or "unknown"),
            ("speaks", f"protocol {view.protocol[0]} to {view.protocol[1]}, schema {view.schema}"),
            ("platforms", ", ".join(view.platforms)),
            ("signed by", ", ".join(view.signed_by)),
            ("bundle", f"{output.size(view.size)}, sha256 {view.sha256}"),
            ("pushed", f"{view.pushed_at.astimezone():%Y-%m-%d %H:%M:%S} by {view.pushed_by or 'nobody known'}"),
            ("nodes", str(view.nodes)),
        ]
    )


def prune(keep: int) -> list[str]:
    """Remove all but the newest, and those that nodes run or are asked to run; answers the ids of those that went."""
    gone = []
    with open_session() as session:
        for one in session.call(routes.LIST_RELEASES).items[keep:]:
            if one.nodes:
                continue
            try:
                session.call(routes.REMOVE_RELEASE, release=one.release)
            except Conflict as exc:
                output.note(exc.message)
                continue
            gone.append(one.release)
    return gone
