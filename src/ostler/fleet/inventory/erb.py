"""ERB in files of Kamal: variables of the environment are put in, everything else is refused, and nothing is run. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ostler.model.errors import Problem

_LONGEST = 300  # of an expression that is looked at
_MOST = 2**20  # characters that variables add to a file
_TEXT = r"""(?:"([^"\\#\n]*)"|'([^'\\\n]*)'|([0-9]+))"""
_NAME = r"""["']([A-Za-z_][A-Za-z0-9_]*)["']"""
_INDEX = re.compile(rf"ENV\[\s*{_NAME}\s*\](?:\s*\|\|\s*{_TEXT})?")
_FETCH = re.compile(rf"ENV\.fetch\(?\s*{_NAME}\s*(?:,\s*{_TEXT})?\s*\)?(?:\s*\{{\s*{_TEXT}\s*\}})?")
_WRITABLE = 'ENV["NAME"], ENV["NAME"] || "text", ENV.fetch("NAME") and ENV.fetch("NAME", "text")'


@dataclass(slots=True)
class Rendered:
    """A file's text with its variables in it, on the same lines; `unset` has the variables that are empty, by line."""

    text: str
    problems: list[Problem] = field(default_factory=list)
    unset: dict[int, str] = field(default_factory=dict)


def render(text: str, file: str, env: Mapping[str, str]) -> Rendered:
    """Put the environment's variables in. As in Ruby, `ENV["X"]` is empty where X is not set, and `ENV.fetch("X")` a mistake."""
    done = Rendered("")
    parts: list[str] = []
    end, line, start, size = 0, 1, 0, 0
    while (begin := text.find("<%", end)) >= 0:
        line += text.count("\n", end, begin)
        close = text.find("%>", begin)
        if close < 0:
            done.problems.append(Problem("", "has `<%` without `%>`", file, line))
            break
        code = text[begin + 2 : close]
        start = text.rfind("\n", end, begin) + 1 or start
        parts.append(text[end:begin])
        if "\n" not in code and text[start:begin].lstrip().startswith("#"):
            parts.append(text[begin : close + 2])  # in a comment of YAML
        else:
            parts += [_value(code, file, line, env, done), "\n" * code.count("\n")]
            size += len(parts[-2])
            if size > _MOST:
                done.problems.append(Problem("", f"grows by more than {_MOST} characters of variables", file, line))
                break
        line += code.count("\n")
        start = text.rfind("\n", begin, close) + 1 or start
        end = close + 2
    done.text = "".join([*parts, text[end:]])
    return done


def _value(code: str, file: str, line: int, env: Mapping[str, str], done: Rendered) -> str:
    if code.startswith("#"):
        return ""
    expression = code[1:].removesuffix("-").strip() if code.startswith("=") else ""
    found = (_INDEX.fullmatch(expression) or _FETCH.fullmatch(expression)) if len(expression) <= _LONGEST else None
    if found is None:
        shown = " ".join(code[:_LONGEST].split())
        shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
        message = f"has ERB that would have to be run: `<%{shown}%>`; nothing here is run, and known are {_WRITABLE}"
        done.problems.append(Problem("", message, file, line))
        return ""
    name, *defaults = found.groups()
    value = env.get(name, next((one for one in defaults if one is not None), None))
    if value is None and found.re is _FETCH:
        done.problems.append(Problem("", f"needs the variable {name}, which is not set; export {name}=…", file, line))
    elif not value:
        done.unset[line] = name
    elif "\n" in value or "\r" in value:
        done.problems.append(Problem("", f"has the variable {name} in it, which holds a line break", file, line))
        return ""
    return value or ""
