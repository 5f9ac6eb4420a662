"""What a declaration of services must be beyond its types. Its names end in a polkit rule and in calls to systemd."""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from ostler.model.errors import Problem
from ostler.model.manifest import NAME
from ostler.node.config import MetricsConfig, ProbeConfig, ServiceConfig
from ostler.node.services.paths import steps

UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.service", re.ASCII)
OWN = re.compile(r"ostler-.*", re.ASCII)
MAX_SERVICES = 64
MAX_PROBES = 16
MAX_VALUES = 32


def service_problems(services: Mapping[str, ServiceConfig]) -> Iterator[Problem]:
    """Every mistake, with its path in the configuration."""
    if len(services) > MAX_SERVICES:
        yield Problem("services", f"are {len(services)}; a node declares at most {MAX_SERVICES}")
    units: dict[str, str] = {}
    for name, one in services.items():
        at = f"services.{name}"
        if not NAME.fullmatch(name):
            yield Problem("services", f"{name!r} is no name: 1 to 63 letters, digits, '.', '_' or '-'")
        yield from _unit_problems(at, one.unit)
        if one.unit in units:
            yield Problem(f"{at}.unit", f"is {one.unit}, which services.{units[one.unit]} has already")
        units.setdefault(one.unit, name)
        yield from _binary_problems(at, one)
        yield from _within(f"{at}.grace", one.grace, 0, 3600)
        if not 1 <= one.restart.limit <= 1000:
            yield Problem(f"{at}.restart.limit", f"must be from 1 to 1000, not {one.restart.limit}")
        if len(one.health) > MAX_PROBES:
            yield Problem(f"{at}.health", f"are {len(one.health)}; a service has at most {MAX_PROBES} probes")
        for i, probe in enumerate(one.health):
            yield from _probe_problems(f"{at}.health[{i}]", probe)
        if one.metrics is not None:
            yield from _metrics_problems(f"{at}.metrics", one.metrics)


def _unit_problems(at: str, unit: str) -> Iterator[Problem]:
    if not UNIT.fullmatch(unit):
        yield Problem(
            f"{at}.unit",
            f"{unit!r} must be the name of a unit such as xmrig.service: letters, digits, '.', '_' and '-', no instance",
        )
    elif OWN.fullmatch(unit):
        yield Problem(f"{at}.unit", f"is {unit}: the node's own units are for `ostler fleet`")


def _binary_problems(at: str, one: ServiceConfig) -> Iterator[Problem]:
    if one.binary is None:
        for name in ("candidates", "version"):
            if getattr(one, name):
                yield Problem(f"{at}.{name}", "says nothing without `binary`, the path that the unit expects")
    for where, path in (("binary", one.binary), *((f"candidates[{i}]", path) for i, path in enumerate(one.candidates))):
        if path is not None and not _is_plain(path):
            yield Problem(f"{at}.{where}", "must be an absolute path without '..'")
    yield from _pattern(f"{at}.version", one.version)


def _probe_problems(at: str, probe: ProbeConfig) -> Iterator[Problem]:
    kinds = [name for name in ("http", "tcp", "command", "log") if getattr(probe, name)]
    if len(kinds) != 1:
        said = f"has {' and '.join(kinds)}" if kinds else "asks nothing"
        yield Problem(at, f"{said}; a probe has exactly one of http, tcp, command and log")
    if probe.http is not None:
        yield from _url_problems(f"{at}.http", probe.http)
    if probe.tcp is not None and parse_address(probe.tcp) is None:
        yield Problem(f"{at}.tcp", "must be HOST:PORT of this machine, such as 127.0.0.1:3333")
    if probe.command and not (_is_plain(Path(probe.command[0])) and all("\0" not in word for word in probe.command)):
        yield Problem(f"{at}.command", "must begin with an absolute path without '..'")
    yield from _pattern(f"{at}.log", probe.log)
    yield from _within(f"{at}.interval", probe.interval, 1, 3600)
    yield from _within(f"{at}.timeout", probe.timeout, 0.1, 60)
    for name in ("failures", "successes"):
        if not 1 <= getattr(probe, name) <= 100:
            yield Problem(f"{at}.{name}", f"must be from 1 to 100, not {getattr(probe, name)}")


def _metrics_problems(at: str, metrics: MetricsConfig) -> Iterator[Problem]:
    yield from _url_problems(f"{at}.url", metrics.url)
    yield from _within(f"{at}.interval", metrics.interval, 1, 3600)
    if not 1 <= len(metrics.values) <= MAX_VALUES:
        yield Problem(f"{at}.values", f"must be 1 to {MAX_VALUES} names with their paths")
    for name, path in metrics.values.items():
        if not NAME.fullmatch(name):
            yield Problem(f"{at}.values", f"{name!r} is no name: 1 to 63 letters, digits, '.', '_' or '-'")
        try:
            steps(path)
        except ValueError as exc:
            yield Problem(f"{at}.values.{name}", str(exc))


def _url_problems(at: str, url: str) -> Iterator[Problem]:
    if parse_url(url) is None:
        yield Problem(at, "must be an http:// URL of this machine, such as http://127.0.0.1:8080/2/summary")


def parse_url(url: str) -> tuple[str, int, str] | None:
    """(host, port, path with query) of a URL on loopback; None for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        return None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    good = parts.scheme == "http" and is_loopback(parts.hostname or "") and parts.username is None and target.isascii()
    if not good or not target.isprintable() or " " in target:
        return None
    return parts.hostname or "", port, target


def parse_address(text: str) -> tuple[str, int] | None:
    """(host, port) on loopback; None for anything else."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return None
    bare = not (parts.path or parts.query or parts.fragment or parts.username)
    return (parts.hostname or "", port) if port and bare and is_loopback(parts.hostname or "") else None


def is_loopback(host: str) -> bool:
    """Whether a name or address is this very machine's."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_plain(path: Path) -> bool:
    return path.is_absolute() and ".." not in path.parts and str(path).isprintable()


def _pattern(at: str, pattern: str | None) -> Iterator[Problem]:
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except re.error as exc:
        yield Problem(at, f"is no regular expression: {exc}")


def _within(at: str, value: timedelta, least_s: float, most_s: float) -> Iterator[Problem]:
    if not least_s <= value.total_seconds() <= most_s:
        yield Problem(at, f"must be from {least_s:g}s to {most_s:g}s, not {value.total_seconds():g}s")
