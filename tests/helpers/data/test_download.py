"""Downloads from servers that break off, lie or are gone, and archives that are refused."""

import hashlib
import io
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torchvision
from datafiles import names, random_images, trust_batches

from helpers import data
from helpers.data import download
from helpers.data.commands import SOURCES, main
from helpers.settings import ROOT


class Host:
    """A web server on this machine that misbehaves as told."""

    def __init__(self, content):
        self.content = content
        self.asked = []  # the Range header of each request
        self.cuts = []  # how many bytes to send before the connection breaks, request by request
        self.ranges = True
        self.status = None
        self.kind = "application/octet-stream"
        self.ready = threading.Event()  # answers wait for it
        self.ready.set()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        self.ready.wait(30)
        if self.status:
            return request.send_error(self.status)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and start >= len(self.content):
            return request.send_error(416)
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", self.kind)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@contextmanager
def serving(*hosts):
    """Addresses of `hosts` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self):
            hosts[int(self.path.split("/")[1])].answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield [f"http://127.0.0.1:{server.server_address[1]}/{i}/things.tar.gz" for i in range(len(hosts))]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def packed(files, compression="gz"):
    """A tar archive of {name: bytes}, or of TarInfo objects, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


BYTES = random_images(50_000).numpy().tobytes()
ARCHIVE = packed({"things/one.bin": BYTES, "things/deep/two.txt": b"two"})


def things(*urls, content=ARCHIVE):
    return download.Archive("things.tar.gz", hashlib.md5(content).hexdigest(), "things", "50 kB", urls)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_fetch_downloads_unpacks_and_tidies_up(place, capsys):
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.fetch(things(*urls), place) == place / "things"
        assert download.fetch(things(*urls), place) == place / "things"
    assert host.asked == [None]
    assert (place / "things/one.bin").read_bytes() == BYTES and (place / "things/deep/two.txt").read_bytes() == b"two"
    assert names(place) == ["things"]
    assert capsys.readouterr().err == ""


def test_a_progress_bar_unless_silent(place, capsys, monkeypatch):
    monkeypatch.delenv("COURSE_SILENT")
    with serving(Host(ARCHIVE)) as urls:
        download.fetch(things(*urls), place)
    assert "things.tar.gz: 100%" in capsys.readouterr().err


def test_a_broken_connection_is_taken_up_where_it_broke(place):
    host = Host(ARCHIVE)
    host.cuts = [10_000, 20_000]
    with serving(host) as urls:
        path = download.download(things(*urls), place)
    assert path.read_bytes() == ARCHIVE
    assert host.asked == [None, "bytes=10000-", "bytes=30000-"]


def test_a_later_call_continues_from_what_is_kept(place):
    host = Host(ARCHIVE)
    host.cuts = [10_000, 0]
    with serving(host) as urls:
        with pytest.raises(
            ConnectionError, match=r"could not be downloaded[\s\S]*broke off[\s\S]*10,000 bytes are kept"
        ):
            download.fetch(things(*urls), place)
        assert names(place) == ["things.tar.gz.part"]
        host.cuts = []
        download.fetch(things(*urls), place)
    assert host.asked[-1] == "bytes=10000-" and (place / "things/one.bin").read_bytes() == BYTES
    assert names(place) == ["things"]


def test_another_mirror_continues_too(place):
    broken, whole = Host(ARCHIVE), Host(ARCHIVE)
    broken.cuts = [10_000, 0]
    with serving(broken, whole) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert whole.asked == ["bytes=10000-"]


def test_a_server_that_ignores_range_sends_everything_again(place):
    host = Host(ARCHIVE)
    host.cuts, host.ranges = [10_000], False
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert host.asked == [None, "bytes=10000-"]


def test_wrong_bytes_kept_from_before_are_thrown_away(place):
    (place / "things.tar.gz.part").write_bytes(b"x" * 10_000)
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert host.asked == ["bytes=10000-", None]


@pytest.mark.parametrize(("kept", "requests"), [(ARCHIVE, 1), (ARCHIVE + b"more", 2)], ids=["complete", "too long"])
def test_a_part_file_with_nothing_left_to_ask_for(place, kept, requests):
    (place / "things.tar.gz.part").write_bytes(kept)
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert len(host.asked) == requests


def test_mirrors_are_tried_in_turn(place):
    gone, damaged, good = Host(ARCHIVE), Host(ARCHIVE[:-5] + b"12345"), Host(ARCHIVE)
    gone.status = 404
    with serving(gone, damaged, good) as urls:
        assert download.download(things("http://127.0.0.1:9/x", *urls), place).read_bytes() == ARCHIVE
    assert [len(host.asked) for host in (gone, damaged, good)] == [1, 1, 1]
    assert good.asked == [None]  # nothing of the damaged file is built upon


def test_every_failure_is_told(place):
    gone, damaged = Host(ARCHIVE), Host(ARCHIVE[:-5] + b"12345")
    gone.status = 503
    with serving(gone, damaged) as urls, pytest.raises(ConnectionError) as raised:
        download.fetch(things("http://127.0.0.1:9/x", *urls), place)
    message = str(raised.value)
    assert "127.0.0.1:9: the connection failed" in message and "status 503" in message
    assert "wrong checksum" in message and "kept" not in message and "COURSE_DATA" in message
    assert str(place) not in message and names(place) == []


def test_an_archive_that_is_there_already_is_used_if_it_is_whole(place):
    host = Host(ARCHIVE)
    (place / "things.tar.gz").write_bytes(ARCHIVE)
    with serving(host) as urls:
        download.fetch(things(*urls), place)
        assert host.asked == [] and names(place) == ["things"]
        shutil.rmtree(place / "things")
        (place / "things.tar.gz").write_bytes(ARCHIVE[:1000])
        download.fetch(things(*urls), place)
    assert host.asked == [None] and (place / "things/one.bin").read_bytes() == BYTES


def test_two_at_once_share_one_download(place, capsys):
    host, results = Host(ARCHIVE), []
    host.ready.clear()
    with serving(host) as urls:
        threads = [
            threading.Thread(target=lambda: results.append(download.fetch(things(*urls), place))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        said = ""
        while "Another notebook" not in said:  # the first waits for the server, the second for the first
            said += capsys.readouterr().out
            time.sleep(0.01)
        host.ready.set()
        for thread in threads:
            thread.join(30)
    assert results == [place / "things"] * 2 and host.asked == [None]
    assert "Another notebook is downloading things.tar.gz" in said


def test_a_cache_folder_that_cannot_be_written(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(place), "mkdir", refuse)
    with pytest.raises(PermissionError, match="COURSE_CACHE"):
        download.fetch(things(), place)


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed({"../outside.txt": b"x"}), "tampered.*'../outside.txt'"),
        (packed({"things/../../outside.txt": b"x"}), "tampered"),
        (packed({"/outside.txt": b"x"}), "tampered.*'/outside.txt'"),
        (link("things/link", "/etc"), "tampered.*'things/link'"),
        (link("things/link", "../../x", tarfile.LNKTYPE), "tampered.*'things/link'"),
        (packed({"others/a": b"x"}), "does not contain the folder things"),
        (ARCHIVE[:20_000], "damaged"),
        (b"no archive", "damaged"),
    ],
    ids=["outside", "outside from within", "absolute", "link", "hard link", "other folder", "cut short", "no archive"],
)
def test_archives_that_are_refused(place, content, words, filtered, monkeypatch):
    if not filtered:  # as Python before 3.11.4
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = place / "things.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        download.extract(path, place, "things")
    assert names(place) == ["things.tar.gz"] and not (place.parent / "outside.txt").exists()


def test_leftovers_of_a_killed_unpacking_are_no_obstacle(place):
    (place / ".things.tar.gz.unpacking/things").mkdir(parents=True)
    (place / ".things.tar.gz.unpacking/things/stale").write_text("")
    (place / "things.tar.gz").write_bytes(ARCHIVE)
    download.extract(place / "things.tar.gz", place, "things")
    assert names(place / "things") == ["deep", "one.bin"]


def test_the_archives_are_torchvisions_with_more_mirrors():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    cifar, voc = download.cifar10_archive(), download.voc2012_archive()
    assert (cifar.file, cifar.md5) == ("cifar-10-python.tar.gz", torchvision.datasets.CIFAR10.tgz_md5)
    assert (voc.md5, voc.unpacks) == (DATASET_YEAR_DICT["2012"]["md5"], "VOCdevkit/VOC2012")
    assert torchvision.datasets.CIFAR10.url == cifar.urls[0] and DATASET_YEAR_DICT["2012"]["url"] in voc.urls
    for archive in (cifar, voc):
        assert len(archive.urls) > 1 and all(url.endswith("/" + archive.file) for url in archive.urls)


def test_fetched_data_are_found_and_read(drawn_batches, monkeypatch, tmp_path):
    source = drawn_batches / "cifar-10-batches-py"
    content = packed({f"cifar-10-batches-py/{path.name}": path.read_bytes() for path in source.iterdir()})
    with serving(Host(content)) as urls:
        archive = download.Archive(
            "c.tar.gz", hashlib.md5(content).hexdigest(), "cifar-10-batches-py", "1 MB", tuple(urls)
        )
        monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], archive=lambda: archive))
        assert main(["fetch", "cifar10"]) == 0
    trust_batches(monkeypatch, tmp_path / "cache/cifar-10-batches-py")
    assert str(data.cifar10().provenance) == "CIFAR-10, 120 + 40 images (published: 50,000 + 10,000)"


KEPT = ARCHIVE[:10_000]


@pytest.fixture
def kept(place):
    """A place with a partial file from before."""
    part = place / "things.tar.gz.part"
    part.write_bytes(KEPT)
    return part


def web_page(host):
    host.content, host.kind, host.ranges = b"<html>Please log in</html>" * 1_000, "text/html", False


def page_as_text(host):
    host.content, host.kind, host.ranges = b"Please log in" * 1_000, "text/plain", False


def starts_again_and_breaks_off(host):
    host.ranges, host.cuts = False, [5_000, 0]


def nothing_missing(host):
    host.status = 416


def empty(host):
    host.content, host.ranges = b"", False


@pytest.mark.parametrize("fault", [web_page, page_as_text, starts_again_and_breaks_off, nothing_missing, empty])
def test_what_is_kept_survives_a_bad_server_and_the_next_continues(place, kept, fault):
    bad, good = Host(ARCHIVE), Host(ARCHIVE)
    fault(bad)
    with serving(bad, good) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert bad.asked[0] == good.asked[0] == "bytes=10000-" and len(good.asked) == 1
    assert names(place) == ["things.tar.gz"]


@pytest.mark.parametrize("fault", [web_page, page_as_text, starts_again_and_breaks_off, empty])
def test_what_is_kept_survives_when_no_server_is_good(place, kept, fault):
    bad = Host(ARCHIVE)
    fault(bad)
    with serving(bad) as urls, pytest.raises(ConnectionError, match="10,000 bytes are kept"):
        download.download(things(*urls), place)
    assert kept.read_bytes() == KEPT and names(place) == [kept.name]


@pytest.mark.parametrize("fault", [web_page, nothing_missing, empty])
def test_a_bad_server_leaves_nothing_where_nothing_was(place, fault):
    bad, good = Host(ARCHIVE), Host(ARCHIVE)
    fault(bad)
    with serving(bad) as urls, pytest.raises(ConnectionError):
        download.download(things(*urls), place)
    assert names(place) == []
    with serving(bad, good) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert good.asked == [None]


def test_a_server_that_starts_again_and_gets_further_replaces_what_is_kept(place, kept):
    host = Host(ARCHIVE)
    host.ranges, host.cuts = False, [20_000, 0]
    with serving(host) as urls, pytest.raises(ConnectionError, match="20,000 bytes are kept"):
        download.download(things(*urls), place)
    assert kept.read_bytes() == ARCHIVE[:20_000] and names(place) == [kept.name]


def test_a_killed_checksum_leaves_the_file_for_the_next_call(place, monkeypatch):
    def killed(_path):
        raise KeyboardInterrupt

    host = Host(ARCHIVE)
    with serving(host) as urls:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(download, "_md5", killed)
            download.download(things(*urls), place)
        assert names(place) == ["things.tar.gz.part"]
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert host.asked == [None, f"bytes={len(ARCHIVE)}-"]  # nothing was sent twice


STOPPED = """
import sys
from dataclasses import replace
from helpers.data import commands, download
archive = download.Archive("things.tar.gz", "0" * 32, "things", "50 kB", (sys.argv[1],))
commands.SOURCES["cifar10"] = replace(commands.SOURCES["cifar10"], archive=lambda: archive)
sys.exit(commands.main(["fetch", "cifar10"]))
"""


def test_ctrl_c_prints_one_line_and_keeps_what_has_arrived(tmp_path):
    class Slow(Host):
        def answer(self, request):
            request.send_response(200)
            request.send_header("Content-Length", str(10 << 20))
            request.end_headers()
            request.wfile.write(bytes(2 << 20))
            self.ready.wait(60)

    host, part = Slow(ARCHIVE), tmp_path / "cache/things.tar.gz.part"
    host.ready.clear()
    with serving(host) as urls:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPED, urls[0]],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while not (part.exists() and part.stat().st_size >= 1 << 20):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        host.ready.set()
    assert process.returncode == 130 and out == ""
    assert err == "Stopped. What has arrived is kept: the same command goes on from there.\n"
    assert part.stat().st_size >= 1 << 20


def test_a_web_page_and_an_empty_answer_are_called_so(place):
    page, nothing = Host(ARCHIVE), Host(ARCHIVE)
    web_page(page)
    empty(nothing)
    with serving(page, nothing) as urls, pytest.raises(ConnectionError, match="web page[\\s\\S]*the answer is empty"):
        download.download(things(*urls), place)


def test_another_part_than_was_asked_for_is_not_appended(place, kept):
    class Shifted(Host):
        def answer(self, request):
            request.send_response(206)
            request.send_header("Content-Range", f"bytes 0-99/{len(ARCHIVE)}")
            request.send_header("Content-Length", "100")
            request.end_headers()
            request.wfile.write(ARCHIVE[:100])

    with serving(Shifted(ARCHIVE)) as urls, pytest.raises(ConnectionError, match="sends another part"):
        download.download(things(*urls), place)
    assert kept.read_bytes() == KEPT
