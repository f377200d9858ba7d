"""Downloads against a loopback server that truncates, stalls, and serves wrong lengths and bytes; and --from."""

import argparse
import errno
import hashlib
import re
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ilgnet_repro.aesthetics.download import get
from ilgnet_repro.aesthetics.releases import Release
from ilgnet_repro.cli import data as command
from ilgnet_repro.errors import DownloadError

BODY = bytes((7 * i + i // 251) % 256 for i in range(40_009))
WRONG = BODY[:-1] + b"?"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 40009\n"
RELEASE = Release("sample", "log", "results/sample.bin", len(BODY), hashlib.sha256(BODY).hexdigest())
FAST = {"timeout": 30, "tries": 3, "pause": 0.01}
SILENT = {"stalls": {"timeout": 1}, "mute": {"timeout": 1}}


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path: one behaviour per name."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        # A proxy receives a whole address, whose second part is empty.
        behaviour = self.path.split("/")[1] or "good"
        with suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, behaviour.replace("-", "_"))()
        self.close_connection = True

    @property
    def begin(self):
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def answer(self, status, body, headers, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def ranged(self, body, sent=None):
        rest = body[self.begin :]
        headers = {"Content-Range": f"bytes {self.begin}-{len(body) - 1}/{len(body)}"} if self.begin else {}
        self.answer(206 if self.begin else 200, rest[:sent], headers, len(rest))

    def good(self):
        self.ranged(BODY)

    def truncates(self):
        self.ranged(BODY, 15_000)

    def cuts_at_once(self):
        self.ranged(BODY, 0)

    def stalls(self):
        self.ranged(BODY, 9_000 if not self.begin else 0)
        self.server.stop.wait(30)

    def mute(self):
        self.server.stop.wait(30)

    def too_long(self):
        self.answer(200, BODY + b"more", {})

    def too_short(self):
        self.answer(200, BODY, {}, length=1_000)

    def claims_more(self):
        self.answer(200, BODY, {}, length=10**15)

    def claims_endlessly(self):
        self.answer(200, BODY, {}, length="9" * 5_000)

    def endless(self):
        self.answer(200, BODY, {}, length=False)
        while not self.server.stop.is_set():
            self.wfile.write(b"x" * 65536)
            self.server.extra += 65536

    def wrong_bytes(self):
        self.ranged(WRONG)

    def page(self):
        self.answer(200, b"<html>sign in</html>", {})

    def pointer(self):
        self.answer(200, POINTER, {})

    def pointer_without_length(self):
        self.answer(200, POINTER, {}, length=False)

    def ignores_range(self):
        self.answer(200, BODY, {})

    def wrong_range(self):
        if self.begin:
            self.answer(206, BODY[5:], {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"})
        else:
            self.good()

    def always_wrong_range(self):
        self.answer(206, BODY[5:], {"Content-Range": "bytes 5-nonsense"})

    def other_total(self):
        self.answer(206, BODY[self.begin :], {"Content-Range": f"bytes {self.begin}-40008/50000"})

    def refuses_range(self):
        if self.begin:
            self.answer(416, b"", {"Content-Range": "bytes */3"})
        else:
            self.good()

    def missing(self):
        self.answer(404, b"not here", {})

    def broken(self):
        self.answer(500, b"oops", {})

    def busy_once(self):
        if len(self.server.requests) == 1:
            self.answer(503, b"later", {})
        else:
            self.good()

    def redirects(self):
        self.answer(302, b"", {"Location": f"/good/{self.path.partition('/redirects/')[2]}"})

    def loops(self):
        self.answer(302, b"", {"Location": self.path})

    def redirects_to_a_file(self):
        self.answer(302, b"", {"Location": "file:///etc/hostname"})

    def hangs_up(self):
        self.connection.close()


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests, server.stop, server.extra = [], threading.Event(), 0
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def fetch(server, behaviour, target, release=RELEASE, **options):
    settings = {**FAST, **SILENT.get(behaviour, {}), **options}
    get(release, target, mirror=f"{server.address}/{behaviour}", **settings)


@pytest.mark.parametrize(
    ("behaviour", "held", "ranges"),
    [
        ("good", b"", [None]),
        ("good", BODY[:30_001], ["bytes=30001-"]),
        ("good", BODY, []),
        ("good", BODY + b"too much", [None]),
        ("good", WRONG[30_000:], ["bytes=10009-", None]),
        ("good", WRONG, [None]),
        ("truncates", b"", [None, "bytes=15000-", "bytes=30000-"]),
        ("ignores-range", BODY[:30_001], ["bytes=30001-"]),
        ("ignores-range", b"\0" * 30_001, ["bytes=30001-"]),
        ("wrong-range", BODY[:30_001], ["bytes=30001-", None]),
        ("refuses-range", BODY[:30_001], ["bytes=30001-", None]),
        ("endless", b"", [None]),
        ("busy-once", b"", [None, None]),
        ("redirects", b"", [None, None]),
        ("redirects", BODY[:30_001], ["bytes=30001-", "bytes=30001-"]),
    ],
    ids=[
        "good",
        "resumed",
        "all-held",
        "too-much-held",
        "wrong-part-held",
        "wrong-whole-held",
        "truncated-twice",
        "range-ignored",
        "range-ignored-wrong-part",
        "another-range",
        "range-refused",
        "endless-body",
        "busy-once",
        "redirected",
        "redirected-resumed",
    ],
)
def test_the_file_arrives_whole(server, tmp_path, behaviour, held, ranges):
    target = tmp_path / "deep" / "sample.bin"
    if held:
        target.parent.mkdir()
        (tmp_path / "deep" / "sample.bin.part").write_bytes(held)
    fetch(server, behaviour, target)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["sample.bin"]
    assert [asked for _, asked in server.requests] == ranges


SHA = RELEASE.sha256
WRONG_SHA = hashlib.sha256(WRONG).hexdigest()
RETRY, ELSE = "run again to resume", "try mirror=URL or folder=FOLDER"
LFS = "serves a Git-LFS pointer instead of the file it stands for"
CIRCLE = "redirects in a circle or out of http (HTTP 302)"


@pytest.mark.parametrize(
    ("behaviour", "message", "kept", "requests"),
    [
        ("cuts-at-once", f"stopped after 0 of 40009 bytes (3 tries); {ELSE}", 0, 3),
        ("stalls", f"was silent for 1 s (3 tries); 9000 bytes are kept, {RETRY}", 9_000, 3),
        ("mute", f"was silent for 1 s (3 tries); {ELSE}", 0, 3),
        ("too-long", f"offers 40013 bytes where the manifest says 40009; {ELSE}", 0, 1),
        ("too-short", f"offers 1000 bytes where the manifest says 40009; {ELSE}", 0, 1),
        ("claims-more", f"offers {10**15} bytes where the manifest says 40009; {ELSE}", 0, 1),
        ("wrong-bytes", f"serves SHA-256 {WRONG_SHA} where the manifest says {SHA}; {ELSE}", 0, 1),
        ("page", f"offers 20 bytes where the manifest says 40009; {ELSE}", 0, 1),
        ("pointer", f"{LFS}; {ELSE}", 0, 1),
        ("pointer-without-length", f"{LFS}; {ELSE}", 0, 1),
        ("redirects-to-a-file", f"{CIRCLE}; {ELSE}", 0, 1),
        ("loops", f"{CIRCLE}; {ELSE}", 0, 5),
        (
            "always-wrong-range",
            f"answers a request from byte 0 with range 'bytes 5-nonsense' (3 tries); {ELSE}",
            0,
            3,
        ),
        ("other-total", f"offers 50000 bytes where the manifest says 40009; {ELSE}", 0, 1),
        ("missing", f"answers HTTP 404; {ELSE}", 0, 1),
        ("broken", f"answers HTTP 500 (3 tries); {ELSE}", 0, 3),
        ("hangs-up", f"broke off (RemoteDisconnected) (3 tries); {ELSE}", 0, 3),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_bad_server_leaves_no_file(server, tmp_path, *, behaviour, message, kept, requests):
    target = tmp_path / "sample.bin"
    with pytest.raises(DownloadError) as error:
        fetch(server, behaviour, target)
    assert str(error.value) == f"sample: {server.address}/{behaviour}/results/sample.bin {message}"
    assert not target.exists()
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == (
        {"sample.bin.part": kept} if kept else {}
    )
    assert len(server.requests) == requests


def test_a_length_that_no_int_holds_is_refused(server, tmp_path):
    with pytest.raises(
        DownloadError, match=r"offers 9999.* bytes where the manifest says 40009; try mirror="
    ):
        fetch(server, "claims-endlessly", tmp_path / "sample.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_download_resumes_where_it_stopped(server, tmp_path):
    target = tmp_path / "sample.bin"
    with pytest.raises(DownloadError):
        fetch(server, "stalls", target, tries=1)
    server.requests.clear()
    fetch(server, "good", target)
    assert [asked for _, asked in server.requests] == ["bytes=9000-"]
    assert target.read_bytes() == BODY


def test_no_byte_past_the_size_is_read(server, tmp_path, monkeypatch):
    asked = []
    read1 = HTTPResponse.read1

    def counted(response, count):
        piece = read1(response, count)
        asked.append(len(piece))
        return piece

    monkeypatch.setattr(HTTPResponse, "read1", counted)
    fetch(server, "endless", tmp_path / "sample.bin")
    assert sum(asked) == len(BODY)


def test_the_next_address_is_tried(server, tmp_path):
    addresses = tuple(f"{server.address}/{name}/results/sample.bin" for name in ("missing", "good"))
    target = tmp_path / "sample.bin"
    get(replace(RELEASE, addresses=addresses), target, **FAST)
    assert target.read_bytes() == BODY
    addresses = tuple(f"{server.address}/{name}/results/sample.bin" for name in ("missing", "page"))
    with pytest.raises(DownloadError) as error:
        get(replace(RELEASE, addresses=addresses), tmp_path / "other.bin", **FAST)
    assert str(error.value) == (
        f"sample: {addresses[0]} answers HTTP 404; {addresses[1]} offers 20 bytes "
        f"where the manifest says 40009; {ELSE}"
    )


def test_a_good_copy_is_not_fetched_again_and_a_wrong_one_is_replaced(server, tmp_path):
    target = tmp_path / "sample.bin"
    target.write_bytes(BODY)
    fetch(server, "good", target)
    assert server.requests == []
    target.write_bytes(WRONG)
    with pytest.raises(DownloadError):
        fetch(server, "missing", target)
    assert target.read_bytes() == WRONG
    fetch(server, "good", target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("where", ["option", "environment"])
def test_the_proxy_is_used(server, tmp_path, monkeypatch, where):
    if where == "environment":
        monkeypatch.setenv("http_proxy", server.address)
        monkeypatch.setenv("no_proxy", "")
    proxy = server.address if where == "option" else None
    get(RELEASE, tmp_path / "sample.bin", mirror="http://files.invalid", proxy=proxy, **FAST)
    assert (tmp_path / "sample.bin").read_bytes() == BODY
    assert server.requests == [("http://files.invalid/results/sample.bin", None)]


@pytest.mark.parametrize(
    ("release", "options", "message"),
    [
        (
            RELEASE,
            {},
            "sample: is at cloud drives only; `ilgnet data where sample` explains how to get it",
        ),
        (
            RELEASE,
            {"mirror": "file:///tmp/"},
            "file:///tmp/results/sample.bin: not an http or https address; for a folder use folder=FOLDER",
        ),
        (
            replace(RELEASE, size=10**18),
            {"mirror": "http://127.0.0.1:9"},
            "/sample.bin: needs 1000000000000000000 bytes, the disk has ",
        ),
        (
            RELEASE,
            {"mirror": "http://127.0.0.1:port"},
            "http://127.0.0.1:port/results/sample.bin cannot be asked for (nonnumeric port: 'port'); ",
        ),
        (
            RELEASE,
            {"mirror": "http://127.0.0.1:1", "tries": 2},
            "http://127.0.0.1:1/results/sample.bin cannot be reached "
            f"([Errno {errno.ECONNREFUSED}] Connection refused) (2 tries); ",
        ),
    ],
    ids=["no-address", "file-mirror", "no-room", "bad-port", "nobody-there"],
)
def test_refused_before_downloading(tmp_path, release, options, message):
    with pytest.raises(DownloadError) as error:
        get(release, tmp_path / "sample.bin", **{**FAST, **options})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        DownloadError, match=r"file/sample.bin: cannot be written \(.*\); try another target="
    ):
        fetch(server, "good", tmp_path / "file" / "sample.bin")


def test_delays_between_tries_double(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(DownloadError):
        fetch(server, "broken", tmp_path / "sample.bin", tries=8, pause=1)
    assert slept == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("name", ["results/sample.bin", "sample.bin", "sample (1).bin"])
def test_a_release_is_found_in_a_folder(tmp_path, name):
    source, target = tmp_path / "from" / name, tmp_path / "to" / "sample.bin"
    source.parent.mkdir(parents=True)
    source.write_bytes(BODY)
    held = []
    get(RELEASE, target, folder=tmp_path / "from", progress=held.append)
    assert target.read_bytes() == BODY and held[-1] == len(BODY)
    assert [path.name for path in target.parent.iterdir()] == ["sample.bin"]


FROM = "sample: not in {folder}: "


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, FROM + "neither results/sample.bin nor any file of 40009 bytes is there; fetch it again"),
        ({"sample.bin": b"x"}, FROM + "{folder}/sample.bin has 1 bytes instead of 40009; fetch it again"),
        (
            {"sample.bin": POINTER},
            FROM + "{folder}/sample.bin is a Git-LFS pointer, not the file it stands for; fetch it again",
        ),
        (
            {"renamed.bin": WRONG},
            FROM
            + "{folder}/renamed.bin has SHA-256 "
            + WRONG_SHA
            + " instead of "
            + SHA
            + "; fetch it again",
        ),
        (None, "{folder}: is not a folder; give folder= the one that holds results/sample.bin"),
    ],
    ids=["nothing", "short", "pointer", "wrong-bytes", "no-folder"],
)
def test_a_folder_without_the_release(tmp_path, files, message):
    folder, target = tmp_path / "from", tmp_path / "to" / "sample.bin"
    if files is not None:
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    with pytest.raises(DownloadError) as error:
        get(RELEASE, target, folder=folder)
    assert str(error.value) == message.replace("{folder}", str(folder))
    assert not target.parent.exists()


def ilgnet(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["data", *map(str, words)]))


def test_get_and_verify_of_the_authors_files(authors, tmp_path, capsys):
    assert ilgnet("get", "partition", "mean", "deploy", "--from", authors, "--dest", tmp_path) == 0
    assert ilgnet("verify", "partition", "mean", "deploy", "--dest", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ava1-train: {tmp_path / 'data/AVA1/train.txt'}"
    assert lines[7:] == [re.sub(r": (.*)", r": ok (\1)", line) for line in lines[:7]]


def test_get_over_the_network_honours_home(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ILGNET_HOME", str(tmp_path))
    monkeypatch.setattr("ilgnet_repro.aesthetics.releases.releases", lambda: (RELEASE,))
    assert ilgnet("get", "sample", "--mirror", f"{server.address}/good/") == 0
    assert (tmp_path / "results/sample.bin").read_bytes() == BODY
    assert capsys.readouterr().out == f"sample: {tmp_path / 'results/sample.bin'}\n"
