"""The severe faults of the first attack, by commands and public names only. usage: attack_severe.py [--seed N] [--every N]
Each case runs in a folder of its own; prints what fell; exits 0 only when nothing did."""

# Long lines are tables of hostile inputs; each closure runs in the pass of the loop that made it.
# ruff: noqa: E501, E741, B023, PLW0603, PLW1510

import os
import random
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from attack_ends import preload, start

from ilgnet_repro.schema import caffe_pb2 as pb

seed = int(sys.argv[sys.argv.index("--seed") + 1]) if "--seed" in sys.argv else 1
every = int(sys.argv[sys.argv.index("--every") + 1]) if "--every" in sys.argv else 1
r, fails, listed, done = random.Random(seed), [], 0, 0
preload()


def run(*a, cwd):
    """status 0 or 1, no traceback, no signal"""
    end = start([str(word) for word in a], Path(cwd))
    assert end.status in (0, 1) and "Traceback" not in end.err, (
        f"{a[:3]}: status {end.status} {end.err.strip()[-120:]}"
    )
    assert not end.hung, f"{a[:3]}: over 10 s"
    return end


def forked(work):
    """Run ``work`` in a child, so that no library starts threads here."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "see above"


def case(name):
    def decorate(f):
        global listed, done
        listed += 1
        if (listed - seed) % every:
            return
        done += 1
        with tempfile.TemporaryDirectory() as t:
            try:
                f(Path(t))
            except BaseException as e:
                fails.append(f"{name}: {type(e).__name__}: {str(e)[:200]}")

    return decorate


def net(w, layer="f", top="x", inp="d", name="n"):
    def q(s):
        return (
            '"'
            + "".join(
                c if c.isalnum() or c in "_/.-@:;(),[] " else f"\\{ord(c):03o}" if ord(c) < 256 else c
                for c in s
            )
            + '"'
        )

    (w / "n.prototxt").write_text(
        f'name: {q(name)}\nlayer {{ name: "in" type: "Input" top: {q(inp)} input_param {{ shape {{ dim: 1 dim: 3 }} }} }}\nlayer {{ name: {q(layer)} type: "InnerProduct" bottom: {q(inp)} top: {q(top)} inner_product_param {{ num_output: 2 }} }}\n'
    )
    m = pb.NetParameter(name="n")
    l = m.layer.add(name=layer, type="InnerProduct")
    for shape in ((2, 3), (2,)):
        b = l.blobs.add()
        b.shape.dim.extend(shape)
        b.data.extend(np.arange(np.prod(shape)).tolist())
    (w / "n.caffemodel").write_bytes(m.SerializeToString())


def images(w, n=4):
    for i in range(n):
        cv2.imwrite(str(w / f"{i}.png"), np.random.RandomState(i).randint(0, 255, (20, 24, 3), "u1"))
    (w / "list.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(n)))


evil = [
    'x""";open("PWNED","w");"""',
    "x';open('PWNED','w');'",
    "x\nopen('PWNED','w')\n",
    "a\rb",
    "__x",
    "F",
    "torch",
    "nn",
    "self",
    "None",
    "True",
    "class",
    "x@left",
    "[/x]",
    "[red]x",
    "\x1b[31mx",
    "../../x",
    "//x",
    "é",
    "a b",
    "import os",
    "}{",
    "%s",
    "{0}",
]
for e in evil:
    for where in r.sample(("layer", "top", "inp", "name"), 2):

        @case(f"name {e!r} as {where}")
        def _(w):
            net(w, **{where: e})
            forms = ("python", "onnx", "safetensors")
            p = run("convert", "n.caffemodel", "--prototxt", "n.prototxt", "--to", ",".join(forms), cwd=w)
            if p.status:  # one form may refuse what another can hold
                for to in forms:
                    run("convert", "n.caffemodel", "--prototxt", "n.prototxt", "--to", to, cwd=w)
            for code in w.glob("*.py"):
                forked(lambda: runpy.run_path(str(code)))
            for model in w.glob("*.onnx"):
                forked(lambda: onnxruntime.InferenceSession(str(model)))
            run("audit", "n.prototxt", cwd=w)
            assert not list(w.rglob("PWNED")), "the file's text ran as code"


@case("a pt2 with a pickle inside")
def _(w):
    import pickle

    class Boom:
        def __reduce__(self):
            return open, (str(w / "PWNED"), "w")

    net(w)
    run("convert", "n.caffemodel", "--prototxt", "n.prototxt", "--to", "pt2,safetensors", cwd=w)
    with zipfile.ZipFile(w / "n.pt2") as z, zipfile.ZipFile(w / "evil.pt2", "w", zipfile.ZIP_STORED) as o:
        top = z.namelist()[0].split("/")[0]
        for i in z.namelist():
            if "sample_inputs" not in i:
                o.writestr(i, z.read(i))
        o.writestr(f"{top}/data/sample_inputs/model.pt", pickle.dumps(Boom()))
    run("compare", "n.safetensors", "evil.pt2", cwd=w)
    assert not (w / "PWNED").exists(), "opening a pt2 ran code"


for command in (
    ("score", ".", "--weights", "w"),
    ("lmdb", "make", "./", "l.txt", "db"),
    ("partition", "check", "l.txt", "--pictures", "."),
):

    @case(f"a file name that is not UTF-8: {command[0]}")
    def _(w):
        images(w, 2)
        os.rename(w / "0.png", os.fsencode(w) + b"/caf\xe9.png")
        (w / "l.txt").write_bytes(b"caf\xe9.png 1\n1.png 0\n")
        net(w)
        run(*[a if a != "w" else "n.caffemodel" for a in command], cwd=w)


@case("lmdb export leaves a folder of others alone")
def _(w):
    images(w)
    run("lmdb", "make", "./", "list.txt", "db", cwd=w)
    (w / "out.partial").mkdir()
    (w / "out.partial/mine.txt").write_text("mine")
    run("lmdb", "export", "db", "out", cwd=w)
    assert (w / "out.partial/mine.txt").exists(), "it was deleted"


for _i in range(60):

    @case(f"damaged LMDB {_i}")
    def _(w):
        images(w, 6)
        run("lmdb", "make", "./", "list.txt", "db", cwd=w)
        f = w / "db/data.mdb"
        b = bytearray(f.read_bytes())
        if r.random() < 0.2:
            b = b[: r.randrange(len(b))]
        for _ in range(r.choice((1, 3, 20))):
            if b:
                b[r.randrange(min(len(b), r.choice((256, 4096, 8192, len(b)))) or 1)] = r.randrange(256)
        f.write_bytes(bytes(b))
        run(
            *r.choice(
                (
                    ("lmdb", "info", "db"),
                    ("lmdb", "check", "db"),
                    ("lmdb", "export", "db", "o"),
                    ("mean", "db", "m.binaryproto"),
                )
            ),
            cwd=w,
        )


@case("an image bomb is refused before it is decoded")
def _(w):
    _ok, jpg = cv2.imencode(".jpg", np.zeros((8, 8, 3), "u1"))
    b = bytearray(jpg.tobytes())
    i = b.index(b"\xff\xc0")
    b[i + 5 : i + 9] = (30000).to_bytes(2, "big") * 2
    (w / "bomb.jpg").write_bytes(bytes(b))
    (w / "l.txt").write_text("bomb.jpg 0\n")
    p = subprocess.run(
        [
            "bash",
            "-c",
            f"ulimit -v 4000000; exec {sys.executable} -c 'import sys; from ilgnet_repro.cli.main import main; sys.exit(main())' partition check l.txt --pictures .",
        ],
        cwd=w,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert p.returncode in (0, 1) and "Traceback" not in p.stderr, p.stderr[-150:]


print("\n".join(fails[:60]))
print(f"severe cases: {done - len(fails)} of {done} hold")
sys.exit(bool(fails))
