"""Which command stands for which."""

from ostler.coordinator.placement.commands import Waiting, outdated
from ostler.model.manifest import Requirements
from ostler.model.service import Verb


def waiting(seq: int, verb: str, target: str = "n1", *, service: str = "miner", since: int | None = None, **need) -> Waiting:
    return Waiting(
        seq=seq, job_id=f"j{seq}", service=service, verb=Verb(verb), target=target, requirements=Requirements(**need),
        since=seq if since is None else since,
    )  # fmt: skip


def test_the_newest_wish_about_a_service_of_a_node_stands_for_those_before():
    some = [waiting(1, "stop"), waiting(2, "status"), waiting(3, "start"), waiting(4, "restart"), waiting(5, "status")]
    assert {old: new.seq for old, new in outdated(some).items()} == {1: 4, 3: 4}


def test_other_nodes_services_and_choices_stand_beside():
    assert (
        outdated([waiting(1, "stop"), waiting(2, "stop", "n2"), waiting(3, "stop", service="web"), waiting(4, "stop", "")]) == {}
    )
    tagged = [waiting(1, "stop", "", tags=("a",)), waiting(2, "stop", "", pool="p"), waiting(3, "start", "", tags=("a",))]
    assert {old: new.seq for old, new in outdated(tagged).items()} == {1: 3}


def test_when_it_was_to_be_carried_out_counts_before_when_it_was_given():
    planned, meanwhile = waiting(1, "stop", since=100), waiting(2, "start", since=50)
    assert {old: new.seq for old, new in outdated([planned, meanwhile]).items()} == {2: 1}
