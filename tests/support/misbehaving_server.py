"""A web server on localhost that misbehaves on purpose, for tests of remote reading.

    server.folder / "a.jsonl"             what it serves; URLs from `server.url("a.jsonl")`
    server.script(Fault(status=503), Fault(reset_after=100))   one fault a request, then it is fine
    server.script(Fault(status=404), repeat=True)              for good
    server.ignores_ranges = True          and the other switches below
    server.requests                       what was asked, in order

The script takes the requests as they come. aiohttp by itself asks once more where a kept
connection breaks before the answer begins, so count `pauses`, not requests, to count retries.
"""

import re
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; counts are bytes of the body, which come before it."""

    status: int | None = None
    retry_after: str | None = None  # header of an answer with `status`
    reset_after: int | None = None  # the connection is reset; -1: before any answer
    stall_after: int | None = None  # nothing more comes; -1: no answer at all
    close_after: int | None = None  # the connection ends, though Content-Length promised more
    shorten_to: int | None = None  # Content-Length itself says so; nothing else tells
    bytes_per_second: float | None = None  # how fast the body comes, byte by byte if need be
    redirect: str | None = None  # 302 to this URL
    ignores_range: bool = False  # 200 with all of the file
    shifts_range: bool = False  # the bytes after those asked for


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]  # names in lower case


class MisbehavingServer:
    """Serves `folder` and pages of links to what folders hold; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.requests: list[Request] = []
        self.ignores_ranges = False
        self.forbids_head = False
        self.hides_length = False  # chunked, no Content-Length, `/*` in Content-Range
        self.encoding: str | None = None  # a Content-Encoding it claims
        self.tells = {"ETag", "Last-Modified"}  # of every file
        self.page_prefix = ""  # put before the links of its pages
        self.released = threading.Event()
        self._scheme = "http"
        self._faults: list[Fault] = []
        self._repeated: Fault | None = None
        self._lock = threading.Lock()
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "MisbehavingServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_address[1]}"

    def url(self, name: str, userinfo: str = "") -> str:
        return f"{self._scheme}://{userinfo}{self.host}/{name}"

    def use_tls(self, certificate: Path, key: Path) -> None:
        """From now on serve https; the certificate must hold for 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._scheme = "https"

    def script(self, *faults: Fault, repeat: bool = False) -> None:
        """The faults of the coming requests; with `repeat`, the last one goes on for good."""
        with self._lock:
            self._faults = list(faults)
            self._repeated = faults[-1] if repeat else None

    @property
    def is_script_over(self) -> bool:
        return not self._faults

    def take(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            return self._faults.pop(0) if self._faults else self._repeated or Fault()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: MisbehavingServer

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer
    disable_nagle_algorithm = True

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server.owner.forbids_head:
            self._take()
            self._send_error(405)
        else:
            self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _take(self) -> Fault:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self.server.owner.take(Request(self.command, parts.path, parts.query, headers))

    def _answer(self, with_body: bool) -> None:
        owner, fault = self.server.owner, self._take()
        if fault.reset_after == -1:
            return self._reset()
        if fault.stall_after == -1:
            return self._stall()
        if fault.status is not None:
            return self._send_error(fault.status, fault.retry_after)
        if fault.redirect is not None:
            return self._send_error(302, location=fault.redirect)
        path = owner.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.exists():
            return self._send_error(404)
        content = _make_page(path, owner.page_prefix) if path.is_dir() else path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not (owner.ignores_ranges or fault.ignores_range):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            total = "*" if owner.hides_length else len(content)
            if first >= len(content):
                return self._send_error(416, content_range=f"bytes */{total}")
            if fault.shifts_range:
                first, last = first + 1, last + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if path.is_dir() else "application/x-data")
        if owner.encoding:
            self.send_header("Content-Encoding", owner.encoding)
        written = path.stat().st_mtime_ns
        marks = {
            "ETag": f'"{written:x}-{path.stat().st_size:x}"',
            "Last-Modified": formatdate(written // 10**9, usegmt=True),
        }
        for name in owner.tells:
            self.send_header(name, marks[name])
        self._send_body(content if with_body else b"", len(content), fault)
        return None

    def _send_body(self, content: bytes, length: int, fault: Fault) -> None:
        is_chunked = self.server.owner.hides_length
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif fault.shorten_to is not None:
            content = content[: fault.shorten_to]
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        ends = (fault.reset_after, fault.stall_after, fault.close_after)
        stop = next((end for end in ends if end is not None), len(content))
        rate = fault.bytes_per_second
        piece = max(1, stop if rate is None else int(rate / 20))
        for start in range(0, stop, piece):
            data = content[start : min(start + piece, stop)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked and data else data)
            if rate is not None:
                time.sleep(piece / rate)
        if fault.reset_after is not None:
            self._reset()
        elif fault.stall_after is not None:
            self._stall()
        elif fault.close_after is not None:
            self.close_connection = True
        elif is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_error(
        self,
        status: int,
        retry_after: str | None = None,
        content_range: str | None = None,
        location: str | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Retry-After": retry_after, "Content-Range": content_range, "Location": location}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _reset(self) -> None:
        # Without lingering, closing sends RST in place of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _stall(self) -> None:
        self.server.owner.released.wait()
        self.close_connection = True


def _make_page(folder: Path, prefix: str) -> bytes:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    links = ["../", "?C=M;O=A", *(prefix + quote(name) for name in names)]
    return "".join(f'<a href="{link}">{link}</a>\n' for link in links).encode()
