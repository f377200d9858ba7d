"""Plain technical English: private words of earlier versions are in no name, comment, message or page."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "data", "docs", "ilgnet_repro", "tests", "tools", "benchmarks")
# Recorded files, files of earlier versions, generated code, and this table itself.
LEFT_OUT = ("tests/golden", "tests/compat/files", "tests/test_wording.py", "caffe_pb2", "CHANGELOG")

# What to write -> what is not written any more.  A space stands for any white space, line breaks of a text and
# underscores included; every pattern is tried on names split into their words, too.
PRIVATE = {
    "per image": r"\b(?:ms|[kM]B|bytes|seconds|values?|rows?|lines?|once|one|file|class|groups?|scale|boxes|array|memory)"
    r" an? (?:image|core|output|layer|channel|row|batch|step|type|line|class|axis|iteration|epoch)\b",
    "subtracted": r"\bmean is (?:taken )?off\b|\btaken? off\b|\btakes off\b",
    "trim_heap, tune_allocator": r"\bhand back\b|\bkeep freed\b|\bMAPPED FROM\b|\bSTATED BY USER\b",
    "TRIM_THRESHOLD": r"\bKEPT\b",
    "compile elementwise layers": r"what lies between",
    "integer": r"\bwhole numbers?\b",
    "ignored_fields": r"(?i:\bharmless\b)",
    "not implemented": r"says not how",
    "share_parameter": r"\bborrow",
    "Broadcast, blob_shape": r"(?i:\boverlays?\b)|\b(?:laid|lay out|lays out)\b",
    "after": r"\bbehind\b",
    "_Elementwise": r"\bOf Each Value\b",
    "torch's bounds check applies": r"stands guard",
    "Caffe reads out of bounds": r"foreign memory",
    "are not counted": r"\b(?:counts|says|knows) not\b",
    "past the edge": r"\boverhang",
    "a space": r"\ba blank\b(?! line)|\bblanks\b",
    "where it came from": r"\bc[oa]me by\b",
    "_matching_builtin": r"\bname of twin\b",
    "QuantizedWeight, dequantize, attach_quantized": r"\bReduced\b(?! precision)|\bwiden\b|\bhold reduced\b"
    r"|\breduced blob\b",
    "argmax changed": r"\bis the answer\b",
    "_serpentine_order, _diffuse_error": r"\bto and fro\b|(?<!\w)_carry\b",
    "drops no-ops": r"does nothing goes",
    "Backend, reference tool, first_mismatch": r"(?i:\bwitness)|\bparting\b|\bSide\b(?! of)",
    "_Retryable, _Fatal, read timeout": r"(?<!\w)_Passing\b|\bexhaust\b|longest silence",
    "ignored_layers, defer_sync, handle_signals": r"\bheed|\bstrange|(?<=[.]|=)alone\b|\bdef alone\b|\balone(?=[(:=])",
    "broadcast_object, process_group": r"\bdef (?:same|joined)\(|[.](?:same|joined)\(",
    "momentum": r"\bself[.]share\b(?! with)|\bshare of the (?:last|previous) (?:step|update)\b",
    "reports, is reported": r"\baloud\b|\btold\b|(?<![.])(?<!def\x20)\btells?\b",
    "internal error; please report it": r"\bfaults? of ours\b",
    "Tried and rejected": r"Tried and left",
    "resumes, continues": r"\bgo(?:es|ing)? on\b|\bwent on\b|gives what it would have given",
    "again": r"\banew\b",
    "callers, users": r"\bwho(?:m|so)?ever\b",
    "image": r"\b[Pp]ictures?\b",
}
# Names that users hold, and what stands around them.
STAYS = re.compile(
    r"--pictures?\b|pictures?\.(?:csv|parquet|jpe?g|png)|pictures\.\{|[\"'`]pictures?[\"'`]|\\\"pictures?\\\""
    r"|\bpictures?(?==)|\bpictures?(?=: Sequence|: str|: )|\.pictures?\b|\bpictures?(?=,\S)|(?<=,)pictures?\b"
    r"|\bpictures?/|/pictures?\b|\{pictures?|pictures= |same pictures in the same order|picture \d+x240|= pictures\b"
    r"|called[_ ]picture(?![a-z])|[\"']parting[\"']|\brefresh_borrowed\b"
)


@cache
def texts() -> dict[str, str]:
    found = {}
    for page in PAGES:
        path = ROOT / page
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            name = file.relative_to(ROOT).as_posix()
            if file.suffix in (".py", ".md", ".j2", ".toml") and not any(part in name for part in LEFT_OUT):
                found[name] = file.read_text(encoding="utf-8")
    return found


@cache
def forms(text: str) -> tuple[str, str]:
    """A text without comment marks and the names that stay, and the same with its names split into words."""
    kept = STAYS.sub("", re.sub(r"\n[ \t]*#", "\n", text))
    return kept, re.sub(r"_|(?<=[a-z0-9])(?=[A-Z])", " ", kept)


def private_words(text: str, pattern: str) -> list[str]:
    """The lines, numbered, in which a pattern is found once the names that stay are taken out."""
    compiled = re.compile(pattern.replace(" ", r"\s+"))
    kept, split = forms(text)
    # What a pattern without an underscore finds in a text it finds there once the names are split, too.
    searched = (kept, split) if "_" in pattern else (split,)
    found = {form.count("\n", 0, match.start()) for form in searched for match in compiled.finditer(form)}
    lines = text.splitlines() if found else []
    return [f"{number + 1}: {lines[number].strip()}" for number in sorted(found)]


@pytest.mark.parametrize("plain", PRIVATE)
def test_no_private_words(plain: str) -> None:
    found = [
        f"{name}:{line}" for name, text in texts().items() for line in private_words(text, PRIVATE[plain])
    ]
    assert not found, f"write {plain!r} in\n" + "\n".join(found)


FOUND = {
    "per image": ("0.5 ms an image", "one a\n    core", "a_scale_is_one_a_channel"),
    "subtracted": ("the mean is taken off", "a mean is off"),
    "trim_heap, tune_allocator": ("hand_back_freed_memory()", "keep_freed_memory()", "MAPPED_FROM = 1"),
    "TRIM_THRESHOLD": ("KEPT = 2 << 30",),
    "compile elementwise layers": ("compile what lies between the layers",),
    "integer": ("labels are whole numbers", "def _find_whole_numbers():", "whole\n# numbers"),
    "ignored_fields": ("harmless = ()", "HARMLESS = ()"),
    "not implemented": ("its class says not how",),
    "share_parameter": ("layer.borrow(owner)", "refresh_borrowing"),
    "Broadcast, blob_shape": ("class OverlayShape:", "weights laid out for speed", "def lay_out():"),
    "after": ("behind = 3", "split_behind(net)", "a layer behind a Crop"),
    "_Elementwise": ("class _OfEachValue:",),
    "torch's bounds check applies": ("torch's own check stands guard",),
    "Caffe reads out of bounds": ("Caffe reads foreign memory",),
    "are not counted": ("what hangs over counts not",),
    "past the edge": ("overhang = 2", "windows that overhang"),
    "a space": ("put a blank between", "separated by blanks"),
    "where it came from": ("how it was come by", "how they came by it"),
    "_matching_builtin": ("_name_of_twin(net)",),
    "QuantizedWeight, dequantize, attach_quantized": ("class Reduced:", "widen(blob)", "hold_reduced(net)"),
    "argmax changed": ("another class is\n# the answer",),
    "_serpentine_order, _diffuse_error": ("_to_and_fro(plane)", "_carry(error)"),
    "drops no-ops": ("what does nothing goes",),
    "Backend, reference tool, first_mismatch": ("class Side:", "a Witness", "parting = None"),
    "_Retryable, _Fatal, read timeout": (
        "class _Passing(Exception):",
        "_exhaust(url)",
        "the longest silence",
    ),
    "ignored_layers, defer_sync, handle_signals": ("heed_requests()", "fit.strange", "with runs.alone(net):"),
    "broadcast_object, process_group": ("runs.same(path)", "def joined(self):"),
    "momentum": ("self.share = 0.9", "a share of the last step"),
    "reports, is reported": ("whether it tests aloud", "test_a_fault_is_told", "tell(seconds)"),
    "internal error; please report it": ("this is a fault of ours", "faults_of_ours"),
    "Tried and rejected": ("Tried and left",),
    "resumes, continues": ("it goes on with --resume", "it went on", "goes_on = True"),
    "again": ("write it anew",),
    "callers, users": ("whoever reads it",),
    "image": ("a picture is read", "def read_it(): return Picture", "class PictureRow:", "one_picture"),
}


@pytest.mark.parametrize(
    ("plain", "text"), [(plain, text) for plain, texts in FOUND.items() for text in texts]
)
def test_the_patterns_find_what_they_name(plain: str, text: str) -> None:
    assert private_words(text, PRIVATE[plain])


def test_every_pattern_is_tried() -> None:
    assert list(FOUND) == list(PRIVATE)


def test_lines_are_numbered() -> None:
    assert private_words("a net\n# of whole\n# numbers\n", PRIVATE["integer"]) == ["2: # of whole"]


@pytest.mark.parametrize(
    "text",
    [
        "--pictures DIR",
        "pictures.csv",
        'row["picture"]',
        "args.pictures",
        "pictures=FOLDER",
        'found["parting"]',
        "carry_state=True",
        "the same file, by another name",
        "def same_shape(a, b):",
        "layers that share a parameter",
        "joined = net.concat(heads)",
        "the text alone is not enough",
        "file.tell()",
        "def tell(self) -> int:",
        "Reduced precision",
        "a blank line",
        "Side of the square, in pixels",
        "the labels of an image",
        "the answers of a run",
        "it continues",
        "LARGEST = 1",
    ],
)
def test_other_words_are_not_found(text: str) -> None:
    assert not [plain for plain, pattern in PRIVATE.items() if private_words(text, pattern)]
