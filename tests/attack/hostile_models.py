"""Hostile and damaged files of what is kept beside nets: score caches, models of scores, states, runs, lists, journals.

`prepare` writes a whole one of each kind, `hostile` makes a damaged copy of one and runs what reads it.
"""

# Long lines are tables.
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ilgnet_repro.aesthetics.datasets import DATASETS, read_dataset
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.cli.main import main
from ilgnet_repro.export.save import save

Damage = Callable[[bytes, random.Random], bytes]

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 10**30, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "NaN", "1",
    "a\nb", "\ud800", "\0", "[/x]", "\x1b[31mx", "=1+1", "../../x", "9" * 5000, [], {}, [[]], [1, 2], {"a": 1}, ["x"],
]  # fmt: skip
GSFL = ["--model", "gsfl", "--data", "features", "--folder", "features"]
TRAIN = ["train", *GSFL, "--epochs", "2", "--batch-size", "6", "--option", "groups=2", "--option", "hidden=4"]
SCORE = ["score", "images", "--mean-value", "9"]
OWN = ["test", "own", "--weights", "net.caffemodel", "--pictures", "images", "--list", "list.txt", "--mean-value", "9", "--resize", "20",
       "--batch-size", "2", "--out", "t"]  # fmt: skip
FINETUNE = ["finetune", "classes", "--out", "tuned", "--size", "16", "--batch", "2", "--epochs", "1"]


class EndedBadly(Exception):
    """A command ended neither with its result nor with one line."""


def run(*argv: str) -> int:
    """Run a command here; return its status."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(argv))
    text = err.getvalue()
    if status not in (0, 1) or "Traceback" in text:
        frames = re.findall(r'File "[^"]*?/ilgnet_repro/([^"]+)", line (\d+)', text)
        raised = re.findall(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt))\b", text, re.MULTILINE)
        place = ":".join(frames[-1]) if frames else "?"
        raise EndedBadly(f"{argv[0]}: status {status}, {raised[-1] if raised else '?'} at {place}")
    if any(char in out.getvalue() + text for char in "\x1b\x07\0"):
        raise EndedBadly(f"{argv[0]}: a control character is printed")
    errors = [line for line in text.splitlines() if line.startswith("ilgnet:")]
    if status and len(errors) != 1:
        raise EndedBadly(f"{argv[0]}: {len(errors)} lines of error: {text[-200:]!r}")
    return status


# ---------------------------------------------------------------- whole files


def prepare(root: Path, command: Callable[..., Any], write_net: Callable[..., Path]) -> None:
    """Write the whole files; ``command`` runs one of the CLI in a child."""
    rng = np.random.default_rng(0)
    for folder in ("images", "classes/a", "classes/b", "features"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        for name in (f"images/{number}.png", f"classes/{'ab'[number % 2]}/{number}.png"):
            cv2.imwrite(str(root / name), pixels)
    (root / "list.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(4)))
    (root / "finetune.csv").write_text(
        "path,score\n" + "".join(f"images/{n}.png,{n + 0.5}\n" for n in range(4))
    )
    shutil.copy(write_net(root / "n"), root / "net.caffemodel")
    shutil.copy(root / "n/net.prototxt", root / "net.prototxt")
    for split in ("train", "test"):
        labels = np.arange(24) % 3
        values = (rng.normal(0, 1, (24, 6)) + labels[:, None]).astype(np.float32)
        np.savez(
            root / f"features/{split}.npz",
            key=np.array([f"{split}{i}" for i in range(24)]),
            label=labels,
            fc=values,
        )
    child = os.fork()
    if not child:
        save(create("nima"), root / "nima.safetensors")
        os._exit(0)
    os.waitpid(child, 0)
    for argv in (
        [*TRAIN, "--out", "run"],
        [*SCORE, "--weights", "net.caffemodel", "--cache", "kept.db"],
        OWN,
        [*FINETUNE, "--prepare"],
    ):
        command("models", "fixture", argv, root, 60)
    write_lists(root / "lists")


def write_lists(root: Path) -> None:
    """Write a small list of each dataset, in the layout in which it was published."""
    rng = np.random.default_rng(1)

    def put(name: str, text: str) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def votes(first: int) -> list[str]:
        return [" ".join(map(str, [i, first + i, *rng.integers(0, 9, 10).tolist(), 0, 0, 1])) for i in range(8)]  # fmt: skip

    put("ava/AVA.txt", "\n".join([*votes(100), *votes(200)]) + "\n")
    put("ava/train.txt", "".join(f"{100 + i}.jpg 1\n" for i in range(8)))
    put("ava/test.txt", "".join(f"{200 + i} 0\n" for i in range(8)))
    for split in ("train", "test"):
        put(f"tad66k/{split}.csv", "image,score\n" + "".join(f"{split}{i}.jpg,{i + 1.5}\n" for i in range(8)))
    put("eva/votes_filtered.csv", "image_id=user_id=score=difficulty=visual=composition=quality=semantic\n"
        + "".join(f"{i}=u{j}={i % 10}=1={1 + j}=2=3=4\n" for i in range(24) for j in range(2)))  # fmt: skip
    put("flickr-aes/FLICKR-AES_image_score.txt", "".join(f"farm1_2_{i}_a.jpg 0.{i}\n" for i in range(24)))
    put("flickr-aes/FLICKR-AES_image_labeled_by_each_worker.csv", "worker,imagePair,score\n"
        + "".join(f"w{i % 3}, farm1_2_{i}_a.jpg,{1 + i % 5}\n" for i in range(24)))  # fmt: skip
    put("flickr-aes/test_workers.txt", "w1\n")
    from ilgnet_repro.aesthetics.models.attributes import ATTRIBUTES

    for part in ("Train", "Validation", "TestNew"):
        for name in ("score", *ATTRIBUTES["aadb"]):
            put(
                f"aadb/imgList{part}Regression_{name}.txt",
                "".join(f"{part}{i}.jpg 0.{i}\n" for i in range(9)),
            )


# ---------------------------------------------------------------- damaged ones


def edited(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one place replaced, removed or renamed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.15:
            removed = copy.pop(key)
            if isinstance(copy, dict) and rng.random() < 0.5:
                copy[rng.choice(["", "x", "\ud800", "\x1b[31m", "a\nb"])] = removed
        else:
            copy[key] = edited(copy[key], rng)
        return copy
    if isinstance(value, str) and value[:1] in "{[" and rng.random() < 0.8:
        with contextlib.suppress(ValueError):
            return json.dumps(edited(json.loads(value), rng))
    return rng.choice(ODD)


def edited_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON file with one to three places changed."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = edited(value, rng)
    return json.dumps(value).encode()


def edited_safetensors(data: bytes, rng: random.Random, damage: Damage) -> bytes:
    """Return a safetensors file with its header damaged or edited, or its tensors changed."""
    size = struct.unpack("<Q", data[:8])[0]
    head, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.random()
    if kind < 0.15:
        return damage(data[: 8 + size], rng) + body
    if kind < 0.25:
        flat = bytearray(body)
        for _ in range(rng.choice((1, 4, 64))):
            at = rng.randrange(len(flat) // 4) * 4
            flat[at : at + 4] = struct.pack(
                "<f", rng.choice((float("nan"), float("inf"), 3e38, -1.0, 0.0, 1e-45))
            )
        body = bytes(flat)
    elif kind < 0.4:
        edited_head = edited(json.loads(head), rng)
        head = json.dumps(edited_head).encode()
    else:
        stated = json.loads(head)
        for _ in range(rng.choice((1, 1, 2))):
            stated["__metadata__"] = edited(stated["__metadata__"], rng)
            if not isinstance(stated["__metadata__"], dict):
                break
        head = json.dumps(stated).encode()
    return struct.pack("<Q", len(head)) + head + body


def edited_cache(path: Path, rng: random.Random, damage: Damage) -> None:
    """Damage a cache's bytes, or change what is in its tables."""
    if rng.random() < 0.4:
        data = damage(path.read_bytes(), rng)
        path.write_bytes(data)
        return
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        for _ in range(rng.choice((1, 1, 2))):
            table, column = rng.choice(
                [("files", "digest"), ("files", "size"), ("scores", "record"), ("models", "facts")]
            )
            old = base.execute(f"select {column} from {table} limit 1").fetchone()
            new: Any = rng.choice(
                [*(v for v in ODD if v is None or isinstance(v, (str, float))), b"\xff", 5, 2**62]
            )
            if old and isinstance(old[0], str) and old[0].startswith("{") and rng.random() < 0.8:
                new = json.dumps(edited(json.loads(old[0]), rng))
            if isinstance(new, str):
                new = new.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            base.execute(f"update {table} set {column} = ?", [new])
        if rng.random() < 0.2:
            base.executescript(rng.choice([
                "drop table models", "drop table files; create view files as select 1", "pragma user_version = 2", "delete from models",
                "create trigger t after insert on scores begin delete from files; end", "alter table scores add x",
                "drop table scores; create view scores as with recursive n(x) as (select 1 union all select x + 1 from n) select x model, x digest, x record from n",
            ]))  # fmt: skip


def hostile(seed: int, whole: Path, damage: Damage) -> None:
    """Damage one file of a fresh copy, and run what reads it; raises what the reader raises."""
    rng = random.Random(seed)
    os.chdir(whole)
    kind = rng.choice(("cache", "cache", "model", "model", "nima", "state", "state", "lists", "lists", "lists", "split", "features", "run", "journal", "tuned", "tuned", "table", "start"))  # fmt: skip
    globals()[f"_{kind}"](rng, damage)
    left = [path for path in Path(whole).rglob(".*") if path.name != ".gitignore"]
    if left:
        for path in left:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        raise EndedBadly(f"{kind}: {left[0].name} is left over")


@contextlib.contextmanager
def _scratch(*names: str) -> Any:
    """Remove what a case leaves."""
    try:
        yield
    finally:
        for name in names:
            shutil.rmtree(name, ignore_errors=True)
            Path(name).unlink(missing_ok=True)


def _cache(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.db", "x.db-wal", "x.db-shm", "x.db-journal"):
        shutil.copy("kept.db", "x.db")
        edited_cache(Path("x.db"), rng, damage)
        form = rng.choice(([], ["--csv"], ["--json"], ["--sort"], ["--top", "1"]))
        run(*SCORE, "--weights", "net.caffemodel", "--cache", "x.db", *form)


def _model(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.safetensors", "figures"):
        Path("x.safetensors").write_bytes(
            edited_safetensors(Path("run/gsfl.safetensors").read_bytes(), rng, damage)
        )
        run("test", *GSFL, "--weights", "x.safetensors", "--out", "figures")


def _start(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.safetensors", "started"):
        Path("x.safetensors").write_bytes(
            edited_safetensors(Path("run/gsfl.safetensors").read_bytes(), rng, damage)
        )
        run(*TRAIN, "--weights", "x.safetensors", "--out", "started")


def _nima(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.safetensors"):
        Path("x.safetensors").write_bytes(
            edited_safetensors(Path("nima.safetensors").read_bytes(), rng, damage)
        )
        run("score", "images/0.png", "--weights", "x.safetensors")


def _state(rng: random.Random, damage: Damage) -> None:
    with _scratch("again"):
        shutil.copytree("run", "again")
        state = Path("again/state.safetensors")
        state.write_bytes(edited_safetensors(state.read_bytes(), rng, damage))
        epochs = rng.choice(("1", "2", "3"))
        run(*TRAIN, "--epochs", epochs, "--out", "again", "--resume", "latest")


def _lists(rng: random.Random, damage: Damage) -> None:
    name = rng.choice(sorted(set(DATASETS) - {"features"}))
    with _scratch("damaged"):
        shutil.copytree(f"lists/{name}", "damaged")
        path = rng.choice([path for path in sorted(Path("damaged").rglob("*")) if path.is_file()])
        data = path.read_bytes()
        for _ in range(rng.choice((1, 1, 2))):
            data = damage(data, rng)
        path.write_bytes(data)
        read_dataset(name, "damaged")


def _split(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.csv", "figures"):
        Path("x.csv").write_bytes(damage(Path("run/split.csv").read_bytes(), rng))
        run(
            "test", *GSFL, "--weights", "run/gsfl.safetensors", "--trained-on", "x.csv", "--out", "figures"
        )  # fmt: skip


def _features(rng: random.Random, damage: Damage) -> None:
    with _scratch("damaged"):
        shutil.copytree("features", "damaged")
        path = Path("damaged", rng.choice(("train.npz", "test.npz")))
        if rng.random() < 0.5:
            path.write_bytes(damage(path.read_bytes(), rng))
        else:
            arrays: dict[str, Any] = dict(np.load(path))
            name = rng.choice(sorted(arrays))
            arrays[name] = rng.choice([
                np.zeros(0), np.zeros((24, 0), np.float32), np.full(24, 2**62), np.full(24, -1), np.array("x"), np.zeros(24, "S3"),
                np.zeros((24, 6), np.complex64), np.full((24, 6), np.nan, np.float32), np.zeros((24, 2, 3, 1), np.float16), np.zeros((24, 6), ">f8"),
                np.full(24, 2**63, np.uint64), np.zeros(24, "M8[s]"), np.zeros((3, 6), np.float32), np.full((24, 6), 1e300), np.array(["\0", "a\nb"] * 12),
            ])  # fmt: skip
            np.savez(path, **arrays)
        read_dataset("features", "damaged")


def _run(rng: random.Random, damage: Damage) -> None:
    with _scratch("report"):
        os.mkdir("report")
        whole = Path("t/run.json").read_bytes()
        data = damage(whole, rng) if rng.random() < 0.3 else edited_json(whole, rng)
        Path("report/run.json").write_bytes(data)
        run("report", "report/run.json", "--out", "report/r.html")
        page = Path("report/r.html")
        if page.exists() and "<script>alert" in page.read_text(errors="replace"):
            raise EndedBadly("report: a script reaches the page")


def _journal(rng: random.Random, damage: Damage) -> None:
    with _scratch("again"):
        shutil.copytree("t", "again")
        path = rng.choice([path for path in sorted(Path("again").iterdir()) if path.is_file()])
        path.write_bytes(damage(path.read_bytes(), rng))
        run(*OWN[:-1], "again", "--resume")


def _tuned(rng: random.Random, damage: Damage) -> None:
    kept = Path("kept_tuned")
    if not kept.exists():
        shutil.copytree("tuned", kept)
    with _scratch("tuned"):
        path = rng.choice([
            path for path in sorted(Path("tuned").rglob("*"))
            if path.is_file() and path.suffix in (".json", ".txt", ".prototxt", ".binaryproto", ".jsonl")
        ])  # fmt: skip
        data = path.read_bytes()
        is_json = path.suffix == ".json" and rng.random() < 0.7
        path.write_bytes(edited_json(data, rng) if is_json else damage(data, rng))
        run(*FINETUNE, "--prepare")
    shutil.copytree(kept, "tuned")


def _table(rng: random.Random, damage: Damage) -> None:
    with _scratch("x.csv", "tabled"):
        data = damage(Path("finetune.csv").read_bytes(), rng)
        Path("x.csv").write_bytes(data)
        run("finetune", "x.csv", "--out", "tabled", "--size", "16", "--batch", "2", "--prepare")
