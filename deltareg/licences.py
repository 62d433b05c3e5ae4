"""Licences: which are allowed, and what follows for an output from those of its parents.

No legal advice: what a table can tell of the licences' own words, from the identifiers that publishers gave. Sources of
the rules, named where they are used:

- FSF: "Various Licenses and Comments about Them" (gnu.org/licenses/license-list.html), and the compatibility matrix of
  the FAQ (gnu.org/licenses/gpl-faq.html#AllCompatibility).
- CC: "Compatible Licenses" (creativecommons.org/compatiblelicenses) and the remix chart of the FAQ
  (creativecommons.org/faq, "Can I combine material under different Creative Commons licenses in my work?").
- The texts of the licences themselves, by section.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from deltareg.errors import LicenceRefused

__all__ = ["DerivedLicence", "LicenceConflict", "derive", "is_allowed", "refuse_conflicts"]

Value = TypeVar("Value")
Choice = frozenset[str]
"""Identifiers that hold together: one way of taking an expression."""

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*(?: with [a-z0-9][a-z0-9.+-]*)?")
_LENGTH_LIMIT = 512
_MOST_CHOICES = 64
_MOST_STEPS = 10_000
_PRECEDENCE = {"OR": 1, "AND": 2}

# --- names --------------------------------------------------------------------------------------------------------

# As docs/hub/repositories-licenses of the Hugging Face Hub lists them; what else is a licence is `other` there.
_HUB = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0
    other pddl postgresql unlicense wtfpl zlib
    """.split()  # noqa: SIM905
)

# Spellings that people and other tools use, in lower case.
_ALIASES = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "apache-license-version-2.0": "apache-2.0",
    "mit-license": "mit",
    "expat": "mit",
    "bsd3": "bsd-3-clause",
    "bsd-3": "bsd-3-clause",
    "bsd2": "bsd-2-clause",
    "bsd-2": "bsd-2-clause",
    "cc0": "cc0-1.0",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "llama-3.1": "llama3.1",
    "llama-3.2": "llama3.2",
    "llama-3.3": "llama3.3",
    "llama-4": "llama4",
    "gemma-terms-of-use": "gemma",
    "gplv2": "gpl-2.0",
    "gplv3": "gpl-3.0",
    "agplv3": "agpl-3.0",
    "lgplv3": "lgpl-3.0",
}

# Of the GNU licences SPDX says that the name without more means "only".
_GNU = re.compile(r"((?:a|l)?gpl-(\d(?:\.\d)?))(-only|-or-later|\+)?")

# --- what licences say --------------------------------------------------------------------------------------------

_NO_DERIVATIVES = re.compile(r"cc-by-(?:nc-)?nd(?:-.*)?")
_NON_COMMERCIAL = re.compile(
    r"cc-by-nc(?:-.*)?|deepfloyd-if-license|fair-noncommercial.*|intel-research|apple-amlr|qwen-research.*|mrl.*|mnpl.*"
)
_SHARE_ALIKE = re.compile(r"cc-by-(?:nc-)?sa(?:-.*)?")
_GPL = re.compile(r"a?gpl(?:-.*)?")
# Model licences that bind whoever gets the output to rules of use, which must be passed on.
_USE_RESTRICTED = re.compile(
    r"llama-?\d.*|gemma.*|.*openrail.*|.*-rail-.*|bigscience-.*|bigcode-.*|creativeml-.*|deepseek.*|deepfloyd-if-license"
    r"|fair-noncommercial.*|intel-research|apple-amlr|qwen.*|tongyi-qianwen.*|falcon-.*|mrl.*|mnpl.*|grok.*|nvidia-.*"
)
_FOREIGN_COPYLEFT = re.compile(r"epl-.*|osl-.*|ms-pl|cdla-sharing-.*|odbl(?:-.*)?")

_OBLIGATIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"apache-2\.0", "keep the copyright, patent and NOTICE texts, and say what was changed (section 4)"),
        (r"mit|isc|bsd.*|ncsa|postgresql", "keep the copyright notice and the text of the licence"),
        (r"cc-by(?:-.*)?", "name the authors, link to the licence and say what was changed (section 3(a) of 4.0)"),
        (_SHARE_ALIKE.pattern, "share the output under the same licence or a compatible one (section 3(b) of 4.0)"),
        (_NON_COMMERCIAL.pattern, "no commercial use"),
        (_GPL.pattern, "pass on the whole output under this licence, with what it was made from (section 5 of 3.0)"),
        (r"agpl(?:-.*)?", "offer the source to those who use it over a network too (section 13)"),
        (r"lgpl(?:-.*)?|mpl-.*|eupl-.*", "what is changed of it stays under this licence"),
        (_FOREIGN_COPYLEFT.pattern, "what is changed of it stays under this licence"),
        (r"llama2", 'add a Notice file: "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta '
         'Platforms, Inc. All Rights Reserved." (section 1.b.ii)'),
        (r"llama3",
         'show "Built with Meta Llama 3", and let the name of the output begin with "Llama 3" (section 1.b.i)'),
        (r"llama3\.\d|llama4",
         'show "Built with Llama", and let the name of the output begin with "Llama" (section 1.b.i)'),
        (r"llama3.*|llama4", "add a copy of the agreement, and a Notice file with its attribution (section 1.b)"),
        (r"gemma.*",
         'add a copy of the terms, and a Notice file: "Gemma is provided under and subject to the Gemma Terms of Use '
         'found at ai.google.dev/gemma/terms" (section 3.1)'),
        (_USE_RESTRICTED.pattern, "its rules of use hold for the output, and for whoever gets it: pass them on"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class LicenceConflict:
    """Licences that do not go together: which, whose they are, and why."""

    licences: tuple[str, ...]
    parents: tuple[tuple[str, ...], ...]
    reason: str

    def __str__(self) -> str:
        shown = [f"{one} ({_listed(whose)})" for one, whose in zip(self.licences, self.parents, strict=True)]
        return f"{' and '.join(shown)}: {self.reason}"


@dataclass(frozen=True)
class DerivedLicence:
    """What is known of the licence of an output.

    `expression` is None where a parent's licence is unknown. `hub` and `hub_name` are the values of the Hub's `license`
    and `license_name`.
    """

    expression: str | None
    hub: str | None
    hub_name: str | None
    obligations: tuple[str, ...]
    conflicts: tuple[LicenceConflict, ...]
    warnings: tuple[str, ...]

    @property
    def told(self) -> list[str]:
        """All that the user should know: doubts first, then obligations."""
        return [*self.doubts, *self.obligations]

    @property
    def doubts(self) -> list[str]:
        """The conflicts, and what is unknown."""
        return [*(f"licences that do not go together: {one}" for one in self.conflicts), *self.warnings]


def is_allowed(expression: str | None, allowed: Iterable[str]) -> bool:
    """Whether a licence, an SPDX expression, can be had under `allowed` ones, however either is spelt.

    Of `A OR B` one suffices, of `A AND B` both are needed; `A WITH B` is a licence of its own. What is unknown is not
    allowed.
    """
    if expression is None:
        return False
    known = {_spelt(one).casefold() for one in allowed}
    if _spelt(expression).casefold() in known:
        return True
    return _fold(expression, lambda one: one in known, lambda a, b: a and b, lambda a, b: a or b) is True


def derive(parents: Mapping[str, str | None]) -> DerivedLicence:
    """What the licences of the base and the deltas, by their names, make of an output's.

    Each licence is an SPDX expression, or an identifier of the Hub (`llama3.1`, `other`); None is unknown. Where all
    are equal the output's is that one; otherwise all of them hold, joined by AND.
    """
    holders: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name, licence in parents.items():
        if licence is None or not _choices(licence):
            unknown.append(name)
        else:
            holders.setdefault(_spelt(licence), []).append(name)
    found = sorted(holders)
    conflicts = _conflicts(found, holders)
    options = [_choices(one) for one in found]
    picked = _pick(options)
    if picked is None and not conflicts:
        whose = tuple(tuple(holders[one]) for one in found)
        conflicts = [LicenceConflict(tuple(found), whose, "each pair goes together, but not all of them")]
    expression = None if unknown or not found else _joined(found, parents)
    return DerivedLicence(
        expression,
        *_for_hub(expression),
        obligations=_obligations(picked or [choices[0] for choices in options]),
        conflicts=tuple(conflicts),
        warnings=tuple(_unclear(unknown, holders.get("other", []))),
    )


def refuse_conflicts(derived: DerivedLicence, *, accept: bool = False) -> None:
    """Raise LicenceRefused where licences do not go together, unless that is accepted."""
    if derived.conflicts and not accept:
        shown = "; ".join(map(str, derived.conflicts))
        raise LicenceRefused(
            f"the licences do not go together: {shown}",
            cause="what deltareg can tell from the licences' names; it is no legal advice",
            hint="leave one of them out; who has the right by other means says --accept-licence",
            conflicts=[
                {
                    "licences": list(one.licences),
                    "parents": [list(whose) for whose in one.parents],
                    "reason": one.reason,
                }
                for one in derived.conflicts
            ],
        )


def _obligations(picked: Sequence[Choice]) -> tuple[str, ...]:
    names = sorted(frozenset[str]().union(*picked))
    return tuple(f"{one}: {text}" for one in names for pattern, text in _OBLIGATIONS if pattern.fullmatch(one))


def _unclear(unknown: Sequence[str], unnamed: Sequence[str]) -> list[str]:
    told: list[str] = []
    if unknown:
        told.append(f"the licence of {_listed(unknown)} is unknown: ask its publisher what the output may be used for")
    if unnamed:
        told.append(f"the licence of {_listed(unnamed)} is only called other: read its text")
    return told


# --- conflicts ----------------------------------------------------------------------------------------------------


def _conflicts(licences: Sequence[str], holders: Mapping[str, Sequence[str]]) -> list[LicenceConflict]:
    found: list[LicenceConflict] = []
    ways = {one: _choices(one) for one in licences}
    forbidding = {one for one in licences if all(_forbids_derivatives(choice) for choice in ways[one])}
    for one in sorted(forbidding):
        found.append(
            LicenceConflict((one,), (tuple(holders[one]),), "it forbids derivatives (section 2(a)(1)(B) of 4.0)")
        )
    for first, second in combinations([one for one in licences if one not in forbidding], 2):
        reasons = [_clash(a, b) for a in ways[first] for b in ways[second]]
        # What may be had in several ways conflicts where every way does.
        if all(reasons):
            whose = (tuple(holders[first]), tuple(holders[second]))
            found.append(LicenceConflict((first, second), whose, str(reasons[0])))
    return found


def _forbids_derivatives(choice: Choice) -> bool:
    return any(_NO_DERIVATIVES.fullmatch(one) for one in choice)


def _clash(first: Choice, second: Choice) -> str | None:
    """Why two ways of taking two licences do not go together; None where nothing is known against it."""
    reasons = (_reason(a, b) or _reason(b, a) for a in sorted(first) for b in sorted(second))
    return next((reason for reason in reasons if reason), None)


def _reason(one: str, other: str) -> str | None:
    """Why `other` cannot stand beside `one`; the rules are not symmetric."""
    if one == "gpl-2.0" and other == "apache-2.0":
        return "Apache 2.0 has patent terms that GPL 2.0 does not allow (FSF, Apache License 2.0)"
    if one == "gpl-2.0" and other in ("gpl-3.0", "agpl-3.0", "lgpl-3.0"):
        return "GPL 2.0 alone allows no later version (FSF, compatibility matrix)"
    copyleft = bool(_GPL.fullmatch(one) or _SHARE_ALIKE.fullmatch(one))
    if copyleft and _USE_RESTRICTED.fullmatch(other):
        return f"{one} allows no further restrictions, {other} has rules of use (GPL 3.0, section 10; CC, section 3(b))"
    commercial = copyleft and not _NON_COMMERCIAL.fullmatch(one)
    if commercial and _NON_COMMERCIAL.fullmatch(other):
        return f"{one} allows commercial use to everybody, and {other} forbids it (FSF, CC BY-NC; CC, remix chart)"
    if _SHARE_ALIKE.fullmatch(one) and _GPL.fullmatch(other):
        if (one, other) == ("cc-by-sa-4.0", "gpl-3.0"):
            return None  # one way: the output is under GPL 3.0
        return "both want the output for themselves; only CC BY-SA 4.0 may become GPL 3.0 (CC, compatible licences)"
    if (_GPL.fullmatch(one) or _SHARE_ALIKE.fullmatch(one)) and _FOREIGN_COPYLEFT.fullmatch(other):
        return "both want the output for themselves (FSF, licence list)"
    return None


def _pick(options: Sequence[Sequence[Choice]]) -> list[Choice] | None:
    """One way of taking each licence, so that none clashes with another; None where there is none."""
    picked: list[Choice] = []
    trails = [iter(one) for one in options[:1]]
    for _ in range(_MOST_STEPS):
        if len(picked) == len(options):
            return picked
        choice = next(trails[-1], None)
        if choice is None:
            trails.pop()
            if not trails:
                return None
            picked.pop()
        elif not _forbids_derivatives(choice) and not any(_clash(choice, other) for other in picked):
            picked.append(choice)
            trails += [iter(one) for one in options[len(picked) : len(picked) + 1]]
    return None


# --- expressions --------------------------------------------------------------------------------------------------


def _name(text: str) -> str:
    """An identifier as it is compared: in lower case, by its usual name."""
    name = re.sub(r"[\s_]+", "-", text.strip().casefold())
    name = _ALIASES.get(name, name)
    gnu = _GNU.fullmatch(name)
    if gnu is None:
        return name
    family = gnu[1] if "." in gnu[2] else f"{gnu[1]}.0"
    return f"{family}-or-later" if gnu[3] in ("-or-later", "+") else family


def _choices(expression: str) -> list[Choice]:
    """The ways in which an expression can be taken, in its own order; none where it is not understood."""
    if len(expression) > _LENGTH_LIMIT:
        return []
    if _name(expression) in _HUB:
        return _ways(_name(expression))
    try:
        found = _fold(
            expression, _ways, lambda a, b: _bounded(x | y for x in a for y in b), lambda a, b: _bounded(a + b)
        )
    except ValueError:
        return []
    return found or []


def _ways(name: str) -> list[Choice]:
    """The ways in which a single licence can be taken: `GPL-2.0-or-later` is GPL 3.0 too."""
    if _ID.fullmatch(name) is None or name == "unknown":
        raise ValueError(name)
    # What a GNU licence with an exception permits besides (linking) is no question here.
    plain = name.partition(" with ")[0] if name.startswith(("gpl-", "agpl-", "lgpl-")) else name
    later = [frozenset({"gpl-3.0"})] if plain == "gpl-2.0-or-later" else []
    return [frozenset({plain.removesuffix("-or-later")}), *later]


def _bounded(choices: Iterable[Choice]) -> list[Choice]:
    found = list(dict.fromkeys(choices))
    if len(found) > _MOST_CHOICES:
        raise ValueError("too many choices")
    return found


def _fold(
    expression: str,
    leaf: Callable[[str], Value],
    both: Callable[[Value, Value], Value],
    either: Callable[[Value, Value], Value],
) -> Value | None:
    """An expression's value from those of its licences; None where it is no expression. AND binds before OR.

    By two stacks, not by calls: parentheses may be nested as deep as somebody likes.
    """
    values: list[Value] = []
    signs: list[str] = []

    def settle(least: int) -> None:
        while signs and signs[-1] != "(" and _PRECEDENCE[signs[-1]] >= least:
            second = values.pop()
            values.append((both if signs.pop() == "AND" else either)(values.pop(), second))

    tokens = _TOKEN.findall(expression)
    open_ended = True  # a licence or a parenthesis has to come
    place = 0
    while place < len(tokens):
        token = tokens[place]
        sign = token.upper()
        if open_ended != (sign not in (")", "AND", "OR")) or sign == "WITH":
            return None
        if token == "(":
            signs.append(token)
        elif token == ")":
            settle(0)
            if not signs:
                return None
            signs.pop()
        elif sign in _PRECEDENCE:
            settle(_PRECEDENCE[sign])
            signs.append(sign)
            open_ended = True
        else:
            name = _name(token)
            if [one.upper() for one in tokens[place + 1 : place + 2]] == ["WITH"]:
                if len(tokens) < place + 3 or tokens[place + 2] in ("(", ")"):
                    return None
                name = f"{name} with {tokens[place + 2].casefold()}"
                place += 2
            values.append(leaf(name))
            open_ended = False
        place += 1
    if open_ended:
        return None
    settle(0)
    return None if signs else values.pop()


def _spelt(licence: str) -> str:
    """One spelling for all spellings of a licence."""
    if _name(licence) in _HUB:
        return _name(licence)
    words = [one.upper() if one.upper() in ("AND", "OR", "WITH") else _name(one) for one in _TOKEN.findall(licence)]
    return " ".join(words).replace("( ", "(").replace(" )", ")")


def _joined(licences: Sequence[str], parents: Mapping[str, str | None]) -> str:
    """What holds where all licences do; a single one as its first holder spells it."""
    if len(licences) == 1:
        written = next(text for text in parents.values() if text is not None and _spelt(text) == licences[0])
        return licences[0] if _name(written) in _HUB and " " in written else written
    parts: set[str] = set()
    for one in licences:
        parts |= {f"({one})"} if " OR " in one else set(one.replace("(", "").replace(")", "").split(" AND "))
    return " AND ".join(sorted(parts))


def _for_hub(expression: str | None) -> tuple[str | None, str | None]:
    """The Hub's `license`, and `license_name` where that is `other`."""
    if expression is None:
        return None, None
    name = _name(expression)
    if name in _HUB:
        return name, None
    return "other", re.sub(r"[^a-z0-9.-]+", "-", _spelt(expression).casefold()).strip("-")


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:8], *([f"{len(names) - 8} more"] if len(names) > 8 else [])]
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else "".join(shown)
