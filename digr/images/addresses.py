"""Which addresses of images may be read, by the rules of `[images]`: schemes, hosts, networks, buckets and folders.

Addresses come from catalogues and from users, so they are not trusted. Whoever reads one goes through these functions, and
reads what they return, not the address: nothing is parsed twice. Host names are looked up only to fetch, see
`digr.images.fetching`.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import httpx

from digr.config.images import ImagesConfig, Scheme

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_ADDRESS_CHARS = 8192
"""Longest address, but for `data:`."""
SHOWN_CHARS = 120
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_USER = re.compile(r"//[^/?#]*@")
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_NEVER = [
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: metadata of AWS, Google, Azure and others
        "fe80::/10",
        "100.100.100.200/32",  # metadata of Alibaba
        "192.0.0.192/32",  # of Oracle
        "168.63.129.16/32",  # of Azure, in the public range
        "fd00:ec2::254/128",  # of AWS
        "fd20:ce::254/128",  # of Google
    )
]
"""Networks that are never asked, whatever the config allows: a machine's own credentials lie there."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class RefusedAddress(ValueError):
    """The rules do not let an address be read; the message names the setting."""


def address_of(uri: str | None) -> str:
    """Return an address without outer spaces, and with https if it begins with `//`, as shops write it."""
    address = (uri or "").strip()
    return f"https:{address}" if address.startswith("//") else address


def shorten(address: str) -> str:
    """Return an address for a message: its beginning, of inline data only the kind; no password and no control characters."""
    text = address.partition(",")[0] if address[:5].lower() == "data:" else _USER.sub("//...@", address[:MAX_ADDRESS_CHARS])
    return _CONTROL.sub("?", text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}...")


def check_address(uri: str, allowed: ImagesConfig, folders: Sequence[str] = ()) -> None:
    """Check that an address would be fetched, as far as it can be told without asking anybody.

    A host's address is looked up and checked when it is fetched.

    Args:
        folders: folders below which files are read, besides those of the config.

    Raises:
        RefusedAddress: it would not; the message names the setting.
    """
    address = address_of(uri)
    scheme = scheme_of(address, allowed)
    if scheme in ("http", "https"):
        http_url(address, allowed)
    elif scheme == "s3":
        bucket_and_key(address, allowed)
    elif scheme == "file":
        local_path(address, allowed, folders)


def scheme_of(address: str, allowed: ImagesConfig) -> Scheme:
    """Return the kind of an address; a plain path is of kind "file".

    Raises:
        RefusedAddress: the kind is unknown or not allowed, or the address is empty, too long or has control characters.
    """
    found = _SCHEME.match(address)
    scheme = found[1].lower() if found else "file"
    if address[:5].lower() in ("data:", "file:"):
        scheme = address[:4].lower()
    if scheme not in allowed.schemes:
        raise RefusedAddress(
            f"{shorten(address)}: {scheme} addresses are not read; images.schemes allows {_list(allowed.schemes)}"
        )
    if scheme != "data" and len(address) > MAX_ADDRESS_CHARS:
        raise RefusedAddress(f"{shorten(address)}: {len(address)} characters, an address may have {MAX_ADDRESS_CHARS}")
    if not address or (scheme != "data" and _CONTROL.search(address)):
        raise RefusedAddress(f"{shorten(address)}: empty or with control characters; expected an address or a path")
    return cast(Scheme, scheme)


def http_url(address: str, allowed: ImagesConfig) -> httpx.URL:
    """Return the parts of an http(s) address.

    Raises:
        RefusedAddress: it is none, has a user or a password, or its host is not allowed.
    """
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:
        raise RefusedAddress(f"{shorten(address)}: not a valid address: {error}") from None
    if url.scheme not in ("http", "https") or url.scheme not in allowed.schemes:
        raise RefusedAddress(f"{shorten(address)}: {url.scheme} addresses are not read here; see images.schemes")
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    if url.userinfo or "\\" in address:
        raise RefusedAddress(f"{shorten(address)}: expected {url.scheme}://host/path without a user, a password or a backslash")
    if not _HOST.fullmatch(host) or not 0 < (url.port or 80) < 1 << 16:
        raise RefusedAddress(f"{shorten(address)}: not a valid address: expected {url.scheme}://host/path")
    if not any(fnmatchcase(host, pattern.lower()) for pattern in allowed.hosts):
        raise RefusedAddress(f"{shorten(address)}: host {host} is not read; images.hosts allows {_list(allowed.hosts)}")
    if (ip := _written_ip(host)) is not None:
        check_ip(ip, host, allowed)
    return url


def check_ip(ip: IpAddress, host: str, allowed: ImagesConfig) -> None:
    """Check the address that a host has.

    Raises:
        RefusedAddress: it is not public and in no allowed network, or it is one that is never asked.
    """
    inner = _carried(ip)
    if any(part in network for part in (ip, inner) for network in _NEVER):
        raise RefusedAddress(f"host {host} is {ip}, a link-local or metadata address, which is never asked for images")
    networks = [ipaddress.ip_network(network) for network in allowed.private_networks]
    if not _is_public(inner) and not any(inner in network for network in networks):
        raise RefusedAddress(
            f"host {host} is {ip}, which is not public; images.private_networks allows {_list(allowed.private_networks)}"
        )


def _is_public(ip: IpAddress) -> bool:
    local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    return ip.is_global and not (local or ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


def _carried(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _written_ip(host: str) -> IpAddress | None:
    """Return the IP address that a host is written as, also as `2130706433`, `0x7f.1` or `0177.0.0.1`; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def bucket_and_key(address: str, allowed: ImagesConfig) -> tuple[str, str]:
    """Return bucket and key of an s3:// address.

    Raises:
        RefusedAddress: it is none, or the bucket is not allowed.
    """
    bucket, _, key = address.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket) or not key:
        raise RefusedAddress(f"{shorten(address)}: expected s3://bucket/key")
    if not any(fnmatchcase(bucket, pattern) for pattern in allowed.buckets):
        raise RefusedAddress(f"{shorten(address)}: bucket {bucket} is not read; images.buckets allows {_list(allowed.buckets)}")
    return bucket, key


def local_path(address: str, allowed: ImagesConfig, folders: Sequence[str] = ()) -> Path:
    """Return the path of a file with all links followed; only in a `file:` address, `%20` means a space.

    Raises:
        RefusedAddress: it names another machine, or it does not lie below an allowed folder.
    """
    path = address
    if address[:5].lower() == "file:":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise RefusedAddress(f"{shorten(address)}: a file of another machine; expected file:///path")
        path = unquote(parts.path)
    if "\0" in path:
        raise RefusedAddress(f"{shorten(address)}: a path cannot have a NUL character")
    real, known = Path(os.path.realpath(path)), [*allowed.folders, *folders]
    if not any(real.is_relative_to(os.path.realpath(Path(folder).expanduser())) for folder in known):
        at = "" if str(real) == path else f" ({shorten(str(real))})"
        raise RefusedAddress(f"{shorten(address)}{at}: in no folder that is read; images.folders adds to {_list(known)}")
    return real


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(values)}]"
