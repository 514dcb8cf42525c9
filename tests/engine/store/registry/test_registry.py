"""Pull and push against correct and faulty registries on loopback."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import httpx
import pytest
from registries import DOCKER_REGISTRY, Answer, DockerRegistry, Registry, digest_of, jwt
from serving import until

from numllama.engine.errors import (
    BadManifest,
    Cancelled,
    EngineError,
    RegistryError,
    RequestError,
    StoreError,
    Unauthorized,
    WrongBlob,
)
from numllama.engine.handle import RequestHandle
from numllama.engine.store import ModelName, Store
from numllama.engine.store.manifest import MODEL, SYSTEM
from numllama.engine.store.registry import http, part, repository, retry, transfer
from numllama.engine.store.registry.address import check_destination
from numllama.engine.store.registry.auth import Credentials
from numllama.engine.store.registry.download import Downloads

WEIGHTS = bytes(range(256)) * 1600  # 409,600 bytes, five parts in these tests
DIGEST = digest_of(WEIGHTS)
SHORT = DIGEST[7:19]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Sizes divided by 1000, times by 40: parts of 100 kB, a read timeout of 0.25 seconds."""
    for name, value in {"PROGRESS_BYTES": 1000, "FIRST_PAUSE_S": 0.01, "MAX_STALL_S": 0.8}.items():
        monkeypatch.setattr(retry, name, value)
    monkeypatch.setattr(part, "MIN_PART_BYTES", 100_000)
    monkeypatch.setattr(part, "MAX_PART_BYTES", 1_000_000)
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.25)
    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(transfer, "STATUS_INTERVAL_S", 0.01)


@pytest.fixture
def there():
    """A registry with the model lab/m, made of WEIGHTS and a SYSTEM."""
    double = Registry()
    double.publish("lab/m:latest", (MODEL, WEIGHTS), (SYSTEM, b"S"))
    yield double
    double.close()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


def pulling(store, host, name="lab/m", insecure=True, credentials=None, handle=None, downloads=None):
    name = ModelName.parse(f"{host}/{name}")
    return transfer.pull(
        store, downloads or Downloads(), name, insecure, credentials or Credentials(), handle or RequestHandle()
    )


def pull(store, double, *args, **kwargs):
    return list(pulling(store, double.host, *args, **kwargs))


def push(store, double, name="lab/m", credentials=None):
    name = name if "/" not in name or not double else f"{double.host}/{name}"
    return list(transfer.push(store, name, True, credentials or Credentials(), RequestHandle()))


def login(double):
    return Credentials("u", "p", double.host)


def words(statuses):
    """The distinct status texts, in order."""
    return list(dict.fromkeys(status["status"] for status in statuses))


def files(store):
    return sorted(os.listdir(store.root / "blobs")) if (store.root / "blobs").is_dir() else []


def assert_pulled(store, double, name="lab/m"):
    """Every blob has its digest, the manifest is the registry's, and no partial file is left."""
    model = store.resolve(f"{double.host}/{name}")
    assert store.manifest_bytes(model) == double.manifests[f"{name}:latest"]
    for layer in model.manifest.all_layers:
        assert digest_of(store.blob_path(layer.digest).read_bytes()) == layer.digest
        assert store.blob_path(layer.digest).stat().st_mode & 0o777 == 0o644
    assert not [name for name in files(store) if "partial" in name]


def assert_no_model_and_valid_blobs(store):
    """The store has no manifest, and every blob has the digest in its name."""
    assert store.names() == []
    for name in files(store):
        if "partial" not in name:
            assert digest_of((store.root / "blobs" / name).read_bytes()) == name.replace("-", ":", 1)


def spoil_once(double, spoiled, digest=DIGEST, method="GET"):
    """Answer the first request for the blob with `spoiled(answer)`."""

    def spoil(request, answer):
        if request.method == method and digest in request.path:
            double.spoil = lambda request, answer: answer
            return spoiled(answer)
        return answer

    double.spoil = spoil


def spoil_each(double, spoiled, digest=DIGEST):
    double.spoil = lambda request, answer: spoiled(answer) if digest in request.path else answer


# --- correct registries ---


def test_a_pulled_model_is_the_registrys_byte_for_byte(store, there):
    got = pull(store, there)
    config = json.loads(there.manifests["lab/m:latest"])["config"]["digest"][7:19]
    blobs = [f"pulling {digest}" for digest in (SHORT, digest_of(b"S")[7:19], config)]
    assert words(got) == ["pulling manifest", *blobs, "verifying sha256 digest", "writing manifest", "success"]
    assert_pulled(store, there)
    mine = [status for status in got if status.get("digest") == DIGEST]
    assert mine[-1] == {
        "status": f"pulling {SHORT}",
        "digest": DIGEST,
        "total": len(WEIGHTS),
        "completed": len(WEIGHTS),
    }
    counts = [status.get("completed", 0) for status in mine]
    assert counts == sorted(counts)


def test_parts_are_ranges_of_a_sixteenth_within_bounds(store, there):
    pull(store, there)
    expected = [f"bytes={first}-{min(first + 100_000, len(WEIGHTS)) - 1}" for first in range(0, len(WEIGHTS), 100_000)]
    assert sorted(there.ranges(DIGEST)) == sorted(expected)
    assert part.part_size(1_000_000) == 100_000 and part.part_size(8_000_000) == 500_000
    assert part.part_size(10**9) == 1_000_000


def test_parts_are_written_without_pwrite(store, there, monkeypatch):
    """Windows has none."""
    monkeypatch.delattr(os, "pwrite")
    pull(store, there)
    assert_pulled(store, there)


def test_a_blob_in_the_store_is_not_requested_again(store, there):
    pull(store, there)
    there.seen.clear()
    got = pull(store, there)
    assert [request.path for request in there.seen] == ["/v2/lab/m/manifests/latest"]
    assert [status["completed"] == status["total"] for status in got if "total" in status] == [True] * 3
    assert words(got)[-3:] == ["verifying sha256 digest", "writing manifest", "success"]


def test_a_model_that_changed_leaves_no_old_blob(store, there):
    pull(store, there)
    there.publish("lab/m:latest", (MODEL, b"new"))
    assert words(pull(store, there))[-3:] == ["writing manifest", "removing unused layers", "success"]
    assert not store.has_blob(DIGEST)
    assert_pulled(store, there)


def test_an_empty_blob_needs_no_request(store, there):
    there.publish("lab/m:latest", (MODEL, b""))
    pull(store, there)
    assert_pulled(store, there)
    assert there.ranges(digest_of(b"")) == []


def test_a_blob_named_twice_is_fetched_once(store, there):
    there.publish("lab/m:latest", (MODEL, b"w"), (SYSTEM, b"w"))
    pull(store, there)
    assert_pulled(store, there)
    assert len(there.ranges(digest_of(b"w"))) == 1


def test_an_oci_manifest_is_accepted(store, there):
    oci = {**json.loads(there.manifests["lab/m:latest"]), "mediaType": repository.OCI_MANIFEST_TYPE}
    there.manifests["lab/m:latest"] = json.dumps(oci).encode()
    pull(store, there)
    assert_pulled(store, there)
    assert repository.OCI_MANIFEST_TYPE in there.seen[0].headers["accept"]
    push(store, there)
    assert there.asked("PUT", "manifests")[0].headers["content-type"] == repository.OCI_MANIFEST_TYPE


# --- faults that a retry repairs ---


def cut(answer):
    return replace(answer, cut=len(answer.body) // 3)


def stalled(answer):
    return replace(answer, stall=len(answer.body) // 3)


def short(answer):
    return replace(answer, headers={**answer.headers, "Content-Length": "7"}, body=answer.body[:7])


@pytest.mark.parametrize(
    "spoiled",
    [
        cut,
        stalled,
        short,
        lambda answer: Answer(500),
        lambda answer: Answer(503),
        lambda answer: replace(answer, stall=0),
    ],
    ids=["cut", "stalled", "short", "500", "503", "stalled at once"],
)
def test_an_interrupted_part_is_resumed(store, there, spoiled):
    spoil_once(there, spoiled)
    pull(store, there)
    assert_pulled(store, there)
    assert len(there.ranges(DIGEST)) == 6


@pytest.mark.parametrize("path, status", [("manifests", 429), (DIGEST, 503), ("token", 429)])
def test_a_registry_that_asks_for_a_pause_gets_it(store, there, path, status, monkeypatch):
    """The pause of a second is longer than MAX_STALL_S here, and is not counted as a stall."""
    Tokens(there, lambda request: True)
    asked = []

    def spoil(request, answer):
        if path not in request.path or answer.status == 401:
            return answer
        asked.append(time.monotonic())
        return Answer(status, {"Retry-After": "1"}) if len(asked) == 1 else answer

    monkeypatch.setattr(part, "MIN_PART_BYTES", 1_000_000)  # one part, so that its requests follow each other
    there.spoil = spoil
    pull(store, there)
    assert_pulled(store, there)
    assert 1 <= asked[1] - asked[0] < 3


def test_a_long_pause_is_an_error_that_names_it(store, there):
    there.spoil = lambda request, answer: Answer(429, {"Retry-After": "21600"}, b"rate limit")
    with pytest.raises(RegistryError, match="429: rate limit; the registry asks to retry after 21600 seconds"):
        pull(store, there)
    assert len(there.seen) == 1


def test_retry_after_is_a_number_of_seconds_or_a_date():
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert [retry.retry_after(text) for text in ("7", " 0 ", "", "soon", "-1", "1e9")] == [7, 0, 0, 0, 0, 0]
    assert 58 <= retry.retry_after(in_a_minute) <= 60
    assert retry.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_part_resumes_at_the_byte_where_it_was_cut(store, there):
    there.publish("lab/m:latest", (MODEL, WEIGHTS[:90_000]))
    digest = digest_of(WEIGHTS[:90_000])
    spoil_once(there, cut, digest)
    pull(store, there)
    assert there.ranges(digest) == ["bytes=0-89999", "bytes=30000-89999"]


def test_every_connection_may_be_cut_as_long_as_there_is_progress(store, there):
    spoil_each(there, lambda answer: replace(answer, cut=30_000) if len(answer.body) > 30_000 else answer)
    pull(store, there)
    assert_pulled(store, there)


def test_a_download_with_too_little_progress_is_given_up(store, there):
    """Tries with some progress count as failed unless a megabyte is received within MAX_STALL_S."""
    spoil_each(there, lambda answer: replace(answer, stall=100))
    began = time.monotonic()
    with pytest.raises(RegistryError, match="max retries exceeded"):
        pull(store, there)
    assert time.monotonic() - began > 0.8


def test_a_blob_is_fetched_whole_from_a_registry_that_ignores_ranges(store, there):
    spoil_each(there, lambda answer: Answer(200, body=WEIGHTS))
    pull(store, there)
    assert_pulled(store, there)
    there.spoil = lambda request, answer: answer


def test_a_download_from_a_registry_that_ignores_ranges_is_resumed(store, there):
    spoil_each(there, lambda answer: Answer(200, body=WEIGHTS, cut=len(WEIGHTS) * 2 // 3))
    with pytest.raises(RegistryError, match="max retries exceeded"):
        pull(store, there)
    spoil_each(there, lambda answer: Answer(200, body=WEIGHTS))
    pull(store, there)
    assert_pulled(store, there)


def test_a_wrong_content_range_is_retried(store, there):
    def elsewhere(answer):
        first, last = map(int, re.match(r"bytes (\d+)-(\d+)", answer.headers["Content-Range"]).groups())
        span = f"bytes {first + 1}-{last + 1}/{len(WEIGHTS)}"
        return replace(answer, headers={"Content-Range": span})

    spoil_once(there, elsewhere)
    pull(store, there)
    assert_pulled(store, there)


# --- faults that are errors ---


@pytest.mark.parametrize(
    "spoiled, expected",
    [
        (lambda answer: Answer(403, body=b"<Error>denied\n</Error>"), "403 Forbidden: <Error>denied </Error>"),
        (lambda answer: Answer(404), "file does not exist"),
        (lambda answer: Answer(500, body=b"oops"), "max retries exceeded: .*500 .*oops"),
        (lambda answer: replace(answer, stall=0), "max retries exceeded: .*no data for 0.25 seconds"),
        (lambda answer: replace(answer, cut=0), "max retries exceeded: "),
        (lambda answer: Answer(416), "416: the blob is shorter than 409600 bytes"),
        (lambda answer: Answer(204), "204"),
        (lambda answer: Answer(302), "302 without a Location"),
        (
            lambda answer: replace(answer, headers={"Content-Range": "bytes 0-1/2"}),
            "has 2 bytes, expected 409600",
        ),
        (lambda answer: replace(answer, headers={}), "max retries exceeded: .*requested bytes .* got Content-Range ''"),
        (
            lambda answer: replace(answer, headers=answer.headers | {"Content-Encoding": "gzip"}),
            "found Content-Encoding 'gzip'",
        ),
        (lambda answer: Answer(200, body=WEIGHTS + b"x"), "has 409601 bytes, expected 409600"),
    ],
    ids=range(12),
)
def test_a_permanent_fault_is_an_error_and_the_next_pull_succeeds(store, there, spoiled, expected):
    spoil_each(there, spoiled)
    with pytest.raises(RegistryError, match=expected) as refusal:
        pull(store, there)
    assert SHORT in str(refusal.value) and "\n" not in str(refusal.value)
    assert_no_model_and_valid_blobs(store)
    there.spoil = lambda request, answer: answer
    pull(store, there)
    assert_pulled(store, there)


def flipped(data):
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("digests", [[DIGEST], [digest_of(b"S")], [DIGEST, digest_of(b"S")]], ids=["1", "2", "both"])
def test_wrong_bytes_are_never_stored_as_the_blob(store, there, digests):
    def spoil(request, answer):
        wrong = any(digest in request.path for digest in digests)
        return replace(answer, body=flipped(answer.body)) if wrong else answer

    there.spoil = spoil
    with pytest.raises(WrongBlob, match="digest mismatch, file must be downloaded again: want sha256:") as refusal:
        pull(store, there)
    assert refusal.value.expected == digests[0]
    assert_no_model_and_valid_blobs(store)
    assert not [name for name in files(store) for digest in digests if digest[7:] in name]
    there.spoil = lambda request, answer: answer
    pull(store, there)
    assert_pulled(store, there)


def test_a_wrong_size_in_the_manifest_is_an_error(store, there):
    true = there.manifests["lab/m:latest"]
    for size in (409_599, 409_601, 10**15):
        there.manifests["lab/m:latest"] = true.replace(b"409600", b"%d" % size)
        with pytest.raises(
            EngineError,
            match=f"409600 bytes, expected {size}|shorter than {size} bytes|{size} bytes needed",
        ):
            pull(store, there)
        assert_no_model_and_valid_blobs(store)
    there.manifests["lab/m:latest"] = true
    pull(store, there)
    assert_pulled(store, there)


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"{", "invalid JSON"),
        (b'{"manifests":[{"digest":"sha256:00"}]}', "no layers; not a model"),
        (b'{"layers":[{"digest":"../../../etc/passwd","size":1}]}', "expected sha256: and 64 hex digits"),
        (b'{"layers":[{"digest":"sha512:' + b"0" * 128 + b'","size":1}]}', "expected sha256: and 64 hex digits"),
    ],
)
def test_an_invalid_manifest_is_an_error(store, there, body, expected):
    there.manifests["lab/m:latest"] = body
    with pytest.raises(BadManifest, match=expected):
        pull(store, there)
    assert store.names() == [] and files(store) == []


@pytest.mark.parametrize(
    "answer, expected",
    [
        (Answer(404), "file does not exist"),
        (Answer(403, body=b"no\nentry"), "403: no entry"),
        (Answer(500, body=b"x"), "500: x"),
        (Answer(200, {"Docker-Content-Digest": DIGEST}, b"{}"), f"expected Docker-Content-Digest {DIGEST}"),
        (Answer(200, {}, b"{}", stall=1), "no data for 0.25 seconds"),
        (Answer(200, {}, b"{}", cut=1), "max retries exceeded"),
        (Answer(200, {}, b"{}", stall=0), "no data for 0.25 seconds"),
    ],
    ids=range(7),
)
def test_a_failed_manifest_request_is_an_error(store, there, answer, expected):
    there.spoil = lambda request, _: answer
    with pytest.raises(RegistryError, match="^pull model manifest: .*" + expected):
        pull(store, there)


def test_an_unreachable_registry_is_an_error_at_once(store, there, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 60)
    began = time.monotonic()
    with pytest.raises(
        RegistryError, match=r'^pull model manifest: Get "http://127.0.0.1:1/v2/lab/m/manifests/latest": con.* refused'
    ):
        list(pulling(store, "127.0.0.1:1"))
    with pytest.raises(RegistryError, match=r"tls: .*; use `insecure`"):
        pull(store, there, insecure=False)
    with pytest.raises(RequestError, match="insecure protocol http"):
        list(pulling(store, f"http://{there.host}", insecure=False))
    with pytest.raises(RegistryError, match="a:b:c: invalid host"):
        list(pulling(store, "a:b:c"))
    assert time.monotonic() - began < 30


# --- redirects ---


def named(hosts):
    """A getaddrinfo that knows `hosts`, too."""
    real = socket.getaddrinfo
    return lambda host, *args, **kwargs: real(hosts.get(host, host), *args, **kwargs)


def to(location, status=307):
    return lambda answer: Answer(status, {"Location": location})


def test_a_redirect_keeps_the_range_and_drops_the_authorization(store, there):
    other = Registry()
    other.blobs = {f"{DIGEST}x": WEIGHTS}
    there.spoil = challenge("Basic realm=x", lambda headers: headers.get("authorization", "").startswith("Basic"))
    inner = there.spoil
    elsewhere = to(f"{other.url}/v2/a/b/blobs/{DIGEST}x?signature=secret")
    there.spoil = lambda request, answer: elsewhere(answer) if DIGEST in request.path else inner(request, answer)
    pull(store, there, credentials=login(there))
    other.close()
    assert_pulled(store, there)
    assert len(other.seen) == 5
    assert not any("authorization" in request.headers for request in other.seen)
    assert all("authorization" in request.headers for request in there.asked("GET", "blobs"))


def test_an_error_after_a_redirect_hides_the_urls_secrets(store, there):
    other = Registry()
    other.spoil = lambda request, answer: Answer(401, {"WWW-Authenticate": "Basic realm=x"}, b"expired")
    spoil_each(there, to(f"{other.url}/v2/a/b/blobs/{DIGEST}?signature=secret"))
    with pytest.raises(RegistryError, match=f"{other.host}.*401 Unauthorized: expired") as refusal:
        pull(store, there, credentials=login(there))
    other.close()
    assert "secret" not in str(refusal.value)
    assert not any("authorization" in request.headers for request in other.seen)


@pytest.mark.parametrize("status", [400, 401, 403, 410])
def test_an_expired_address_of_a_blob_store_is_replaced_by_asking_the_registry_again(store, there, status):
    """Signed addresses of object stores expire within minutes: a long download outlives many of them."""
    other, signed, valid = Registry(), [], {}

    def answer(request):
        valid[request.target] = valid.get(request.target, 0) + 1
        first, last = map(int, re.findall(r"\d+", request.headers["range"]))
        if valid[request.target] > 1 or len(valid) % 3 == 1:  # used up, or expired before it was used
            return Answer(status, body=b"<Error><Code>ExpiredToken</Code></Error>")
        span = f"bytes {first}-{last}/{len(WEIGHTS)}"
        return Answer(206, {"Content-Range": span}, WEIGHTS[first : last + 1], cut=30_000)

    def redirect(request, answer):
        if DIGEST not in request.path:
            return answer
        signed.append(request)
        return Answer(307, {"Location": f"{other.url}/blob?signature={len(signed)}"})

    other.answer, there.spoil = answer, redirect
    pull(store, there)
    other.close()
    assert_pulled(store, there)


def test_a_refusal_of_the_registry_itself_is_an_error_at_once(store, there):
    spoil_each(there, lambda answer: Answer(403, body=b"\x1b[31mno\r\n" + b"x" * 1000))
    with pytest.raises(RegistryError, match="403 Forbidden: \ufffd" + r"\[31mno x{192}$") as refusal:
        pull(store, there)
    assert refusal.value.status == 403 and len(there.ranges(DIGEST)) <= 5


def test_a_location_may_be_relative(store, there):
    there.blobs[f"{DIGEST}x"] = WEIGHTS
    there.spoil = lambda request, answer: (
        to(f"/v2/lab/m/blobs/{DIGEST}x")(answer) if request.path.endswith(DIGEST) else answer
    )
    pull(store, there)
    assert_pulled(store, there)


def test_a_circle_of_redirects_is_an_error_at_once(store, there):
    spoil_each(there, to(f"/v2/lab/m/blobs/{DIGEST}"))
    with pytest.raises(RegistryError, match=f"{SHORT}: redirected in a circle: http"):
        pull(store, there)
    assert len(there.ranges(DIGEST)) <= 5


def test_the_number_of_redirects_is_limited(store, there):
    there.spoil = lambda request, answer: to(f"{request.path}x")(answer) if DIGEST in request.path else answer
    with pytest.raises(RegistryError, match="redirected more than 10 times"):
        pull(store, there)


def test_redirects_are_followed_to_http_only(store, there):
    spoil_each(there, to("file:///etc/passwd"))
    with pytest.raises(RegistryError, match="redirected from http to file"):
        pull(store, there)


class Elsewhere(Registry):
    """A registry at another loopback address, which stands for a service that only this machine can reach."""

    address = "127.0.0.2"

    def answer(self, request):
        return Answer(403, body=b"internal")


@pytest.fixture
def internal():
    service = Elsewhere()
    yield service
    service.close()


@pytest.mark.parametrize("path", ["manifests", "blobs"])
@pytest.mark.parametrize("spelling", ["127.0.0.2", "2130706434", "[::ffff:127.0.0.2]", "127.0.0.2.nip"])
def test_a_redirect_into_a_private_network_is_refused(store, there, internal, path, spelling, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", named({"127.0.0.2.nip": "127.0.0.2"}))
    elsewhere = to(f"http://{spelling}:{internal.port}/x")
    there.spoil = lambda request, answer: elsewhere(answer) if path in request.path else answer
    with pytest.raises(RegistryError, match=r"leads to .* \(127.0.0.2\), expected a public address"):
        pull(store, there)
    assert internal.seen == []


@pytest.mark.parametrize("address", ["10.1.2.3", "169.254.169.254", "fd00::1", "fe80::1", "0.0.0.0", "100.64.0.1"])
def test_addresses_of_private_networks_are_not_public(address):
    registry = httpx.URL("https://registry.ollama.ai")
    url = httpx.URL(f"https://[{address}]/x" if ":" in address else f"https://{address}/x")
    with pytest.raises(RegistryError, match="expected a public address"):
        check_destination(url, registry)
    check_destination(httpx.URL("https://1.1.1.1/x"), registry)
    check_destination(url, httpx.URL(url).copy_with(path="/y"))  # the registry's own address
    if address in ("10.1.2.3", "fd00::1"):
        check_destination(url, registry, may_be_private=True)
    elif address.startswith(("169", "fe80")):
        with pytest.raises(RegistryError):
            check_destination(url, registry, may_be_private=True)


def test_a_name_that_changes_its_address_after_the_check_is_refused(store, there, internal, monkeypatch):
    """DNS rebinding: the name has a public address when it is checked, and a private one when it is requested."""
    real, asked = socket.getaddrinfo, []

    def rebound(host, port, *args, **kwargs):
        if host != "rebound.example":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        return real("1.1.1.1" if len(asked) == 1 else "127.0.0.2", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    elsewhere = to(f"http://rebound.example:{internal.port}/x")
    there.spoil = lambda request, answer: elsewhere(answer) if "manifests" in request.path else answer
    with pytest.raises(RegistryError, match=r"leads to rebound.example \(127.0.0.2\)") as refusal:
        pull(store, there)
    assert "internal" not in str(refusal.value)


def test_an_upload_location_in_a_private_network_is_refused(pushed, there, internal):
    location = Answer(202, {"Location": f"http://127.0.0.2:{internal.port}/part"})
    there.spoil = lambda request, answer: location if request.method == "POST" else answer
    with pytest.raises(RegistryError, match=r"leads to 127.0.0.2 "):
        push(pushed, there)
    assert internal.seen == []


# --- resuming ---


def partials(store):
    return {name.partition("-partial")[2]: (store.root / "blobs" / name) for name in files(store) if "partial" in name}


def test_part_files_have_ollamas_form(store, there):
    spoil_each(there, lambda answer: replace(answer, stall=5))
    with pytest.raises(RegistryError, match=r"kept \d+ of 409600 bytes, pull again to resume"):
        pull(store, there)
    left = partials(store)
    assert set(left) == {"", "-0", "-1", "-2", "-3", "-4"}
    assert left[""].stat().st_size == len(WEIGHTS)
    assert re.fullmatch(rb'\{"N":4,"Offset":400000,"Size":9600,"Completed":\d+\}\n', left["-4"].read_bytes())


def leave(store, completed, content=WEIGHTS, sizes=(300_000, 109_600)):
    """Write the partial files of an interrupted pull by Ollama."""
    blobs = store.root / "blobs"
    blobs.mkdir(parents=True)
    name = DIGEST.replace(":", "-")
    (blobs / f"{name}-partial").write_bytes(content)
    for n, done in enumerate(completed):
        record = {"N": n, "Offset": sum(sizes[:n]), "Size": sizes[n], "Completed": done}
        (blobs / f"{name}-partial-{n}").write_text(json.dumps(record, separators=(",", ":")) + "\n")


def test_a_pull_that_ollama_began_is_resumed_and_reported(store, there):
    leave(store, [300_000, 1_000], WEIGHTS[:301_000] + bytes(108_600))
    got = pull(store, there)
    assert_pulled(store, there)
    assert there.ranges(DIGEST) == ["bytes=301000-409599"]
    assert next(status["completed"] for status in got if status.get("digest") == DIGEST) == 301_000


def test_the_first_status_of_a_new_download_has_no_completed_bytes(store, there):
    there.spoil = lambda request, answer: there.over.wait(0.1) or answer
    assert next(status for status in pull(store, there) if status.get("digest") == DIGEST) == {
        "status": f"pulling {SHORT}",
        "digest": DIGEST,
        "total": len(WEIGHTS),
    }


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda name, blobs: (blobs / f"{name}-partial-0").write_text("{"),
        lambda name, blobs: (blobs / f"{name}-partial-0").unlink(),
        lambda name, blobs: (blobs / f"{name}-partial-7").write_text('{"N":7,"Offset":0,"Size":1,"Completed":0}'),
        lambda name, blobs: (blobs / f"{name}-partial-1").write_text(
            '{"N":1,"Offset":300000,"Size":109600,"Completed":109601}'
        ),
        lambda name, blobs: (blobs / f"{name}-partial").unlink(),
        lambda name, blobs: (blobs / f"{name}-partial").write_bytes(b"x"),
    ],
    ids=range(6),
)
def test_part_files_that_contradict_each_other_are_not_used(store, there, spoiled):
    leave(store, [300_000, 1_000])
    spoiled(DIGEST.replace(":", "-"), store.root / "blobs")
    pull(store, there)
    assert_pulled(store, there)
    assert len(there.ranges(DIGEST)) == 5


def test_wrong_resumed_bytes_are_fetched_again(store, there):
    leave(store, [300_000, 109_600], flipped(WEIGHTS))
    pull(store, there)
    assert_pulled(store, there)
    assert len(there.ranges(DIGEST)) == 5


def test_a_blob_of_another_size_is_replaced(store, there):
    (store.root / "blobs").mkdir(parents=True)
    store.blobs.path(DIGEST).write_bytes(b"cut off by something else")
    pull(store, there)
    assert_pulled(store, there)


PULLER = """
import sys
from numllama.engine.handle import RequestHandle
from numllama.engine.store import ModelName, Store
from numllama.engine.store.registry import download, part, retry, transfer
from numllama.engine.store.registry.address import check_destination
from numllama.engine.store.registry.auth import Credentials
retry.PROGRESS_BYTES, download.RECORD_INTERVAL_S = 1000, 0
part.MIN_PART_BYTES, part.MAX_PART_BYTES = 100_000, 1_000_000
name = ModelName.parse(sys.argv[2])
for status in transfer.pull(Store(sys.argv[1]), download.Downloads(), name, True, Credentials(), RequestHandle()):
    print(status, flush=True)
"""


def test_a_download_of_a_killed_process_is_resumed(store, there):
    spoil_each(there, lambda answer: replace(answer, stall=65_536) if len(answer.body) > 65_536 else answer)
    command = [sys.executable, "-c", PULLER, str(store.root), f"{there.host}/lab/m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        until(lambda: sum(b'"Completed":65536' in path.read_bytes() for path in partials(store).values()) == 4, 20)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert_no_model_and_valid_blobs(store)
    there.seen.clear()
    there.spoil = lambda request, answer: answer
    pull(store, there)
    assert_pulled(store, there)
    assert {f"bytes={n}65536-{n}99999" for n in ("", "1", "2", "3")} <= set(there.ranges(DIGEST))
    assert not any(range.endswith("00000-99999") for range in there.ranges(DIGEST))


def test_two_processes_fetch_each_blob_once(store, there):
    hold = threading.Event()
    there.spoil = lambda request, answer: hold.wait(20) and answer if DIGEST in request.path else answer
    command = [sys.executable, "-c", PULLER, str(store.root), f"{there.host}/lab/m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    until(lambda: len(there.ranges(DIGEST)) == 5, 20)
    got = []
    other = threading.Thread(target=lambda: got.extend(pull(store, there)))
    other.start()
    until(lambda: len(there.asked("GET", "manifests")) == 2)
    hold.set()
    out, _ = process.communicate(timeout=20)
    other.join()
    assert b"success" in out and words(got)[-1] == "success"
    assert_pulled(store, there)
    assert len(there.ranges(DIGEST)) == 5


# --- shared downloads ---


def n_waiting(downloads):
    return sum(download.n_waiting for download in list(downloads._running.values()))


def test_two_pulls_of_one_blob_share_its_download(store, there, monkeypatch):
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 20)  # longer than answers are held back
    hold, downloads, got = threading.Event(), Downloads(), [[], []]
    there.spoil = lambda request, answer: hold.wait(10) and answer if DIGEST in request.path else answer
    calls = [
        threading.Thread(target=lambda n=n: got[n].extend(pull(store, there, downloads=downloads))) for n in (0, 1)
    ]
    for call in calls:
        call.start()
    until(lambda: len(there.asked("GET", "manifests")) == 2 and n_waiting(downloads) == 2)
    hold.set()
    for call in calls:
        call.join()
    assert_pulled(store, there)
    assert len(there.ranges(DIGEST)) == 5
    assert [words(statuses)[-1] for statuses in got] == ["success", "success"]
    assert all(any(status.get("digest") == DIGEST for status in statuses) for statuses in got)


def test_a_download_ends_with_its_last_waiting_client(store, there, monkeypatch):
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 10)
    spoil_each(there, lambda answer: replace(answer, stall=50))
    downloads, calls, ends = Downloads(), [RequestHandle(), RequestHandle()], [None, None]

    def run(n):
        try:
            pull(store, there, downloads=downloads, handle=calls[n])
        except Cancelled as error:
            ends[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    until(
        lambda: (
            (running := list(downloads._running.values())) and running[0].n_waiting == 2 and running[0].completed == 250
        )
    )
    (download,) = downloads._running.values()
    calls[0].cancel()
    threads[0].join(2)
    assert ends[0] and not download.finished.is_set()
    calls[1].cancel()
    threads[1].join(5)
    assert ends[1] and download.finished.is_set()  # although the registry sends nothing
    assert all(b'"Completed":50}' in path.read_bytes() for n, path in partials(store).items() if n)


def test_a_pull_whose_shared_download_fails_retries_from_its_own_registry(store, there, monkeypatch):
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 20)  # longer than answers are held back
    bad, downloads, hold = Registry(), Downloads(), threading.Event()
    bad.manifests = there.manifests
    bad.spoil = lambda request, answer: (hold.wait(10) and Answer(403)) if DIGEST in request.path else answer
    failed = []

    def first():
        with pytest.raises(RegistryError) as refusal:
            pull(store, bad, downloads=downloads)
        failed.append(refusal.value)

    thread = threading.Thread(target=first)
    thread.start()
    until(lambda: downloads._running)
    statuses = pulling(store, there.host, downloads=downloads)
    got = [next(statuses)]
    second = threading.Thread(target=lambda: got.extend(statuses))
    second.start()
    until(lambda: n_waiting(downloads) == 2)
    hold.set()
    thread.join()
    second.join()
    bad.close()
    assert failed and words(got)[-1] == "success"
    assert_pulled(store, there)


def test_a_server_shutdown_ends_the_pull_and_keeps_the_partial_files(store, there):
    spoil_each(there, lambda answer: replace(answer, stall=50))
    downloads = Downloads()
    statuses = pulling(store, there.host, downloads=downloads)
    while next(statuses).get("completed") != 250:
        pass
    downloads.close()
    with pytest.raises(EngineError, match="the server is shutting down"):
        list(statuses)
    assert len(partials(store)) == 6


# --- authentication ---


def challenge(header, is_enough):
    """Answer 401 with `header` unless `is_enough(headers)`."""

    def spoil(request, answer):
        return answer if is_enough(request.headers) else Answer(401, {"WWW-Authenticate": header}, b"who?")

    return spoil


def test_basic_credentials_come_from_the_environment_or_dockers_file(store, there, tmp_path, monkeypatch):
    expected = "Basic " + base64.b64encode(b"u:p").decode()
    there.spoil = challenge('Basic realm="x"', lambda headers: headers.get("authorization") == expected)
    with pytest.raises(Unauthorized, match=r"unauthorized: access denied.*NUMLLAMA_REGISTRY_USER"):
        pull(store, there)
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"auths": {f"https://{there.host}/v1/": {"auth": expected[6:]}}}))
    pull(store, there, credentials=Credentials(docker=docker))
    monkeypatch.setenv("NUMLLAMA_REGISTRY_USER", "u")
    monkeypatch.setenv("NUMLLAMA_REGISTRY_PASSWORD", "p")
    monkeypatch.setenv("NUMLLAMA_REGISTRY_HOST", there.host)
    found = Credentials.from_env()
    assert found.basic(there.host) == expected and found.basic("registry.ollama.ai") == ""
    assert replace(found, host="h:1").basic(there.host) == "" and replace(found, host="h:1").basic("H:1") == expected
    assert "p" not in repr(found.password and found).replace("PosixPath", "").split("docker")[0].replace("password", "")


def test_a_registry_that_no_variable_names_gets_no_password(store, there, monkeypatch):
    """A client of a server chooses the registry, so it must not be able to choose who gets the server's password."""
    monkeypatch.setenv("NUMLLAMA_REGISTRY_USER", "u")
    monkeypatch.setenv("NUMLLAMA_REGISTRY_PASSWORD", "p")
    monkeypatch.delenv("NUMLLAMA_REGISTRY_HOST", raising=False)
    for challenged in (challenge('Basic realm="x"', lambda headers: False), Tokens(there, lambda request: False)):
        there.spoil = challenged if callable(challenged) else lambda request, answer: answer
        with pytest.raises(Unauthorized, match=f"set NUMLLAMA_REGISTRY_HOST={there.host}, NUMLLAMA_REGISTRY_USER and"):
            pull(store, there, credentials=Credentials.from_env())
    assert not any(request.headers.get("authorization", "").startswith("Basic") for request in there.seen)


class Tokens:
    """A registry that requires a token, and its token server.

    grants   whether a request for a token is granted
    uses     requests that a token is valid for
    """

    def __init__(self, double, grants, uses=1000):
        self.double, self.grants, self.uses, self.given, self.left = double, grants, uses, [], {}
        self.inner, double.answer = double.answer, self.answer

    def answer(self, request):
        if request.path == "/token":
            if not self.grants(request):
                return Answer(401, body=b"not you")
            self.given.append(request)
            token = f"t{len(self.given)}"
            self.left[f"Bearer {token}"] = self.uses
            return Answer(200, body=json.dumps({"token": token}).encode())
        header = request.headers.get("authorization")
        if self.left.get(header, 0) > 0:
            self.left[header] -= 1
            return self.inner(request)
        challenge = f'Bearer realm="{self.double.url}/token",service="reg",scope="repository:lab/m:pull"'
        return Answer(401, {"WWW-Authenticate": challenge})


def test_an_anonymous_token_is_requested_first(store, there, tmp_path):
    keys = Credentials(keys=tmp_path)
    keys.ensure_key()
    tokens = Tokens(there, lambda request: True)
    pull(store, there, credentials=replace(login(there), keys=tmp_path))
    assert_pulled(store, there)
    (asked,) = tokens.given
    assert (
        asked.query == {"service": ["reg"], "scope": ["repository:lab/m:pull"]} and "authorization" not in asked.headers
    )


def test_a_token_request_is_signed_as_ollama_signs_it(store, there, tmp_path):
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    def is_signed(request):
        public, _, signature = request.headers.get("authorization", "").partition(":")
        if not signature:
            return False
        empty = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
        text = f"GET,{there.url}{request.target},{empty}"
        load_ssh_public_key(f"ssh-ed25519 {public}".encode()).verify(base64.b64decode(signature), text.encode())
        return True

    keys = Credentials(keys=tmp_path / "ollama")
    keys.ensure_key()
    tokens = Tokens(there, is_signed)
    pull(store, there, credentials=keys)
    assert_pulled(store, there)
    (asked,) = tokens.given
    assert list(asked.query) == ["nonce", "scope", "service", "ts"]
    assert len(base64.urlsafe_b64decode(asked.query["nonce"][0] + "==")) == 16
    assert abs(int(asked.query["ts"][0]) - time.time()) < 60


def test_an_expired_token_is_renewed(store, there):
    tokens = Tokens(there, lambda request: True, uses=3)
    pull(store, there)
    assert_pulled(store, there)
    assert len(tokens.given) >= 3


def test_a_token_that_expires_during_an_upload_is_renewed(pushed, there):
    tokens = Tokens(there, lambda request: True, uses=3)
    push(pushed, there)
    assert there.blobs[DIGEST] == WEIGHTS and len(tokens.given) >= 4


def test_a_token_is_requested_with_user_and_password(store, there):
    expected = "Basic " + base64.b64encode(b"u:p").decode()
    tokens = Tokens(there, lambda request: request.headers.get("authorization") == expected)
    with pytest.raises(Unauthorized, match="access denied; 401: not you"):
        pull(store, there)
    pull(store, there, credentials=login(there))
    assert_pulled(store, there)
    assert len(tokens.given) == 1


def with_realm_at(double, other, grants):
    """Let `double` require a token of `other`, a server of its own."""
    tokens = Tokens(other, grants)
    inner, refused = double.answer, f'Bearer realm="{other.url}/token",service="reg",scope="repository:lab/m:pull"'
    double.answer = lambda request: (
        inner(request)
        if request.headers.get("authorization") in tokens.left
        else Answer(401, {"WWW-Authenticate": refused})
    )
    return tokens


def test_a_realm_at_another_host_gives_anonymous_tokens(store, there, tmp_path):
    """As the registries of Docker Hub and GitLab are set up."""
    other, credentials = Registry(), replace(login(there), keys=tmp_path)
    credentials.ensure_key()
    tokens = with_realm_at(there, other, lambda request: True)
    pull(store, there, credentials=credentials)
    other.close()
    assert_pulled(store, there)
    assert tokens.given[0].query == {"service": ["reg"], "scope": ["repository:lab/m:pull"]}
    assert not any("authorization" in request.headers for request in other.seen)


def test_a_realm_at_another_host_never_gets_credentials(store, there, tmp_path):
    other, credentials = Registry(), replace(login(there), keys=tmp_path)
    credentials.ensure_key()
    with_realm_at(there, other, lambda request: "authorization" in request.headers)
    text = f'realm host "{other.host}" does not match original host "{there.host}"'
    with pytest.raises(Unauthorized, match=text):
        pull(store, there, credentials=credentials)
    other.close()
    assert other.seen and not any("authorization" in request.headers for request in other.seen)


def test_a_realm_in_a_private_network_gets_no_request(store, there, internal):
    there.spoil = challenge(f'Bearer realm="{internal.url}/token",service="s"', lambda headers: False)
    with pytest.raises(RegistryError, match=r"leads to 127\.0\.0\.2"):
        pull(store, there)
    assert internal.seen == []


@pytest.mark.parametrize("header", ["", "Negotiate", 'Bearer realm=""', "Bearer realm=http://["])
def test_an_unsupported_challenge_is_an_error(store, there, header):
    there.spoil = challenge(header, lambda headers: False)
    with pytest.raises(RegistryError):
        pull(store, there)


def test_the_key_has_opensshs_format_and_is_private(tmp_path):
    keys = Credentials(keys=tmp_path / "new")
    assert keys.signature("GET", "http://x") == ""
    keys.ensure_key()
    secret = (tmp_path / "new/id_ed25519").read_bytes()
    assert stat.S_IMODE((tmp_path / "new/id_ed25519").stat().st_mode) == 0o600
    assert secret.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (tmp_path / "new/id_ed25519.pub").read_text().split()[0] == "ssh-ed25519"
    keys.ensure_key()
    assert (tmp_path / "new/id_ed25519").read_bytes() == secret
    (tmp_path / "new/id_ed25519").write_text("no key")
    with pytest.raises(StoreError, match="id_ed25519"):
        keys.signature("GET", "http://x")


# --- push ---


@pytest.fixture
def pushed(store, there):
    """A store with lab/m, pulled from `there`, which is then emptied."""
    pull(store, there)
    there.blobs.clear()
    there.manifests.clear()
    there.seen.clear()
    return store


def test_a_pushed_model_is_the_stores_byte_for_byte(pushed, there):
    got = push(pushed, there)
    layers = pushed.resolve(f"{there.host}/lab/m").manifest.all_layers
    blobs = [f"pushing {layer.digest[7:19]}" for layer in layers]
    assert words(got) == ["retrieving manifest", *blobs, "pushing manifest", "success"]
    assert there.blobs[DIGEST] == WEIGHTS and set(there.blobs) == {layer.digest for layer in layers}
    assert there.manifests["lab/m:latest"] == pushed.manifest_bytes(pushed.resolve(f"{there.host}/lab/m"))
    patches = [(request.headers["content-range"], len(request.body)) for request in there.asked("PATCH")][:5]
    assert patches == [(f"{n}00000-{n}99999".lstrip("0") if n else "0-99999", 100_000) for n in range(4)] + [
        ("400000-409599", 9_600)
    ]
    commit = there.asked("PUT", "uploads")[0].query
    assert (
        commit["digest"] == [DIGEST]
        and commit["_state"] == ["a/b"]
        and re.fullmatch("[0-9a-f]{32}-5", commit["etag"][0])
    )
    there.seen.clear()
    assert words(push(pushed, there)) == words(got)
    assert [request.method for request in there.seen] == ["HEAD"] * 3 + ["PUT"]


def test_a_blob_of_the_wrong_size_is_not_pushed(store, there):
    layers = [{"mediaType": MODEL, "digest": store.put_blob([b"w"])[0], "size": 1}]
    data = json.dumps({"schemaVersion": 2, "config": layers[0], "layers": layers}).encode()
    store.write_manifest(ModelName.parse(f"{there.host}/lab/m"), data + b"\n")
    store.blobs.path(layers[0]["digest"]).write_bytes(b"{}")
    with pytest.raises(BadManifest, match="2 bytes, expected 1 as in its manifest"):
        push(store, there)
    store.blobs.path(layers[0]["digest"]).write_bytes(b"w")
    store.list()


def test_an_upload_follows_relative_locations_and_is_retried(pushed, there):
    n_patches = []

    def spoil(request, answer):
        if "Location" in answer.headers:
            answer = replace(answer, headers={"Location": answer.headers["Location"].removeprefix(there.url)})
        if request.method == "PATCH":
            n_patches.append(request)
            return Answer(500) if len(n_patches) == 3 else answer
        return answer

    there.spoil = spoil
    push(pushed, there)
    assert there.blobs[DIGEST] == WEIGHTS


@pytest.mark.parametrize(
    "method, answer, expected",
    [
        ("HEAD", Answer(403), "403"),
        ("POST", Answer(405, body=b"no"), "405: no"),
        ("POST", Answer(202), "202 without a Location"),
        ("PATCH", Answer(500, body=b"full"), "max retries exceeded: 500: full"),
        ("PATCH", Answer(416), "416"),
        ("PUT", Answer(400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}'), "400: .*DIGEST_INVALID"),
        ("PATCH", Answer(202, body=b"xx", stall=1), "max retries exceeded: .*no data for"),
    ],
    ids=range(7),
)
def test_a_failed_push_names_the_blob(pushed, there, method, answer, expected):
    there.spoil = lambda request, true: answer if request.method == method else true
    with pytest.raises(RegistryError, match=f"pushing {SHORT}: .*{expected}"):
        push(pushed, there)
    assert there.manifests == {}


def test_an_upload_may_be_redirected_without_credentials(pushed, there):
    """The registry redirects the bytes of each part to another host, which gets no credentials."""
    other, parts = Registry(), []
    other.answer = lambda request: parts.append(request) or Answer(200)
    there.spoil = challenge("Basic realm=x", lambda headers: "authorization" in headers)
    inner = there.spoil

    def spoil(request, answer):
        answer = inner(request, answer)
        if request.method == "PATCH" and answer.status == 202:
            there.uploads = dict.fromkeys(there.uploads, WEIGHTS)
            headers = {"Location": f"{other.url}/part", "Docker-Upload-Location": answer.headers["Location"]}
            return Answer(307, headers)
        return answer

    there.spoil = spoil
    with pytest.raises(RegistryError, match="DIGEST_INVALID"):  # at the second blob, which the double does not support
        push(pushed, there, credentials=login(there))
    other.close()
    assert b"".join(part.body for part in parts[:5]) == WEIGHTS and DIGEST in there.blobs
    assert not any("authorization" in part.headers for part in parts)
    assert all(request.headers["x-redirect-uploads"] == "1" for request in there.asked("PATCH"))


def test_a_layer_is_mounted_from_the_model_it_came_from(pushed, there):
    model = pushed.resolve(f"{there.host}/lab/m")
    layers = tuple(replace(layer, source=model.name.short) for layer in model.manifest.layers)
    pushed.write_manifest(ModelName.parse(f"{there.host}/lab/n"), replace(model.manifest, layers=layers))
    push(pushed, there)
    there.spoil = lambda request, answer: Answer(404) if request.method == "HEAD" else answer
    there.seen.clear()
    push(pushed, there, "lab/n")
    mounts = [request.query.get("from") for request in there.asked("POST")]
    assert mounts == [["lab/m"], ["lab/m"], None]
    assert len(there.asked("PATCH")) == 1  # the config


def test_a_missing_model_cannot_be_pushed(store, there):
    statuses = transfer.push(store, f"{there.host}/lab/none", True, Credentials(), RequestHandle())
    assert [next(statuses)["status"], next(statuses)["status"]] == ["retrieving manifest", "couldn't retrieve manifest"]
    with pytest.raises(
        StoreError, match=f"^open .*/manifests/{there.host}/lab/none/latest: no such file or directory$"
    ):
        next(statuses)
    with pytest.raises(RequestError, match="unqualified name: a b"):
        push(store, None, "a b")


# --- Debian's docker-registry ---

needs_docker_registry = pytest.mark.skipif(
    not DOCKER_REGISTRY, reason="Debian's package docker-registry is not installed"
)


@pytest.fixture
def debians(tmp_path):
    """A function that starts a DockerRegistry with the given arguments."""
    started = []

    def start(**kwargs):
        folder = tmp_path / f"registry{len(started)}"
        folder.mkdir()
        started.append(DockerRegistry(folder, **kwargs))
        return started[-1]

    yield start
    for one in started:
        one.close()


def copy_to(store, double, name="lab/m"):
    """Store the model of WEIGHTS under a name in the registry `double`."""
    layers = [replace(model_layer(store, MODEL, WEIGHTS), source="w.gguf"), model_layer(store, SYSTEM, b"S")]
    config = model_layer(store, "application/vnd.docker.container.image.v1+json", b'{"model_format":"gguf"}\n')
    from numllama.engine.store.manifest import Manifest

    store.write_manifest(ModelName.parse(f"{double.host}/{name}"), Manifest(config, tuple(layers)))


def model_layer(store, media_type, content):
    from numllama.engine.store.manifest import ManifestLayer

    return ManifestLayer(media_type, *store.put_blob([content]))


def assert_same(store, other, double, name="lab/m"):
    ours, theirs = (some.resolve(f"{double.host}/{name}") for some in (store, other))
    assert other.manifest_bytes(theirs) == store.manifest_bytes(ours).rstrip(b"\n")
    for layer in theirs.manifest.all_layers:
        assert other.blob_path(layer.digest).read_bytes() == store.blob_path(layer.digest).read_bytes()


@needs_docker_registry
def test_a_model_goes_through_debians_registry_unchanged(store, debians, tmp_path):
    double, other = debians(), Store(tmp_path / "other")
    copy_to(store, double)
    copy_to(store, double, "lab/n")
    assert words(push(store, double))[-1] == "success"
    assert words(push(store, double, "lab/n"))[-1] == "success"
    with pytest.raises(RegistryError, match="pull model manifest: file does not exist"):
        pull(other, double, "lab/m:none")
    assert words(pull(other, double))[-1] == "success"
    assert_same(store, other, double)


@needs_docker_registry
def test_debians_registry_with_failed_requests(store, debians, tmp_path):
    double, other = debians(), Store(tmp_path / "other")
    copy_to(store, double)
    seen = []

    def spoil(request, answer):
        seen.append(request)
        return (
            Answer(503) if len(seen) % 11 == 2 else replace(answer, cut=50_000) if len(answer.body) > 60_000 else answer
        )

    double.spoil = spoil
    push(store, double)
    pull(other, double)
    assert_same(store, other, double)


@needs_docker_registry
def test_a_pull_survives_a_restart_of_debians_registry(store, debians, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.2)
    double, other = debians(), Store(tmp_path / "other")
    copy_to(store, double)
    push(store, double)

    once = [DIGEST]

    def die(request, answer):
        if once and request.method == "GET" and once[0] in request.path and once.pop():
            double.kill()
            threading.Timer(0.3, double.start).start()
            return replace(answer, cut=1000)
        return answer

    double.spoil = die
    pull(other, double)
    assert_same(store, other, double)


@needs_docker_registry
def test_debians_registry_accepts_user_and_password(store, debians, tmp_path):
    bcrypt = "$2y$04$TbU4xbK6j7iS983QmYvMJePfv6kyjKs3dkvq9dnldO1IBJV3gnjw."  # of "password"
    (tmp_path / "htpasswd").write_text(f"user:{bcrypt}\n")
    double = debians(auth=f"auth:\n  htpasswd:\n    realm: r\n    path: {tmp_path / 'htpasswd'}\n")
    copy_to(store, double)
    with pytest.raises(Unauthorized, match="access denied"):
        push(store, double)
    known, other = Credentials("user", "password", double.host), Store(tmp_path / "other")
    push(store, double, credentials=known)
    pull(other, double, credentials=known)
    assert_same(store, other, double)


@needs_docker_registry
def test_debians_registry_accepts_a_token_per_scope(store, debians, tmp_path):
    from datetime import datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "t")])
    day = timedelta(days=1)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime.now() - day, datetime.now() + day)
    certificate = built.add_extension(x509.BasicConstraints(True, None), critical=True).sign(key, hashes.SHA256())
    (tmp_path / "roots.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    asked = []

    def token(request):
        """Grant pull without authentication, and push to signed requests."""
        asked.append(request)
        scopes = [scope.split(":") for scope in request.query.get("scope", [])]
        may = {"pull"} | ({"push"} if "authorization" in request.headers else set())
        access = [
            {"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))}
            for kind, name, actions in scopes
        ]
        now = int(time.time())
        times = {"exp": now + 300, "nbf": now - 10, "iat": now - 10}
        claims = {"iss": "us", "sub": "", "aud": "them", **times, "jti": "1", "access": access}
        signed = jwt(claims, key, certificate.public_bytes(Encoding.DER))
        return Answer(200, {"Content-Type": "application/json"}, json.dumps({"token": signed}).encode())

    auth = (
        f"auth:\n  token: {{realm: '{{url}}/token', service: them, issuer: us, rootcertbundle: {tmp_path}/roots.pem}}\n"
    )
    double, other = debians(auth=auth, token=token), Store(tmp_path / "other")
    copy_to(store, double)
    with pytest.raises(Unauthorized, match="access denied"):
        push(store, double)
    keys = Credentials(keys=tmp_path / "keys")
    keys.ensure_key()
    push(store, double, credentials=keys)
    asked.clear()
    pull(other, double, credentials=keys)
    assert_same(store, other, double)
    assert asked and not any("authorization" in request.headers for request in asked)
