"""TLS that is begun and not finished, is none, is old, or comes in numbers."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
import trustme

from tests.attacks.test_raw_frames import BROKEN
from tests.support.attacked import SECONDS, Target, attacked, masked

HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    certificate = folder / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    certificate.chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with attacked(folder, trust, frontend__tls_cert=str(certificate)) as target:
        yield target


@pytest.fixture
def target(secured: Target) -> Iterator[Target]:
    with secured.unnoticed():
        yield secured


def test_a_tls_handshake_that_does_not_come_is_given_up(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        wires = []
        for _ in range(50):
            for data in (b"", b"\x16", HALF_HELLO):
                wire = stack.enter_context(target.connect(secure=False))
                wire.send(data)
                wires.append(wire)
        began = time.monotonic()
        for wire in wires:
            wire.rest()
        assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        bytes(500),
        b"\xff" * 500,
        b"\x16\x03\x01\xff\xff" + b"\x01" * 500,
        b"\x15\x03\x01\x00\x02\x02\x28",
        HALF_HELLO[:5] + b"\xff" * 600,
    ],
)
def test_what_is_no_tls_is_closed(target: Target, data: bytes) -> None:
    with target.connect(secure=False) as wire:
        wire.send(data)
        assert len(wire.rest()) < 100  # an alert at most


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "NULL:@SECLEVEL=0"),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA"),
    ],
)
def test_old_versions_and_weak_ciphers_are_refused(
    target: Target, version: ssl.TLSVersion, ciphers: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    with target.connect(secure=False) as wire, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(wire.plain, server_hostname="localhost")


def test_a_frame_that_breaks_a_rule_is_told_which_under_tls_too(target: Target) -> None:
    for data, code in list(BROKEN.values())[::4]:
        with target.websocket() as wire:
            wire.send(data)
            assert wire.close_code() == code


def test_a_flood_under_tls_ends_with_4013(target: Target) -> None:
    for frame in (masked(0x89, bytes(125)), masked(0x8A), masked(0x81), masked(0x81, b"{}")):
        with target.websocket() as wire:
            with contextlib.suppress(OSError):
                for _ in range(50):
                    wire.plain.sendall(frame * 100)
            assert wire.close_code() in (4013, None)


def test_a_storm_of_tls_handshakes_is_served(target: Target) -> None:
    before = target.sockets

    def storm() -> None:
        for number in range(25):
            wire = target.websocket()
            (wire.reset if number % 2 else wire.close)()

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.settles(before)


def test_a_tls_connection_that_breaks_off_anywhere_is_forgotten(target: Target) -> None:
    before = target.sockets
    for data in (b"", HALF_HELLO, HALF_HELLO + bytes(600)):
        for way in ("reset", "close"):
            wire = target.connect(secure=False)
            wire.send(data)
            getattr(wire, way)()
    for _ in range(10):
        wire = target.connect()
        wire.send(b"GET /ws HT")
        wire.reset()
    assert target.settles(before)
