"""Plain technical English: private words of earlier versions are in no name, comment, message or page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "ilgnet_repro", "tests", "tools", "benchmarks")
# Recorded files, files of earlier versions, generated code, and this table itself.
LEFT_OUT = ("tests/golden", "tests/compat/files", "tests/test_wording.py", "caffe_pb2", "CHANGELOG")

# What to write -> what is not written any more.
PRIVATE = {
    "per image": r"\b(?:ms|MB|kB|bytes|seconds|values|rows|once) an? (?:image|core|output|layer|channel|row|batch|step)\b",
    "subtracted": r"\bmean is (?:taken )?off\b|\btaken? off\b|\btakes off\b",
    "trim_heap, tune_allocator": r"hand_back|keep_freed|MAPPED_FROM|STATED_BY_USER",
    "compile elementwise layers": r"what lies between",
    "integer": r"whole_number|whole numbers",
    "ignored_fields": r"\bharmless\b",
    "not implemented": r"says not how",
    "share_parameter": r"\bborrow(?!ed\")",
    "Broadcast, blob_shape": r"\bOverlay\b|\blaid\b|\blay_out\b|\blaid out\b",
    "_Elementwise": r"_OfEachValue",
    "torch's bounds check applies": r"stands guard",
    "Caffe reads out of bounds": r"foreign memory",
    "are not counted": r"counts not\b",
    "a space": r"\ba blank between|two blanks",
    "split_after": r"split_behind",
    "where it came from": r"\bcome by\b|\bcame by\b",
    "_matching_builtin": r"_name_of_twin",
    "QuantizedWeight, dequantize, attach_quantized": r"\bReduced\b(?! precision)|\bwiden\b|hold_reduced|reduced_blob",
    "argmax changed": r"another class is the answer",
    "_serpentine_order, _diffuse_error": r"_to_and_fro|\b_carry\b",
    "drops no-ops": r"does nothing goes",
    "Backend, reference tool, first_mismatch": r"\bWitness|\bwitness",
    "_Retryable, _Fatal, read timeout": r"_Passing\b|_exhaust\b|longest silence",
    "ignored_layers, handle_signals": r"heed_requests|\bstrange\b",
    "reports tests": r"\baloud\b",
    "internal error; please report it": r"fault of ours",
    "Tried and rejected": r"Tried and left",
    "resumes": r"\bgoes on with\b|gives what it would have given",
    "image": r"\b[Pp]ictures?\b",
}
# Names that users hold, and what stands around them.
STAYS = re.compile(
    r"--pictures?\b|pictures?\.(?:csv|parquet|jpe?g|png)|pictures\.\{|[\"'`]pictures?[\"'`]|\\\"pictures?\\\""
    r"|\bpictures?(?==)|\bpictures?(?=: Sequence|: str|: )|\.pictures?\b|\bpictures?(?=,\S)|(?<=,)pictures?\b"
    r"|\bpictures?/|/pictures?\b|\{pictures?|pictures= |same pictures in the same order|picture 2x240|= pictures\b"
)


def texts() -> dict[str, str]:
    found = {}
    for page in PAGES:
        path = ROOT / page
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            name = file.relative_to(ROOT).as_posix()
            if file.suffix in (".py", ".md", ".j2", ".toml") and not any(part in name for part in LEFT_OUT):
                found[name] = file.read_text(encoding="utf-8")
    return found


def private_words(text: str, pattern: str) -> list[str]:
    """The lines, numbered, in which a pattern is found once the names that stay are taken out."""
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, STAYS.sub("", line))
    ]


@pytest.mark.parametrize("plain", PRIVATE)
def test_no_private_words(plain: str) -> None:
    found = [
        f"{name}:{line}" for name, text in texts().items() for line in private_words(text, PRIVATE[plain])
    ]
    assert not found, f"write {plain!r} in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ("per image", "0.5 ms an image"),
        ("subtracted", "the mean is taken off"),
        ("integer", "labels are whole numbers"),
        ("image", "a picture is read"),
        ("image", "def read_it(): return Picture"),
        ("resumes", "it goes on with --resume"),
        ("Broadcast, blob_shape", "weights laid out for speed"),
    ],
)
def test_the_patterns_find_what_they_name(plain: str, sentence: str) -> None:
    assert private_words(sentence, PRIVATE[plain])


@pytest.mark.parametrize(
    "sentence",
    ["--pictures DIR", "pictures.csv", 'row["picture"]', "args.pictures", "pictures=FOLDER", "an image"],
)
def test_names_that_stay_are_not_found(sentence: str) -> None:
    assert not any(private_words(sentence, pattern) for pattern in PRIVATE.values())
