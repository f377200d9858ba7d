"""Runs what the pages show: their commands and Python in order, in one folder per page, and compares what they quote.

A fenced block is one of

- ``console``: lines after ``$ `` are commands (a line that ends in a backslash continues), the others their output;
- ``sh``: commands; an unlabelled block right after it is what the last of them printed;
- ``python``: code; an unlabelled block right after it is its output. The names of a page's blocks are shared;
- ``text``, ``prototxt``, ...: not run.

In quoted output a line of its own with ``…`` stands for any lines. Comments in front of a block say how it is taken:

- ``<!-- measured -->``: numbers are compared in form only; with names (``<!-- measured: seconds -->``) only those in
  the columns so named of a table;
- ``<!-- digits: N -->``: fractions are compared to N significant digits, as sums are rounded differently on another
  processor;
- ``<!-- slow: reason -->``: run by ``make check-docs`` only;
- ``<!-- not run: reason -->``: never run, but the commands are read by their own parsers;
- ``<!-- file: NAME -->``: the block is the content of that file;
- ``<!-- given: NAME -->`` (anywhere): the file that `GIVEN` makes of that name is there.

``python tests/helpers/doc_pages.py PAGE...`` runs pages and writes what they printed into them; ``--slow`` runs all.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "data/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
ANY_LINES = "…"
_FENCE = re.compile(
    r"^(?P<marks>(?:<!-- [^\n]* -->\n)*)```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?"
_FRACTION = r"\d+\.\d+(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the comments in front of it, and its text."""

    line: int
    start: int  # of the text, in the page
    language: str
    marks: dict[str, str]
    text: str
    follows: bool  # nothing stands between it and the block before


@dataclass(frozen=True)
class Step:
    """A command, or a block of Python, and the output that the page quotes for it."""

    line: int
    code: str
    language: str
    quoted: str | None
    quoted_at: int  # its position in the page
    measured: tuple[str, ...] | None  # columns; () for every number; None for no number
    digits: int | None = None  # significant ones that are compared; None for all


@dataclass
class Run:
    """What the steps of a page printed: `printed` has the step, its status and its output, in order."""

    page: str
    printed: list[tuple[Step, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- reading a page


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        found.append(
            Block(
                line=text.count("\n", 0, match.start("language")) + 1,
                start=match.start("text"),
                language=match["language"],
                marks=dict(re.findall(r"<!-- ([a-z ]+)(?:: (.*?))? -->", match["marks"])),
                text=match["text"],
                follows=bool(found) and not text[end : match.start()].strip(),
            )
        )
        end = match.end()
    return found


def steps(text: str, slow: bool) -> Iterator[Step]:
    """Yield what a page has to run, in order."""
    listed = blocks(text)
    for block, after in zip_longest(listed, listed[1:]):
        if "not run" in block.marks or ("slow" in block.marks and not slow):
            continue
        if block.language == "python":
            output = after if after and after.follows and not after.language else None
            if output:
                yield Step(block.line, block.text, "python", output.text, output.start, *_compared(output))
            else:
                yield Step(block.line, block.text, "python", None, 0, None)
        elif block.language == "console":
            yield from _commands(block)
        elif block.language == "sh":
            *others, last = _commands(block)
            yield from others
            if after and after.follows and not after.language:
                last = Step(last.line, last.code, "sh", after.text, after.start, *_compared(after))
            yield last


def _compared(block: Block) -> tuple[tuple[str, ...] | None, int | None]:
    """Return how the numbers of a quote are compared: `Step.measured` and `Step.digits`."""
    columns = block.marks.get("measured")
    measured = None if columns is None else tuple(name for name in columns.split(", ") if name)
    return measured, int(block.marks["digits"]) if "digits" in block.marks else None


def _commands(block: Block) -> Iterator[Step]:
    """Yield the commands of a block; in ``sh`` every line is one."""
    position, number = block.start, block.line
    command: list[str] = []
    quoted, quoted_at, at = "", 0, 0
    is_open = False  # the command continues in the next line

    def step() -> Step:
        code = "\n".join(command)
        shown = quoted if block.language == "console" else None
        return Step(at, code, "sh", shown, quoted_at, *_compared(block))

    for line in block.text.splitlines(keepends=True):
        number += 1
        starts = line.startswith("$ ") if block.language == "console" else not is_open
        if is_open:
            command.append(line.rstrip("\n"))
            is_open = line.rstrip().endswith("\\")
            quoted_at = position + len(line)
        elif starts:
            if command:
                yield step()
            command, quoted, at = [line.removeprefix("$ ").rstrip("\n")], "", number
            quoted_at = position + len(line)
            is_open = line.rstrip().endswith("\\")
        else:
            quoted += line
        position += len(line)
    if command:
        yield step()


# -------------------------------------------------------------------------------------------------- running it


def run_page(page: str, text: str, folder: Path, slow: bool = False) -> Run:
    """Run a page in ``folder``, which is the current one meanwhile; nothing is compared yet.

    The folder has the checkout's ``examples``, ``prototxt`` and ``tools``.
    """
    run = Run(page)
    names: dict[str, object] = {"__name__": "__main__"}
    status = 0
    with contextlib.chdir(folder), _importing_from(folder):
        for name in ("examples", "prototxt", "tools"):
            if not Path(name).exists():
                Path(name).symlink_to(ROOT / name)
        for name in re.findall(r"^<!-- given: (.*?) -->$", text, re.MULTILINE):
            GIVEN[name](Path(name))
        for block in blocks(text):
            if "file" in block.marks:
                Path(block.marks["file"]).write_text(block.text, encoding="utf-8")
        todo = [one for one in steps(text, slow) if one.code.strip() and not one.code.startswith("#")]
        for step, after in zip_longest(todo, todo[1:]):
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                if step.code == "echo $?":
                    print(status)
                elif step.language == "python":
                    status = _run_python(step, page, names)
                else:
                    status = _run_command(step.code, output)
            run.printed.append((step, output.getvalue()))
            if status and not (after and after.code == "echo $?") and step.code != "echo $?":
                run.faults.append(
                    f"{page}:{step.line}: {step.code}\nended with {status}:\n{output.getvalue()}"
                )
    return run


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Import modules that a page wrote, as Python started in the folder would."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def _run_python(step: Step, page: str, names: dict[str, object]) -> int:
    try:
        # Line numbers in a traceback are those of the page.
        exec(compile("\n" * step.line + step.code, page, "exec"), names)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _run_command(code: str, output: io.StringIO) -> int:
    """Run a simple command, with ``| tail -N`` or ``2> FILE`` at most; `ilgnet` runs in this process."""
    code, _, tail = code.replace("\\\n", " ").partition("| tail -")
    code, _, errors = code.partition("2> ")
    words = shlex.split(code, comments=True)
    start = len(output.getvalue())
    if words[0] == "ilgnet" or words[:3] == ["python", "-m", "ilgnet_repro"]:
        from ilgnet_repro.cli.main import main

        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr) if errors else contextlib.nullcontext():
            status = main(words[1 if words[0] == "ilgnet" else 3 :])
        if errors:
            Path(errors.strip()).write_text(stderr.getvalue(), encoding="utf-8")
    elif words[0] in ("python", "make", "cat"):
        words = [sys.executable if word == "python" else word for word in words]
        if words == ["make", "demo"]:  # as the Makefile has it, but in this folder
            words = [sys.executable, "tools/demo.py", "--out", "demo"]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        output.write(done.stdout)
        status = done.returncode
    else:
        output.write(f"{words[0]}: not a command that a page may run; mark the block\n")
        status = 127
    if tail:
        last = output.getvalue()[start:].splitlines(keepends=True)[-int(tail) :]
        output.seek(start)
        output.truncate()
        output.writelines(last)
    return status


# ------------------------------------------------------------------------------------------- comparing with it


def faults(run: Run, text: str | None = None) -> list[str]:
    """Return where the page, or another ``text`` of it with the same steps, quotes what was not printed."""
    found = list(run.faults)
    for step, printed in run.printed:
        if step.quoted is None:
            continue
        quoted = step.quoted if text is None else text[step.quoted_at : step.quoted_at + len(step.quoted)]
        if not is_quoted(quoted, printed, step.measured, step.digits):
            found.append(
                f"{run.page}:{step.line}: `{step.code.strip()}` printed\n{printed}\nwhere the page has\n{quoted}"
            )
    return found


def is_quoted(
    quoted: str, printed: str, measured: tuple[str, ...] | None = None, digits: int | None = None
) -> bool:
    """Whether the quoted lines are those printed, but for what stands for any lines and measured numbers."""
    parts: list[list[str]] = [[]]
    for line in _lines(quoted):
        if line == ANY_LINES:
            parts.append([])
        else:
            parts[-1].append(line)
    rows = list(_rows(_lines(printed), measured, digits))

    def stands_at(part: list[str], start: int) -> bool:
        found = rows[start : start + len(part)]
        return len(found) == len(part) and all(row.has(line) for row, line in zip(found, part, strict=True))

    if len(parts) == 1:
        return len(parts[0]) == len(rows) and stands_at(parts[0], 0)
    if not stands_at(parts[0], 0) or not stands_at(parts[-1], len(rows) - len(parts[-1])):
        return False
    at = len(parts[0])
    for part in parts[1:-1]:
        start = next((start for start in range(at, len(rows) + 1) if stands_at(part, start)), None)
        if start is None:
            return False
        at = start + len(part)
    return at <= len(rows) - len(parts[-1])


def _lines(text: str) -> list[str]:
    """The lines without spaces at their ends, and without empty ones at either end of the text."""
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@dataclass(frozen=True)
class _Row:
    """A printed line: the pattern of what may be quoted of it, and the numbers that its groups are close to."""

    pattern: str
    numbers: tuple[float, ...]
    digits: int

    def has(self, quoted: str) -> bool:
        """Whether a line of a page quotes this one."""
        found = re.fullmatch(self.pattern, quoted)
        return found is not None and all(
            math.isclose(float(text), number, rel_tol=5 * 10**-self.digits)
            for text, number in zip(found.groups(), self.numbers, strict=True)
        )


def _rows(lines: list[str], measured: tuple[str, ...] | None, digits: int | None) -> Iterator[_Row]:
    spans: list[tuple[int, int]] = []  # of the measured columns of the table that a line stands in
    for line in lines:
        if measured and line.startswith("┃"):
            spans = list(_columns(line, measured))
        elif not line.startswith(("│", "┡")):
            spans = []
        free = spans if line.startswith("│") else []
        if measured == ():
            free = [found.span() for found in re.finditer(rf" *{_NUMBER}", line)]
        pattern, numbers, at = "", [], 0
        for start, end in [*free, (len(line), len(line))]:
            text = line[at:start]
            if digits is None:
                pattern += re.escape(text)
            else:
                between = re.split(_FRACTION, text)
                pattern += rf"({_FRACTION}|\d+)".join(map(re.escape, between))
                numbers += [float(number) for number in re.findall(_FRACTION, text)]
            pattern += rf"\s*{_NUMBER}\s*" if end > start else ""
            at = end
        yield _Row(pattern, tuple(numbers), digits or 0)


def _columns(header: str, measured: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    at = 0
    for cell in header.split("┃"):
        if cell.strip() in measured:
            yield at, at + len(cell)
        at += len(cell) + 1


# ----------------------------------------------------------------------------------------------- given files


def _ava_text(path: Path) -> None:
    """An AVA.txt of 255,529 images with the published numbers of both classes (74,673 low, 180,856 high)."""
    from ava_text import HIGH, LOW, table_of, write_ava

    write_ava(table_of(LOW, HIGH), path)


GIVEN: dict[str, Callable[[Path], None]] = {"AVA.txt": _ava_text}


# ---------------------------------------------------------------------------------------------------- writing


def rewritten(run: Run, text: str) -> str:
    """Return the page with what its steps printed; quotes that hold, and lines that stand for any, stay."""
    for step, printed in reversed(run.printed):
        if step.quoted is None or is_quoted(step.quoted, printed, step.measured, step.digits):
            continue
        lines = "".join(f"{line}\n" for line in _lines(printed)) if printed.strip() else ""
        end = step.quoted_at + len(step.quoted)
        text = text[: step.quoted_at] + lines + text[end:]
    return text


def main(arguments: list[str]) -> int:
    """Run pages and rewrite them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    slow = "--slow" in arguments
    status = 0
    for page in [word for word in arguments if not word.startswith("--")] or PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            run = run_page(page, text, Path(folder), slow)
        for fault in faults(run):
            print(fault, end="\n\n")
            status = 1
        if not run.faults:
            (ROOT / page).write_text(rewritten(run, text), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
