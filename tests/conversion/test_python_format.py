"""Laying out statements as ruff does: quotes, brackets, sums, docstrings."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ilgnet_repro.export.python_format import LINE_LENGTH, double_quoted, format_statement, narrowed

LONG = "some_quite_long_name_of_a_blob"
STATEMENTS = {
    "short": "x = F.relu(x)",
    "quotes": "x = pad(x, 'same', mode='constant')",
    "a call's arguments": f"{LONG} = self.{LONG}({LONG}, {LONG})",
    "one a line": f"{LONG} = torch.cat([{', '.join([LONG] * 5)}], dim=1)",
    "a tuple inside": f"{LONG} = priors({LONG}, sizes=((30, 30), (42.426407, 42.426407), (42.426407, 21.213203)), step=8)",
    "a call behind": f"{LONG} = prior_boxes({LONG}.shape[2:], {LONG}.shape[2:], variance=(0.1, 0.2)).to({LONG})",
    "a subscript": f"{LONG} = {LONG}[:, :, 9 : 9 + {LONG}.shape[2], 9 : 9 + {LONG}.shape[3]]",
    "a sum": f"{LONG} = {LONG} * self.{LONG}_weight + self.{LONG}_bias",
    "a long sum": f"{LONG} = {LONG} * self.{LONG}_weight + self.{LONG}_bias + {LONG} * self.{LONG}_more",
    "a string with a bracket": f"{LONG} = call({LONG}, ')', {LONG}, '(', {LONG})",
    "a dict": "return {" + ", ".join(f"'{LONG}_{index}': value_{index}" for index in range(4)) + "}",
    "several targets": f"top, mask = caffe_max_pool2d_mask({LONG}, {LONG}, ({LONG}.shape[2], 1))",
}


@pytest.mark.parametrize("text", STATEMENTS.values(), ids=STATEMENTS)
@pytest.mark.parametrize("indent", [0, 8])
def test_ruff_would_change_nothing(text: str, indent: int) -> None:
    lines = format_statement(text, indent)
    opening = ["def forward(self):", "    if True:"] if indent else []
    source = "\n".join([*opening, *lines]) + "\n"
    assert all(len(line) <= LINE_LENGTH for line in lines)
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(sys.prefix) + "/bin")
    if ruff is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run(
        [ruff, "format", "--isolated", f"--line-length={LINE_LENGTH}", "-"], input=source, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout == source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f('a', \"b\")", 'f("a", "b")'),
        ("f('say \"a\"')", "f('say \"a\"')"),
        (r"f('a\n')", r"f('a\n')"),
        ("x = y", "x = y"),
    ],
    ids=["plain", "quotes inside", "escapes", "no string"],
)
def test_quotes(text: str, expected: str) -> None:
    assert double_quoted(text) == expected


WIDE = '''def helper(x):
    """A first line that is longer than the hundred characters that a line of the written file may have, all in all.

    And a paragraph
    of two lines.
    """
    # A comment that is longer than the hundred characters that a line of the written file may have, all in all.
    return x'''
NARROW = '''def helper(x):
    """A first line that is longer than the hundred characters that a line of the written file may
    have, all in all.

    And a paragraph
    of two lines.
    """
    # A comment that is longer than the hundred characters that a line of the written file may have,
    # all in all.
    return x'''
ONE_LINE = 'def helper(x):\n    """' + "word " * 20 + 'end."""\n    return x'
TWO_LINES = 'def helper(x):\n    """' + ("word " * 18).strip() + '\n    word word end.\n    """\n    return x'


@pytest.mark.parametrize(
    ("text", "expected"),
    [(WIDE, NARROW), (ONE_LINE, TWO_LINES), (NARROW, NARROW)],
    ids=["paragraphs and comments", "one line", "fits already"],
)
def test_prose_is_wrapped_anew(text: str, expected: str) -> None:
    assert narrowed(text) == expected
