"""What a run left behind, read without any code of the product: tables, journals of jobs, records of callers and lines, files."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(slots=True)
class Execution:
    """One process that really ran, by its own words: times in seconds since boot; `code` is None where it did not come to its end."""

    key: str  # the plan's number, and for an array the index
    job_id: str
    attempt: int
    nonce: str
    began: float
    place: str
    ended: float | None = None
    code: int | None = None
    told: dict[str, str] = field(default_factory=dict)

    @property
    def node(self) -> str:
        """On whose disk it ran."""
        return next((part.removesuffix(".jobs") for part in Path(self.place).parts if part.endswith(".jobs")), "?")


@dataclass(slots=True)
class Trouble:
    """One fault as it was really done."""

    kind: str
    target: str
    began: float
    ended: float
    note: str | None


class Evidence:
    """One directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.run: Row = json.loads((place / "run.json").read_text())
        self.submissions = self.lines("plan")
        self.plans: dict[int, Row] = {plan["number"]: plan for one in self.submissions for plan in one["plans"]}
        self.history, self.watched = self.lines("history"), self.lines("watched")
        self.heard, self.served = self.lines("heard"), self.lines("served")
        self.census: Row = json.loads((place / "census.json").read_text()) if (place / "census.json").exists() else {}
        with closing(sqlite3.connect(self.database)) as db:
            db.row_factory = sqlite3.Row
            self.problems = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
            self.problems += [f"foreign key: {tuple(row)}" for row in db.execute("PRAGMA foreign_key_check")]
            self.jobs = {row["job_id"]: dict(row) for row in db.execute("SELECT * FROM jobs")}
            ids = {row["seq"]: name for name, row in self.jobs.items()}
            self.attempts: dict[tuple[str, int], Row] = {
                (ids[row["job_seq"]], row["attempt"]): dict(row) for row in db.execute("SELECT * FROM attempts")
            }
            self.events: list[Row] = []
            for row in db.execute("SELECT * FROM events ORDER BY id"):
                self.events.append({**dict(row), "job_id": ids.get(row["job_seq"])})
            self.artifacts: defaultdict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
            for row in db.execute("SELECT * FROM artifacts"):
                self.artifacts[ids[row["job_seq"]], row["attempt"]][row["path"]] = dict(row)
            self.log_ends: defaultdict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
            for row in db.execute("SELECT * FROM logs"):
                self.log_ends[ids[row["job_seq"]], row["attempt"]][row["stream"]] = dict(row)
            self.contents: dict[str, bytes] = {row["sha256"]: bytes(row["data"]) for row in db.execute("SELECT * FROM contents")}
            self._ids = ids

    @property
    def database(self) -> Path:
        """The coordinator's tables, as SQLite: its own file, or a copy of all rows of another database."""
        copied = self.place / "tables.db"
        return copied if copied.exists() else self.place / "evidence" / "coordinator.data" / "ostler.db"

    def lines(self, name: str) -> list[Row]:
        """One record."""
        path = self.place / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def plan(self, job_id: str) -> Row | None:
        """What a job was planned to be."""
        labels = json.loads(self.jobs[job_id]["labels"]) if job_id in self.jobs else {}
        number = labels.get("chaos")
        return None if number is None else self.plans.get(int(number))

    @cached_property
    def of_plan(self) -> dict[int, list[str]]:
        """The jobs that there are of each plan."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        for job_id in self.jobs:
            if (plan := self.plan(job_id)) is not None:
                found[plan["number"]].append(job_id)
        return dict(found)

    @cached_property
    def acknowledged(self) -> dict[int, list[str]]:
        """The ids that submitters were told, by plan."""
        return {
            int(number): ids
            for one in self.history
            if one.get("op") == "submit" and one["event"] == "acknowledged"
            for number, ids in one["jobs"].items()
        }

    @cached_property
    def timelines(self) -> dict[str, list[Row]]:
        """The events of each job, first to last."""
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for one in self.events:
            if one["job_id"] is not None:
                found[one["job_id"]].append(one)
        return dict(found)

    @cached_property
    def executions(self) -> list[Execution]:
        """All that ran, in the order in which each began."""
        found: dict[tuple[str, str, str], Execution] = {}
        for file in sorted((self.place / "journals").iterdir()):
            for line in file.read_text().splitlines():
                word, job_id, attempt, nonce, up, *rest = line.split(" ", 5)
                key = (file.name, nonce, attempt)
                if word == "begin":
                    found[key] = Execution(file.name, job_id, int(attempt), nonce, float(up), rest[0])
                elif word == "end":
                    found[key].ended, found[key].code = float(up), int(rest[0])
                else:
                    found[key].told[word] = rest[0].split()[0]
        return sorted(found.values(), key=lambda one: one.began)

    @cached_property
    def ran(self) -> dict[tuple[str, int], list[Execution]]:
        """Executions by attempt."""
        found: defaultdict[tuple[str, int], list[Execution]] = defaultdict(list)
        for one in self.executions:
            found[one.job_id, one.attempt].append(one)
        return dict(found)

    @cached_property
    def troubles(self) -> list[Trouble]:
        """All faults; one without an end lasted to the end."""
        open_: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
        found = []
        for one in self.lines("faults"):
            key = (one["kind"], one["target"], one["at"])
            if one["fault"] == "begin":
                open_[key].append(one)
            else:
                found.append(Trouble(one["kind"], one["target"], open_[key].pop(0)["t"], one["t"], one["note"]))
        found += [Trouble(one["kind"], one["target"], one["t"], float("inf"), None) for some in open_.values() for one in some]
        return found

    def logs(self) -> Iterator[tuple[tuple[str, int], str, list[tuple[int, bytes]]]]:
        """The stored pieces of each stream: (attempt, stream, [(start, bytes)])."""
        with closing(sqlite3.connect(self.database)) as db:
            before: tuple[Any, ...] | None = None
            pieces: list[tuple[int, bytes]] = []
            for seq, attempt, stream, start, data in db.execute(
                "SELECT job_seq, attempt, stream, start, data FROM log_chunks ORDER BY job_seq, attempt, stream, start"
            ):
                place = (seq, attempt, stream)
                if before is not None and place != before:
                    yield (self._ids[before[0]], before[1]), before[2], pieces
                    pieces = []
                before = place
                pieces.append((start, bytes(data)))
            if before is not None:
                yield (self._ids[before[0]], before[1]), before[2], pieces

    def content(self, sha256: str) -> bytes | None:
        """The bytes of an artifact: small ones stand in the tables, larger ones on a shelf by the beginning of their name."""
        file = self.place / "evidence" / "coordinator.data" / "artifacts" / "objects" / sha256[:2] / sha256[2:]
        return file.read_bytes() if file.exists() else self.contents.get(sha256)

    def undelivered(self) -> Iterator[str]:
        """What the nodes' own journals still hold."""
        for file in sorted((self.place / "evidence").glob("*.state/journal.db")):
            with closing(sqlite3.connect(file)) as db:
                for job_id, attempt in db.execute("SELECT job_id, attempt FROM attempts"):
                    yield f"{file.parent.name.removesuffix('.state')} still holds {job_id}/{attempt}"
