"""The documentation does what it says: its commands run, its links lead somewhere, its options exist.

In `console` blocks a line that begins with `$ ` is typed, one after the other, in one shell for the whole page; what
follows is what comes back. There `…` stands for anything, alone on a line for any number of lines; times, rates and
dates are compared by their form alone. `python` blocks are programs of their own. `sh` blocks are not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from deltareg.cli.settings_file import add_remote, create_settings
from deltareg.config import CONFIG_NAME, parse_settings
from deltareg.errors import all_errors
from deltareg.recipe import parse_recipe
from tests import demo, docs, program, weights
from tests.perturb import perturb
from tests.servers.object_store import ObjectStore, object_store_exists
from tests.synthetic import synthetic

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PLAYED = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "transfer.md"]
SEPARATOR = "\x1e"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_VOLATILE = re.compile(r"\d[\d.]* (?:s|MB/s|GB/s)(?= |$)|\d{4}-\d\d-\d\dT[\d:]+Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line that it begins at."""

    page: Path
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """Something that a page types, and the lines that it shows of what comes back."""

    page: Path
    line: int
    typed: str
    shown: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}: {self.typed.splitlines()[0][:60]}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        yield Block(page, found[1], found[2], text.count("\n", 0, found.start()) + 2)


def commands_of(page: Path) -> list[Command]:
    """What a page has to be typed: the commands of its console blocks, and its programs."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language == "console":
            found += _typed(block)
        elif block.language == "python":
            found.append(Command(page, block.line, f"python - <<'END'\n{block.text}END", ()))
    return found


def _typed(block: Block) -> Iterator[Command]:
    lines = block.text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts and starts[0] == 0, f"{block.page.name}:{block.line}: a console block begins with `$ `"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        more = next((number for number in range(start + 1, end) if not lines[number].startswith("> ")), end)
        typed = "\n".join([lines[start][2:], *(line[2:] for line in lines[start + 1 : more])])
        shown = tuple(line for line in lines[more:end] if line.strip())
        yield Command(block.page, block.line + start, typed, shown)


COMMANDS = [command for page in PLAYED for command in commands_of(page)]


# --- the checkpoints that the pages speak of ----------------------------------------------------------------------


def _scene_of_readme(directory: Path, minilm_bf16: weights.Pair) -> None:
    """What the demo leaves in its directory, as far as the tour needs it."""
    part = demo.PARTS["bf16"]
    shutil.copytree(minilm_bf16.base, directory / part.base)
    shutil.copytree(minilm_bf16.post, directory / part.post)
    demo.make_stranger(directory / part.base, directory / "stranger")
    demo.make_second(directory / part.base, directory / f"{part.base}-perturbed")
    (directory / "team").mkdir()
    create_settings(directory / CONFIG_NAME)
    add_remote(directory / CONFIG_NAME, "team", str(directory / "team"))


def _scene_of_tutorial(directory: Path, _: weights.Pair) -> None:
    """A base, two fine-tunes of it, one of which was trained further, a newer base of the shape, and a larger model."""
    synthetic(directory, 0.001, seed=1, shards=2)
    perturb(directory / "post", directory / "further", width=3e-4, seed=5)
    perturb(directory / "base", directory / "chat", width=3e-4, seed=2)
    perturb(directory / "base", directory / "new-base", width=1e-2, seed=3)
    larger = synthetic(directory / "scratch", 0.003, seed=4, shards=1)[0]
    larger.rename(directory / "larger-model")
    for name in ("base", "post", "further", "chat", "new-base"):
        (directory / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        (directory / name / "tokenizer.json").write_text(
            '{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}\n'
        )
        (directory / name / "chat_template.jinja").write_text(f"{{# the chat template of {name} #}}\n")


def _scene_of_transfer(directory: Path, _: weights.Pair) -> None:
    """One family of the evaluations that others published."""
    with (ROOT / "docs" / "paramdelta" / "published" / "finetuning-transfer-llama-8b.csv").open() as published:
        rows = [line.strip().split(",")[1:6] for line in list(published)[:7]]
    names = ["task", "gsm8k", "math", "arc_challenge", "gpqa", "mmlu", "ifeval"]
    (directory / "evals.csv").write_text(
        "".join(",".join([name, *row[1:]]) + "\n" for name, row in zip(names, rows, strict=True))
    )


_SCENES = {"README.md": _scene_of_readme, "tutorial.md": _scene_of_tutorial, "transfer.md": _scene_of_transfer}


# --- playing a page -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a command gave: its exit status, and stdout and stderr as they came."""

    status: int
    text: str


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm_bf16: weights.Pair
) -> Iterator[Mapping[Command, Outcome]]:
    """Every command of every page, with its outcome. Where there is an object store it has the bucket `models`."""
    programs = program.install(tmp_path_factory.mktemp("programs"))
    homes = {page: tmp_path_factory.mktemp(page.stem) for page in PLAYED}

    with ExitStack() as stack:
        objects: dict[str, str] = {}
        with suppress(pytest.skip.Exception):
            store: ObjectStore = request.getfixturevalue("object_store")
            objects = stack.enter_context(store.bucket("models")).environment()

        def play(page: Path) -> dict[Command, Outcome]:
            scene = homes[page] / "scene"
            scene.mkdir()
            _SCENES[page.name](scene, minilm_bf16)
            return _play(commands_of(page), scene, _environment(homes[page], programs) | objects)

        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(play, PLAYED))
        yield {command: outcome for page in outcomes for command, outcome in page.items()}


def _environment(home: Path, programs: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DELTAREG_", "XDG_", "AWS_"))}
    return mine | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "PATH": f"{programs}{os.pathsep}{mine.get('PATH', os.defpath)}",
        "LC_ALL": "C.UTF-8",
    }


def _play(commands: list[Command], directory: Path, environment: dict[str, str]) -> dict[Command, Outcome]:
    """Type all of it into one shell, which tells each command's status between separators."""
    script = "".join(f"{command.typed}\nprintf '{SEPARATOR}%s{SEPARATOR}' $?\n" for command in commands)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc"],
        input=script,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    parts = done.stdout.split(SEPARATOR)
    assert len(parts) == 2 * len(commands) + 1, f"the shell ended early:\n{done.stdout[-2000:]}"
    return {
        command: Outcome(int(status), text)
        for command, text, status in zip(commands, parts[0::2], parts[1::2], strict=False)
    }


def matches(shown: tuple[str, ...], text: str) -> bool:
    """Whether the output `text` is what a page shows of it."""
    pattern = ""
    for line in shown:
        pattern += r"(?:.*\n)*" if line.strip() == "…" else _line_pattern(line) + r"[ ]*\n"
    return re.fullmatch(pattern, re.sub(r"^\s*\n", "", text, flags=re.MULTILINE)) is not None


def _line_pattern(line: str) -> str:
    words: list[str] = []
    for word in _VOLATILE.sub(lambda found: found[0].replace(" ", "\0"), line).split():
        if _VOLATILE.fullmatch(word.replace("\0", " ")):
            words.append(r"\d[\d.]* \S+" if "\0" in word else r"[\d:TZ-]+")
        else:
            words.append(".*".join(map(re.escape, word.split("…"))))
    return r" *" + r" +".join(words)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_page_shows_what_its_command_gives(command: Command, played: Mapping[Command, Outcome]) -> None:
    if "s3://" in command.typed and not object_store_exists():
        pytest.skip("there is no object store for this system")
    outcome = played[command]
    if outcome.status != 0:
        pytest.fail(f"`{command.typed}` ended with status {outcome.status}:\n{outcome.text}", pytrace=False)
    if command.shown and not matches(command.shown, outcome.text):
        told = "\n".join(command.shown)
        pytest.fail(f"`{command.typed}`: the page shows\n{told}\n\nit is\n{outcome.text}", pytrace=False)


def test_shown_output_is_compared_line_by_line() -> None:
    given = "size     42.4 MiB\nseconds  1.66 s\ncreated  2026-01-02T03:04:05Z\n"
    assert matches(("size  42.4 MiB", "seconds  0.2 s", "created  2025-01-01T00:00:00Z"), given)
    assert matches(("size 4… MiB", "…"), given)
    assert matches(("…", "seconds  9 s", "…"), given)
    assert not matches(("size  42.5 MiB", "…"), given)
    assert not matches(("size  42.4 MiB",), given)
    assert not matches(("seconds  1.66 s", "…"), given)


# --- what pages refer to ------------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    dead: list[str] = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.exists() or (anchor and anchor not in _anchors(goal)):
            dead.append(link)
    assert dead == []


@cache
def _known() -> Mapping[str, frozenset[str]]:
    """Every command by its path, with its options."""
    return {
        path: frozenset(option for parameter in context.command.params for option in parameter.opts if option[0] == "-")
        | {"-h", "--help"}
        for path, context in docs.commands()
    }


def _mentions(page: Path) -> Iterator[str]:
    """Every piece of code on a page that calls the program."""
    text = page.read_text()
    for block in blocks(page):
        typed = [command.typed for command in _typed(block)] if block.language == "console" else [block.text]
        for line in "\n".join(typed).splitlines():
            yield from re.findall(r"(?:^|[;&|(=]|\b(?:then|do|if|!)|[A-Z]=\S+) *(deltareg(?: .*)?)$", line)
    yield from (code for code in _CODE.findall(_FENCE.sub("", text)) if re.match(r"deltareg( |$)", code))


def unknown_words(mention: str) -> list[str]:
    """The command and the options of a call of the program that do not exist."""
    words = shlex.split(re.split(r" *(?:[;|&#<>]|\|\|)", mention)[0].replace("[", " ").replace("]", " "), posix=True)
    path = "deltareg"
    rest = words[1:]
    while rest and f"{path} {rest[0]}" in _known():
        path = f"{path} {rest.pop(0)}"
    groups = {known.rpartition(" ")[0] for known in _known()}
    if path in groups and rest and not rest[0].startswith("-") and not rest[0].isupper():
        alternatives = re.split(r"[|,]", rest[0])
        return [f"{path} {word}" for word in alternatives if f"{path} {word}" not in _known()]
    used = [word.partition("=")[0] for word in rest if re.match(r"-{1,2}[A-Za-z]", word)]
    return [f"{path} {option}" for option in used if option not in _known()[path]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page: Path) -> None:
    assert [unknown for mention in _mentions(page) for unknown in unknown_words(mention)] == []


def test_mentions_of_what_is_not_there_are_found() -> None:
    assert unknown_words("deltareg apply TARGET acme/search:1.0.0 -o OUT --threads 4") == []
    assert unknown_words("deltareg cache gc --grace 0") == []
    assert unknown_words("deltareg remote add|list|remove") == []
    assert unknown_words("deltareg --version") == []
    assert unknown_words("deltareg aply TARGET") == ["deltareg aply"]
    assert unknown_words("deltareg cache purge") == ["deltareg cache purge"]
    assert unknown_words("deltareg push acme/search --force") == ["deltareg push --force"]


def test_every_code_on_a_page_is_one_of_an_error() -> None:
    codes = {error.code for error in all_errors()}
    wrong = {code for page in PAGES for code in re.findall(r"\bDR\d{4}\b", page.read_text())} - codes
    assert wrong == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_documents_on_a_page_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            parse_settings(block.text.encode(), page)
            if "[build]" in block.text:
                parse_recipe(block.text.encode(), page)
        elif block.language == "json":
            json.loads(block.text)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []
