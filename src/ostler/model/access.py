"""Who may do what: the roles of people, how far each reaches, and which runners each may use."""

from collections.abc import Mapping
from types import MappingProxyType

from ostler.model.enumeration import Word
from ostler.model.manifest import Runner


class Role(Word):
    """What a person's token is for. Roles are no ladder: a viewer sees everybody's jobs and starts none."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    ADMIN = "admin"


class Reach(Word):
    """Over whose things a grant goes."""

    OWN = "own"  # the caller's own jobs; those of others are as if they did not exist
    ALL = "all"


Grants = Mapping[Role, Reach]


def _grants(**reaches: Reach) -> Grants:
    return MappingProxyType({Role(name): reach for name, reach in reaches.items()})


READ = _grants(viewer=Reach.ALL, submitter=Reach.OWN, operator=Reach.ALL, admin=Reach.ALL)  # look at jobs and nodes
WORK = _grants(submitter=Reach.OWN, operator=Reach.ALL, admin=Reach.ALL)  # submit jobs and act on them
RUN = _grants(operator=Reach.ALL, admin=Reach.ALL)  # keep the fleet running
RULE = _grants(admin=Reach.ALL)  # decide who else may do something

# A command to a host's services, and an agent with a budget, are not for everybody who may use a processor.
RUNNERS: Mapping[Role, frozenset[Runner]] = MappingProxyType(
    {
        Role.VIEWER: frozenset(),
        Role.SUBMITTER: frozenset({Runner.CLI, Runner.PYTHON, Runner.SCRIPT, Runner.CONTAINER}),
        Role.OPERATOR: frozenset(Runner),
        Role.ADMIN: frozenset(Runner),
    }
)
