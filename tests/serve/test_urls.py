"""`fetch` and `is_public`: what a stranger's URL may reach."""

import contextlib
import http.server
import socket
import ssl
import threading
import time

import pytest

from llava_s2.errors import InputError
from llava_s2.serve.urls import fetch, is_public

INSIDE = """
127.0.0.1 127.8.8.8 10.0.0.1 172.16.9.9 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 239.1.1.1
255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 :: ::1 fe80::1 fe80::1%lo fc00::1 fd12::1 ff02::1 fec0::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a00:1 2002:7f00:1:: 2001:0:1234::1 2001:db8::1
"""


@pytest.mark.parametrize("address", INSIDE.split())
def test_addresses_inside_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_outside_are(address):
    assert is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        port = self.server.server_address[1]
        redirects = {
            "/inside": f"http://127.0.0.2:{port}/file",
            "/metadata": "http://169.254.169.254/latest/meta-data",
            "/disk": "file:///etc/passwd",
            "/loop": "/loop",
            "/once": "/file",
        }
        self.server.seen.append(self.path)
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
        elif self.path == "/file":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with_errors = 0
            while not with_errors:
                try:
                    self.wfile.write(bytes(1 << 16))
                except OSError:
                    with_errors = 1
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(site, path, **options):
    options = {"allowed": lambda address: address == "127.0.0.1", **options}
    return fetch(f"http://127.0.0.1:{site.server_address[1]}{path}", **options)


def test_a_file_and_a_redirect_to_it(site):
    assert get(site, "/file") == get(site, "/once") == b"hello"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/inside", "not public"),
        ("/metadata", "not public"),
        ("/disk", "not an http or https URL"),
        ("/loop", "redirects more than 3 times"),
        ("/none", "status 404"),
        ("/endless", "larger than 1 MB"),
    ],
)
def test_redirects_and_answers_that_are_refused(site, path, message):
    with pytest.raises(InputError, match=message):
        get(site, path, max_bytes=1 << 20)


def test_a_dripping_answer_ends_in_time(site):
    start = time.monotonic()
    with pytest.raises(InputError, match=r"within 0\.5 seconds"):
        get(site, "/drip", seconds=0.5)
    assert time.monotonic() - start < 5


def test_a_dripping_answer_over_tls_ends_in_time(monkeypatch):
    def anonymous(purpose):  # a cipher that needs no certificate
        context = ssl.SSLContext(purpose)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
        return context

    def drip(listener):
        with (
            contextlib.suppress(OSError),
            anonymous(ssl.PROTOCOL_TLS_SERVER).wrap_socket(listener.accept()[0], server_side=True) as made,
        ):
            made.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                made.sendall(b"x")
                time.sleep(0.1)

    monkeypatch.setattr("httpcore._sync.connection.default_ssl_context", lambda: anonymous(ssl.PROTOCOL_TLS_CLIENT))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=[listener], daemon=True).start()
        start = time.monotonic()
        with pytest.raises(InputError, match=r"within 1 seconds"):
            fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/", seconds=1, allowed=lambda address: True)
        assert time.monotonic() - start < 5


def test_a_server_that_says_nothing_ends_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(InputError, match=r"within 0\.3 seconds"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3, allowed=lambda address: True)
        with pytest.raises(InputError, match=r"within 0\.3 seconds|could not"):  # in the middle of TLS
            fetch(f"https://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3, allowed=lambda address: True)


def test_this_machine_is_never_asked(site):
    site.seen.clear()
    port = site.server_address[1]
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1", "0x7f.0.0.1"):
        with pytest.raises(InputError, match=r"not public|could not be fetched"):
            fetch(f"http://{host}:{port}/file", seconds=2)
    assert site.seen == []


def test_a_name_with_one_private_address_is_refused(monkeypatch, site):
    def found(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(InputError, match="not public"):
        fetch("http://rebind.example/x")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://8.8.8.8/x",
        "gopher://8.8.8.8/",
        "data:text/html,hi",
        "//8.8.8.8/x",
        "http://",
        "http://user:pass@8.8.8.8/",
        "http://8.8.8.8:99999/",
        "http://[::1/",
        "http://8.8.8.8/\r\nHost: x",
        "http://bücher.example/",
        "",
    ],
)
def test_what_is_no_plain_http_url_is_refused(url):
    with pytest.raises(InputError, match="not an http or https URL"):
        fetch(url)
