"""Fetching keeps to the rules at every hop and at every connection, and to its bounds of time and size."""

import datetime
import itertools
import os
import socket
import ssl
import threading
from contextlib import contextmanager

import httpcore
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from digr.config.images import ImagesConfig
from digr.images.addresses import RefusedAddress
from digr.images.fetching import HttpStatus, ImageFetcher, is_transient
from digr.s3 import s3_client
from tests.buckets import serve_bucket

LOOPBACK = ImagesConfig(private_networks=("127.0.0.0/8",))


@contextmanager
def _serve(answer, context=None):
    """Serve one connection after the other; `answer(connection, request)` writes what it likes. Gives port and requests."""
    requests, listening = [], socket.create_server(("127.0.0.1", 0))

    def work():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) if context else connection as stream:
                    request = b""
                    while b"\r\n\r\n" not in request and (part := stream.recv(4096)):
                        request += part
                    requests.append(request.decode())
                    answer(stream, request.decode())
            except OSError:
                continue  # the fetcher hung up

    threading.Thread(target=work, daemon=True).start()
    yield listening.getsockname()[1], requests
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def _reply(status=200, body=b"picture", **headers):
    lines = [f"HTTP/1.1 {status} x", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if not {"content_length", "transfer_encoding"} & set(headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _read(address, max_bytes=1000, allowed=LOOPBACK, **options):
    with ImageFetcher(allowed, **options) as fetcher:
        return fetcher.read(address, max_bytes)


def test_a_redirect_is_followed_relative_and_absolute():
    def answer(stream, request):
        path = request.split()[1]
        targets = {"/a": "b?c=d", "/b?c=d": f"http://127.0.0.1:{port}/e"}
        stream.sendall(_reply(302, Location=targets[path]) if path in targets else _reply(body=path.encode()))

    with _serve(answer) as (port, requests):
        assert _read(f"http://127.0.0.1:{port}/a") == b"/e"
    assert [request.split()[1] for request in requests] == ["/a", "/b?c=d", "/e"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("file:///etc/passwd", "file addresses are not read here"),
        ("/etc/passwd", None),  # a path of the same server
        ("data:image/png,x", "data addresses are not read here"),
        ("s3://bucket/key", "s3 addresses are not read here"),
        ("ftp://127.0.0.1/x", "ftp addresses are not read here"),
        ("http://169.254.169.254/latest/meta-data/iam", "never asked for images"),
        ("//169.254.169.254/x", "never asked for images"),
        ("http://[::ffff:10.0.0.1]/", "is not public"),
        ("http://0x0a000001/", "is not public"),
        ("http://metadata.google.internal/", "never asked for images"),
        ("http://user:pass@127.0.0.1/", "without a user"),
        ("http://exa mple/", "not a valid address"),
        ("http://x:abc/", "redirects to"),
    ],
)
def test_every_hop_is_checked_like_the_first_address(target, reason):
    def resolve(host, port):
        return ["169.254.169.254"] if host == "metadata.google.internal" else [host]

    def answer(stream, request):
        stream.sendall(_reply() if "passwd" in request else _reply(301, Location=target))

    with _serve(answer) as (port, requests):
        if reason is None:
            assert _read(f"http://127.0.0.1:{port}/", resolve=resolve) == b"picture"
            return
        with pytest.raises(RefusedAddress, match=reason):
            _read(f"http://127.0.0.1:{port}/", resolve=resolve)
    assert len(requests) == 1


def test_five_redirects_are_followed_and_a_sixth_is_not():
    def answer(stream, request):
        left = int(request.split()[1][1:])
        stream.sendall(_reply(307, Location=f"/{left - 1}") if left else _reply())

    with _serve(answer) as (port, requests):
        assert _read(f"http://127.0.0.1:{port}/5") == b"picture"
        with pytest.raises(ValueError, match="more than 5 redirects"):
            _read(f"http://127.0.0.1:{port}/6")
        assert len(requests) == 12


def test_a_name_is_looked_up_once_and_only_addresses_that_passed_are_asked():
    """A name that is public when it is checked and private when it is used is the usual way in."""
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        return ["10.0.0.1", "fe80::1%lo", "127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    with _serve(lambda stream, request: stream.sendall(_reply())) as (port, requests):
        assert _read(f"http://Shop.example:{port}/x.png", resolve=resolve) == b"picture"
        assert asked == [("shop.example", port)]
        assert f"Host: shop.example:{port}\r\n" in requests[0]
        with pytest.raises(RefusedAddress, match=r"host shop\.example is 10\.0\.0\.1, which is not public"):
            _read(f"http://shop.example:{port}/x.png", resolve=resolve)
        assert len(requests) == 1


def test_unknown_hosts_are_permanent_and_a_look_up_that_failed_for_now_is_not():
    for code, passes in {socket.EAI_NONAME: False, socket.EAI_AGAIN: True}.items():

        def resolve(host, port, code=code):
            raise socket.gaierror(code, "no name")

        with pytest.raises(OSError, match="no name") as raised:
            _read("http://shop.example/x.png", resolve=resolve)
        assert is_transient(raised.value) == passes


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate of shop.example that this process trusts; gives the server's context and the names it is asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    context.sni_callback = lambda stream, asked, old: names.append(asked)
    return context, names


def test_over_tls_the_name_is_checked_although_the_connection_goes_to_an_address(certificate):
    context, names = certificate

    def resolve(host, port):
        return ["127.0.0.1"]

    with _serve(lambda stream, request: stream.sendall(_reply()), context) as (port, requests):
        assert _read(f"https://shop.example:{port}/x.png", resolve=resolve) == b"picture"
        assert names == ["shop.example"] and f"Host: shop.example:{port}\r\n" in requests[0]
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED") as raised:
            _read(f"https://other.example:{port}/x.png", resolve=resolve)
        assert not is_transient(raised.value)
        assert names == ["shop.example", "other.example"] and len(requests) == 1


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_server_that_sends_a_byte_at_a_time_is_left_when_the_time_is_over(where):
    """Each byte came within the time-out of a read, so the whole could take for ever."""
    seconds = itertools.count()

    def answer(stream, request):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n" + (b"\r\n" if where == "body" else b"X: "))
        while True:  # ends when the fetcher hangs up
            stream.sendall(b"a")

    # each look at the clock takes a second
    with (
        _serve(answer) as (port, _),
        pytest.raises(TimeoutError, match=r"not read within 20 s, see images\.max_seconds") as raised,
        ImageFetcher(LOOPBACK, now=lambda: float(next(seconds))) as fetcher,
    ):
        while True:
            fetcher.read(f"http://127.0.0.1:{port}/x", 10**6)
    assert is_transient(raised.value) and next(seconds) < 60


def test_a_look_up_that_hangs_ends_with_the_time():
    hangs = threading.Event()
    allowed = ImagesConfig(max_seconds=0.05)
    with pytest.raises(TimeoutError, match=r"not read within 0\.05 s"):
        _read("http://shop.example/x", allowed=allowed, resolve=lambda host, port: hangs.wait(60) and ["8.8.8.8"])
    hangs.set()


@pytest.mark.parametrize(
    "answer",
    [
        _reply(body=b"a" * 1001),
        _reply(content_length=10**12),
        _reply(body=b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n", transfer_encoding="chunked"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"a" * 5000,
    ],
)
def test_a_body_is_left_as_soon_as_it_is_too_large(answer):
    with (
        _serve(lambda stream, request: stream.sendall(answer)) as (port, _),
        pytest.raises(ValueError, match="larger than 1000 bytes") as raised,
    ):
        _read(f"http://127.0.0.1:{port}/x")
    assert not is_transient(raised.value)


def test_a_body_that_is_shorter_than_it_says_may_come_whole_later():
    with (
        _serve(lambda stream, request: stream.sendall(_reply(content_length=500))) as (port, _),
        pytest.raises(OSError, match="peer closed connection") as raised,
    ):
        _read(f"http://127.0.0.1:{port}/x")
    assert is_transient(raised.value)


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    """A proxy would look up the name on its own, past the check."""
    with _serve(lambda stream, request: stream.sendall(_reply(body=b"proxy"))) as (proxy, _):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        with _serve(lambda stream, request: stream.sendall(_reply())) as (port, _):
            assert _read(f"http://127.0.0.1:{port}/x") == b"picture"


def test_connections_are_kept_for_the_next_image():
    accepted = []

    def answer(stream, request):
        accepted.append(1)
        for _ in range(2):
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            stream.recv(4096)

    with _serve(answer) as (port, _), ImageFetcher(LOOPBACK) as fetcher:
        assert [fetcher.read(f"http://127.0.0.1:{port}/x", 10) for _ in range(2)] == [b"ok", b"ok"]
    assert accepted == [1]


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ImageFetcher(ImagesConfig()) as fetcher:
        for name in (str(tmp_path / "pipe"), str(tmp_path), "/dev/zero"):
            with pytest.raises(ValueError, match="not a file"):
                fetcher.read(name, 1000, [str(tmp_path), "/dev"])
        with pytest.raises(RefusedAddress, match=r"images\.folders"):
            fetcher.read(str(tmp_path / "pipe"), 1000)
        (tmp_path / "x").write_bytes(b"a" * 11)
        assert fetcher.read(str(tmp_path / "x"), 11, [str(tmp_path)]) == b"a" * 11
        with pytest.raises(ValueError, match="larger than 10 bytes"):
            fetcher.read(str(tmp_path / "x"), 10, [str(tmp_path)])


def test_inline_data_are_bounded_before_they_are_decoded():
    with ImageFetcher(ImagesConfig()) as fetcher:
        assert fetcher.read("data:image/png,a%20b", 3) == fetcher.read("DATA:image/png;BASE64,YSBi", 3) == b"a b"
        for uri in ("data:image/png,abcd", "data:,%41%41%41%41", "data:;base64,YWJjZA==", "data:," + "%41" * 10_000):
            with pytest.raises(ValueError, match="larger than 3 bytes"):
                fetcher.read(uri, 3)
        for uri in ("data:image/png;base64,###", "data:;base64,YQ"):
            with pytest.raises(ValueError):
                fetcher.read(uri, 100)


def test_s3_is_read_in_bounds_by_one_client_of_the_process():
    with serve_bucket("shop") as bucket, ImageFetcher(ImagesConfig()) as fetcher:
        client = s3_client()
        client.put_object(Bucket="shop", Key="a #1?.png", Body=b"picture")
        assert fetcher.read(f"{bucket}/a #1?.png", 7) == b"picture"
        with pytest.raises(ValueError, match="larger than 6 bytes"):
            fetcher.read(f"{bucket}/a #1?.png", 6)
        with pytest.raises(OSError, match="NoSuchKey") as raised:
            fetcher.read(f"{bucket}/absent", 6)
        assert not is_transient(raised.value) and s3_client() is client
    with serve_bucket("shop"):
        assert s3_client() is not client  # of another endpoint


def test_the_time_of_an_object_of_s3_is_looked_at_between_its_parts():
    seconds = itertools.count()
    with (
        serve_bucket("shop") as bucket,
        ImageFetcher(ImagesConfig(max_seconds=3), now=lambda: float(next(seconds))) as fetcher,
    ):
        s3_client().put_object(Bucket="shop", Key="x", Body=b"a" * 300_000)
        with pytest.raises(TimeoutError, match="not read within 3 s"):
            fetcher.read(f"{bucket}/x", 10**6)


def _s3_error(code, status):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_s3_error("SlowDown", 503), True),
        (_s3_error("InternalError", 500), True),
        (_s3_error("RequestTimeout", 400), True),
        (_s3_error("NoSuchKey", 404), False),
        (_s3_error("AccessDenied", 403), False),
        (ReadTimeoutError(endpoint_url="s3"), True),
        (NoCredentialsError(), True),
        (HttpStatus("x", 429), True),
        (HttpStatus("x", 502), True),
        (HttpStatus("x", 404), False),
        (httpcore.ConnectError("refused"), True),
        (httpcore.RemoteProtocolError("cut"), True),
        (httpcore.LocalProtocolError("ours"), False),
        (TimeoutError("late"), True),
        (FileNotFoundError(2, "absent"), False),
        (OSError(36, "file name too long"), False),
        (OSError(116, "stale file handle"), True),
        (ValueError("larger than 64 bytes"), False),
        (RefusedAddress("no"), False),
    ],
    ids=str,
)
def test_what_another_try_may_mend_is_told_from_what_lasts(error, passes):
    assert is_transient(error) == passes
