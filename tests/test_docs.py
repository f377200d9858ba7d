"""The pages hold word for word: their commands and Python are run, and what they quote is what was printed.

``make check-docs`` sets ``SLOW_DOCS`` and also runs the blocks that are marked as slow.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, blocks, faults, is_quoted, run_page, steps

import ilgnet_repro as ir
from ilgnet_repro.cli.main import COMMANDS, build_parser

SLOW = bool(os.environ.get("SLOW_DOCS"))
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in (*PAGES, "CONTRIBUTING.md")}
MARKS = {"measured", "digits", "slow", "not run", "file", "given"}
# Pages that quote no output, and what holds them instead.
WITHOUT_QUOTES = {
    "docs/aesthetic_systems.md": "benchmarks/bench_model_costs.py, which writes its table; no output is quoted",
    "docs/architecture.md": "tests/test_architecture.py",
    "docs/commands.md": "tests/cli/test_commands.py, from the parsers themselves",
    "docs/consumers.md": "`make consumers`, which writes its table",
    "docs/model_experiments.md": "benchmarks/bench_models.py, which writes it",
    "docs/model_results.md": "tests/aesthetics/test_model_runs.py, from the published figures and ours",
    "docs/page.md": "tests/web, in a browser",
    "docs/zoo.md": "benchmarks/zoo_agreement.py, which writes it",
}

# ----------------------------------------------------------------------------------------------------- running


@pytest.mark.usefixtures("own_layer_types")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds(page: str, tmp_path: Path) -> None:
    text = TEXTS[page]
    run = run_page(page, text, tmp_path, SLOW)
    assert faults(run) == []
    # The proof: with one digit of a quote changed, it does not hold any more.
    proven = 0
    for step, printed in run.printed:
        quoted = step.quoted or ""
        failed = [
            not is_quoted(
                quoted[:at] + str((int(quoted[at]) + 1) % 10) + quoted[at + 1 :],
                printed,
                step.measured,
                step.digits,
            )
            for at in (digit.start() for digit in re.finditer("[0-9]", quoted))
        ]
        if step.measured is None and step.digits is None:
            assert all(failed), f"{page}:{step.line}: a digit of this is not compared: {quoted}"
        elif step.measured != ():
            assert any(failed), f"{page}:{step.line}: no digit of this is compared: {quoted}"
        proven += sum(failed)
    assert bool(proven) != (page in WITHOUT_QUOTES)


PRINTED = """
step one
┏━━━━━┳━━━━━━━━━┓
┃ one ┃ seconds ┃
┡━━━━━╇━━━━━━━━━┩
│ 1.5 │    0.25 │
└─────┴─────────┘
took 12.5 s, 3 of 4
end
"""


@pytest.mark.parametrize(
    ("quoted", "measured", "digits", "holds"),
    [
        (PRINTED, None, None, True),
        (PRINTED.replace("0.25", "0.26"), None, None, False),
        (PRINTED.replace("0.25", "7.26"), ("seconds",), None, True),
        (PRINTED.replace("   0.25", "1237.26"), ("seconds",), None, True),
        (PRINTED.replace("0.25", "soon"), ("seconds",), None, False),
        (PRINTED.replace("1.5", "1.6"), ("seconds",), None, False),
        (PRINTED.replace("12.5", "13.9"), (), None, True),
        (PRINTED.replace("12.5 s", "13.9 h"), (), None, False),
        (PRINTED.replace("12.5", "12.501"), None, 3, True),
        (PRINTED.replace("12.5", "12.6"), None, 3, False),
        ("step one\n…\nend\n", None, None, True),
        ("…\n│ 1.5 │    0.25 │\n…\ntook 12.5 s, 3 of 4\n…\n", None, None, True),
        ("…\ntook 12.5 s, 3 of 4\n…\n│ 1.5 │    0.25 │\n…\n", None, None, False),
        ("step one\n…\nend\n…\nend\n", None, None, False),
        ("…\n", None, None, True),
        ("…\nend\nend\n", None, None, False),
        ("step one\n", None, None, False),
        ("", None, None, False),
    ],
)
def test_how_a_quote_is_compared(quoted, measured, digits, holds) -> None:
    assert is_quoted(quoted, PRINTED, measured, digits) == holds


def test_a_failed_command_is_a_fault_unless_its_status_is_quoted(tmp_path: Path) -> None:
    command = "```console\n$ ilgnet audit nowhere.prototxt\n…\n"
    run = run_page("page", command + "```\n", tmp_path)
    assert len(run.faults) == 1 and "ended with 1" in run.faults[0]
    assert faults(run_page("page", command + "$ echo $?\n1\n```\n", tmp_path)) == []
    assert len(faults(run_page("page", command + "$ echo $?\n0\n```\n", tmp_path))) == 1


def test_an_error_in_python_is_a_fault(tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n```python\nprint(x, y)\n```\n```\n1 2\n```\n"
    run = run_page("page", text, tmp_path)
    assert len(run.faults) == 1 and "name 'y' is not defined" in run.faults[0]


# --------------------------------------------------------------------------------- marks, commands, names, links


@pytest.mark.parametrize("page", TEXTS)
def test_measured_tables_have_their_form(page: str) -> None:
    """A table marked as measured: the same number of cells in every row, and a number in each."""
    for table in re.findall(r"^<!-- measured -->\n((?:\|.*\n)+)", TEXTS[page], re.MULTILINE):
        header, _, *rows = table.replace("\\|", "").splitlines()
        for row in rows:
            assert row.count("|") == header.count("|") and re.search("[0-9]", row), f"{page}: {row}"


@pytest.mark.parametrize("page", TEXTS)
def test_marks_are_known_and_state_a_reason(page: str) -> None:
    for block in blocks(TEXTS[page]):
        assert block.marks.keys() <= MARKS, f"{page}:{block.line}"
        for mark in block.marks.keys() & {"slow", "not run"}:
            assert len(block.marks[mark].split()) >= 3, f"{page}:{block.line}: why?"
        if not block.language:
            assert block.follows, f"{page}:{block.line}: say text, console, sh or python"
    # A mark that stands in front of no block would be without effect.
    marks = re.findall(
        r"^<!-- (?:measured|digits|slow|not run|file)\b.*-->\n(?!```|\||<!--)", TEXTS[page], re.MULTILINE
    )
    assert marks == []


@cache
def parser_of(command: str):
    return build_parser([command])


def commands(text: str) -> Iterator[tuple[int, str]]:
    """Yield the command lines of all blocks, those of `ilgnet COMMAND --help` included, whatever their marks."""
    for block in blocks(text):
        lines = block.text.replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines, block.line + 1):
            if block.language == "console":
                shown = line[2:] if line.startswith("$ ") else ""
            elif block.language == "sh":
                shown = line
            else:  # examples in the help texts, with what they do after some spaces
                shown = re.split(r" {3,}", line.strip())[0] if re.match(r" +(ilgnet|torchrun) ", line) else ""
            if shown and not shown.startswith("#"):
                yield number, shown


def fault_of(line: str) -> str:
    """What is wrong with a command line by its own parser; "" if nothing is."""
    line = re.split(r" 2?>|\||\s#\s|;", line)[0].strip()
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable
        words = words[1:]
    if not words:
        return ""
    program, *rest = words
    if program == "torchrun":
        script = next(number for number, word in enumerate(rest) if word.endswith(".py"))
        program, rest = "python", rest[script:]
    if program in ("python", "python3"):
        return _fault_of_python(rest)
    if program == "ilgnet":
        return _fault_of_ilgnet(rest)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if {word for word in rest if not word.startswith("-")} <= set(targets) else "no such target"
    if program == "pip":
        return _fault_of_pip(rest)
    return "" if program in ("echo", "cat", ".", ".venv/bin/pre-commit") else f"{program} is not known"


def _fault_of_ilgnet(words: list[str]) -> str:
    error = io.StringIO()
    parser = parser_of(words[0]) if words and words[0] in COMMANDS else build_parser(())
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser.parse_args(words)
        except SystemExit as stop:
            return error.getvalue() if stop.code else ""
    return ""


def _fault_of_python(words: list[str]) -> str:
    if words[:2] == ["-m", "ilgnet_repro"]:
        return _fault_of_ilgnet(words[2:])
    if words[0] == "-m" and words[1] == "venv":
        return ""
    if words[0] == "-m":
        spec = find_spec(words[1])
        if spec is None or spec.origin is None:
            return f"no module {words[1]}"
        path, rest = Path(spec.origin), words[2:]
    else:
        path, rest = ROOT / words[0], words[1:]
        if not path.is_file():
            return f"no file {words[0]}"
    text = path.read_text(encoding="utf-8")
    as_command = re.search(r'main\(\["(\w+)", \*sys\.argv', text)
    if as_command:
        return _fault_of_ilgnet([as_command[1], *rest])
    unknown = [word for word in rest if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
    return f"unknown: {unknown}" if unknown else ""


def _fault_of_pip(words: list[str]) -> str:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extras in re.findall(r"(?:^|ilgnet_repro|\.)\[(.*?)\]", " ".join(words)):
        unknown = set(extras.split(",")) - set(setup["options.extras_require"])
        if unknown:
            return f"no extra {unknown}"
    if "--constraint" in words and not (ROOT / words[words.index("--constraint") + 1]).is_file():
        return "no such constraints"
    return ""


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_line_is_taken_by_its_parser(page: str) -> None:
    assert [
        f"{page}:{at}: {line}: {fault}" for at, line in commands(TEXTS[page]) if (fault := fault_of(line))
    ] == []


def spans(text: str) -> list[str]:
    """The pieces of code within sentences and tables."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.replace("\\|", "|").split()) for span in re.findall(r"`([^`]+)`", prose)]


@cache
def options() -> frozenset[str]:
    """Every option of every command."""
    found: set[str] = set()

    def collect(parser) -> None:
        found.update(parser._option_string_actions)
        for action in parser._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for child in action.choices.values():
                    collect(child)

    collect(build_parser())
    return frozenset(found)


def fault_of_span(span: str) -> str:
    """What is wrong with code in a sentence; parts of commands are allowed, unknown options and names are not."""
    words = [word for word in span.split() if word not in ("…", "...")]
    if words[:1] == ["ilgnet"] and len(words) > 1 and not words[1].startswith("-"):
        if words[1] not in {*COMMANDS, "COMMAND"}:
            return "no such command"
    elif (
        words[:1] in (["make"], ["python"], ["pip"])
        and len(words) > 1
        and words[1:] != ["-m", "ilgnet_repro"]
    ):
        return fault_of(span)
    if words[:1] == ["ilgnet"] or (words and words[0].startswith("--")):
        flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unknown = flags - options()
        return f"no such option: {unknown}" if unknown else ""
    name = re.match(r"ir\.(\w+)", span)
    if name and not hasattr(ir, name[1]):
        return "no such name"
    module = re.fullmatch(r"(ilgnet_repro(?:\.\w+)+)(?:\(.*\))?", span)
    return _fault_of_name(module[1]) if module else ""


def _fault_of_name(dotted: str) -> str:
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            value = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:]:
                if not hasattr(value, part):
                    return "no such name"
                value = getattr(value, part)
            return ""
    return "no such module"


# Options of others: torchrun's, pip's, pytest's, Caffe's own.
OTHERS = {"--rdzv-id", "--help", "--shuffle", "--user"}


@pytest.mark.parametrize("page", TEXTS)
def test_code_in_sentences_names_what_there_is(page: str) -> None:
    found = {span: fault_of_span(span) for span in spans(TEXTS[page]) if span not in OTHERS}
    assert {span: fault for span, fault in found.items() if fault} == {}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("ilgnet convert a.caffemodel --too onnx", "unrecognized arguments"),
        ("ilgnet convrt a.caffemodel", "invalid choice"),
        ("python tools/score.py a.png --wights w", "required: --weights"),
        ("python tools/scores.py a.png", "no file tools/scores.py"),
        ("python -m ilgnet_repro.zoo.catalog", "No module|no module"),
        ("python benchmarks/bench_export.py --fast", "unknown"),
        ("make demos", "no such target"),
        ('pip install ".[al]"', "no extra"),
        ("pip install --constraint constraint.txt .", "no such constraints"),
        ("wget x", "wget is not known"),
    ],
)
def test_a_wrong_command_line_is_found(line: str, fault: str) -> None:
    try:
        found = fault_of(line)
    except ModuleNotFoundError as error:
        found = str(error)
    assert re.search(fault, found)


@pytest.mark.parametrize(
    "span",
    [
        *(
            "ilgnet convrt",
            "--too onnx",
            "ilgnet test --picture DIR",
            "ir.lod",
            "ir.lod_net(x)",
            "make demos",
        ),
        *(
            "python benchmarks/bench.py",
            "ilgnet_repro.scorin",
            "ilgnet_repro.errors.Error",
            "pip install '.[al]'",
        ),
    ],
)
def test_a_wrong_name_in_a_sentence_is_found(span: str) -> None:
    assert fault_of_span(span)


def slugs(text: str) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        linked = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in slugs(linked.read_text(encoding="utf-8")), f"{page}: {target}"


def test_the_first_page_that_the_readme_links_is_the_start() -> None:
    assert re.findall(r"\]\((docs/[^)#]*)", TEXTS["README.md"])[0] == "docs/start.md"
    assert set(re.findall(r"docs/\w+\.md", TEXTS["README.md"])) >= set(PAGES) - {
        "README.md",
        "data/README.md",
    }


def test_every_step_of_a_page_is_found() -> None:
    page = (
        "```console\n$ a \\\n    b\nout 1\n$ c\n```\n\n```python\nx\n```\n```\n2\n```\n\n"
        "<!-- slow: for a reason -->\n```sh\nd\n```\n\n<!-- not run: for a reason -->\n```sh\ne\n```\n"
    )
    found = [(step.code, step.quoted) for step in steps(page, slow=False)]
    assert found == [("a \\\n    b", "out 1\n"), ("c", ""), ("x\n", "2\n")]
    assert [step.code for step in steps(page, slow=True)][-1] == "d"
