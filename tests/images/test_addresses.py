"""Which addresses are read: the lists of an attacker are refused with the setting's name, those of shops are not."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from digr.config.images import ImagesConfig
from digr.images.addresses import RefusedAddress, check_address, check_ip, shorten

ALL = ImagesConfig()


@pytest.mark.parametrize(
    "uri",
    [
        "https://cdn.example.com/a.jpg",
        "HTTP://CDN.example.com:8080/a b.jpg?size=large#top",
        "//cdn.example.com/x.jpg",
        " https://bücher.example/ü.png ",
        "https://93.184.215.14/x.png",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/x.png",
        "s3://shop-images/folder/name with # and ?.png",
        "data:image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
    ],
)
def test_addresses_as_shops_write_them_are_read(uri):
    check_address(uri, ALL)


_PRIVATE = "is not public; images.private_networks allows"
_NEVER = "link-local or metadata address, which is never asked"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", _PRIVATE),
        ("127.1", _PRIVATE),
        ("2130706433", _PRIVATE),
        ("0x7f.1", _PRIVATE),
        ("0x7F000001", _PRIVATE),
        ("0177.0.0.1", "Invalid IPv4 address"),
        ("017700000001", _PRIVATE),
        ("127.0.0.1.", _PRIVATE),
        ("0", _PRIVATE),
        ("0.0.0.0", _PRIVATE),
        ("10.0.0.1", _PRIVATE),
        ("172.16.9.9", _PRIVATE),
        ("192.168.1.1", _PRIVATE),
        ("100.64.0.1", _PRIVATE),
        ("198.18.0.1", _PRIVATE),
        ("224.0.0.1", _PRIVATE),
        ("239.255.255.250", _PRIVATE),
        ("240.0.0.1", _PRIVATE),
        ("255.255.255.255", _PRIVATE),
        ("[::1]", _PRIVATE),
        ("[::]", _PRIVATE),
        ("[::ffff:127.0.0.1]", _PRIVATE),
        ("[::ffff:7f00:1]", _PRIVATE),
        ("[0:0:0:0:0:ffff:10.0.0.1]", _PRIVATE),
        ("[::127.0.0.1]", _PRIVATE),
        ("[64:ff9b::127.0.0.1]", _PRIVATE),
        ("[64:ff9b:1::1]", _PRIVATE),
        ("[2002:7f00:1::]", _PRIVATE),
        ("[2001:0:a:b::]", _PRIVATE),
        ("[fc00::1]", _PRIVATE),
        ("[fec0::1]", _PRIVATE),
        ("[ff02::1]", _PRIVATE),
        ("169.254.169.254", _NEVER),
        ("2852039166", _NEVER),
        ("0xa9fea9fe", _NEVER),
        ("100.100.100.200", _NEVER),
        ("192.0.0.192", _NEVER),
        ("168.63.129.16", _NEVER),
        ("[fe80::1]", _NEVER),
        ("[::ffff:169.254.169.254]", _NEVER),
        ("[64:ff9b::a9fe:a9fe]", _NEVER),
        ("[fd00:ec2::254]", _NEVER),
        ("[fd20:ce::254]", _NEVER),
    ],
)
def test_no_host_but_public_ones_is_asked_however_it_is_written(host, reason):
    with pytest.raises(RefusedAddress, match=reason):
        check_address(f"http://{host}/latest/meta-data/", ALL)


def test_an_allowed_network_is_asked_and_metadata_still_is_not():
    allowed = ImagesConfig(private_networks=("10.1.0.0/16", "169.254.0.0/16", "::1/128"))
    for host in ("10.1.2.3", "0x0a010203", "[::ffff:10.1.2.3]", "[::1]"):
        check_address(f"http://{host}/x.png", allowed)
    for host, reason in {"10.2.0.1": _PRIVATE, "127.0.0.1": _PRIVATE, "169.254.169.254": _NEVER}.items():
        with pytest.raises(RefusedAddress, match=reason):
            check_address(f"http://{host}/x.png", allowed)
    with pytest.raises(ValidationError, match=r'expected networks such as "10\.1\.0\.0/16"'):
        ImagesConfig(private_networks=("10.1.2.3/16",))


_PRIVATE_BLOCKS = [
    ipaddress.ip_network(block)
    for block in ["0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"]
]


@given(st.sampled_from(_PRIVATE_BLOCKS), st.integers(0, 2**32 - 1))
def test_every_address_of_the_private_blocks_is_refused_in_all_its_forms(block, number):
    number = int(block.network_address) | (number & int(block.hostmask))
    inner = ipaddress.IPv4Address(number)
    forms = [inner, ipaddress.IPv6Address(f"::ffff:{inner}"), ipaddress.IPv6Address(f"64:ff9b::{inner}")]
    forms.append(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))
    for ip in forms:
        with pytest.raises(RefusedAddress):
            check_ip(ip, "host", ALL)
    for host in (str(number), hex(number), f"0{number:o}"):
        with pytest.raises(RefusedAddress):
            check_address(f"https://{host}/x", ALL)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://user@bad.example/x", "without a user, a password or a backslash"),
        ("http://good.example@bad.example/x", "without a user, a password or a backslash"),
        ("http://user:pass@shop.example/x", "without a user, a password or a backslash"),
        ("http://good.example\\@bad.example/x", "backslash"),
        ("http://good.example\\.bad.example/x", "backslash"),
        ("http:///x", "not a valid address"),
        ("http://no host/x.png", "not a valid address"),
        ("http://shop.example:99999/x", "not a valid address"),
        ("http://shop.example/x\r\nHost: other", "control characters"),
        ("http://shop.example/\0", "control characters"),
        ("ftp://shop.example/x", "ftp addresses are not read; images.schemes allows"),
        ("gopher://127.0.0.1:6379/_x", "gopher addresses are not read"),
        ("jar:file:///etc/passwd", "in no folder that is read"),
        ("javascript://x/%0aalert(1)", "javascript addresses are not read"),
        ("s3://", "expected s3://bucket/key"),
        ("s3://bucket", "expected s3://bucket/key"),
        ("s3://bucket/", "expected s3://bucket/key"),
        ("s3://user@host/x", "expected s3://bucket/key"),
        ("s3://arn:aws:s3:::x/y", "expected s3://bucket/key"),
        ("", "empty"),
        ("https://shop.example/" + "a" * 9000, "an address may have 8192"),
    ],
)
def test_what_is_no_plain_address_is_refused(uri, reason):
    with pytest.raises(RefusedAddress, match=reason):
        check_address(uri, ALL)


@pytest.fixture
def folder(tmp_path):
    """A folder with a file and links, beside a secret."""
    inner = tmp_path / "allowed"
    (inner / "sub").mkdir(parents=True)
    (tmp_path / "allowed-not").mkdir()
    for name in ("secret", "allowed/x.png", "allowed-not/x.png"):
        (tmp_path / name).write_text("content")
    (inner / "link").symlink_to(tmp_path / "secret")
    (inner / "up").symlink_to(tmp_path)
    (inner / "inside").symlink_to(inner / "x.png")
    return inner


@pytest.mark.parametrize(
    "path",
    [
        "{0}/../secret",
        "{0}/sub/../../secret",
        "{0}/link",
        "{0}/up/secret",
        "{0}-not/x.png",
        "{0}",
        "file://{0}/../secret",
        "file://{0}/%2e%2e/secret",
        "file:{0}/..%2fsecret",
        "FILE://localhost{0}/link",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "secret",
        "../../../../etc/passwd",
    ],
)
def test_no_way_leads_out_of_a_folder(folder, path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    if path == "{0}":
        check_address(str(folder), ALL, [str(folder)])  # refused when it is opened: it is no file
        return
    with pytest.raises(RefusedAddress, match=r"in no folder that is read; images\.folders adds to"):
        check_address(path.format(folder), ALL, [str(folder)])


@pytest.mark.parametrize("path", ["file://%2e%2e/x", "file://other.example/x", "file://%00/x", "file:///x%00.png"])
def test_a_file_address_of_another_machine_or_with_nul_is_refused(folder, path):
    with pytest.raises(RefusedAddress, match=r"of another machine|NUL"):
        check_address(path, ALL, ["/"])


def test_files_below_a_folder_are_read_also_through_links_inside_it_and_by_a_link_to_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder.parent / "current").symlink_to(folder)
    for path in ("x.png", f"{folder}/x.png", f"file://{folder}/x.png", f"{folder}/inside", f"{folder}/sub/../x.png"):
        check_address(path, ALL, [str(folder)])
        check_address(path, ImagesConfig(folders=(str(folder),)))
        check_address(path, ALL, [str(folder.parent / "current")])


def test_each_setting_closes_what_it_names():
    closed = ImagesConfig(schemes=("https", "s3"), hosts=("*.cdn.example", "shop.example"), buckets=("shop-*",))
    for uri in ("https://a.cdn.example/x", "https://SHOP.example./x", "s3://shop-images/x"):
        check_address(uri, closed)
    for uri, reason in {
        "http://shop.example/x": r"http addresses are not read; images\.schemes allows \[https, s3\]",
        "/x.png": r"file addresses are not read; images\.schemes allows",
        "data:image/png,x": r"data addresses are not read; images\.schemes allows",
        "https://cdn.example/x": r"host cdn\.example is not read; images\.hosts allows \[\*\.cdn\.example, shop\.example\]",
        "https://shop.example.evil.net/x": r"host shop\.example\.evil\.net is not read; images\.hosts allows",
        "s3://other/x": r"bucket other is not read; images\.buckets allows \[shop-\*\]",
    }.items():
        with pytest.raises(RefusedAddress, match=reason):
            check_address(uri, closed)


def test_messages_show_the_beginning_of_an_address_and_no_inline_data():
    assert shorten("data:image/png;base64,SECRET") == "data:image/png;base64"
    assert shorten("http://x/" + "a" * 500) == "http://x/" + "a" * 111 + "..."
    assert shorten("http://user:secret@shop.example/x@y") == "http://...@shop.example/x@y"
    assert shorten("a\nb\x1b[31m\u2028") == "a?b?[31m?"
