"""The file of API keys, and the keyring that follows it."""

import logging
import os
import threading
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from pbkv_cluster.core.errors import ConfigError, PermissionDenied, Unauthenticated
from pbkv_cluster.core.security.caller import OPERATOR, Caller
from pbkv_cluster.core.security.headers import api_key_of
from pbkv_cluster.core.security.key_file import Callers, digest, read_key_file
from pbkv_cluster.core.security.keyring import Keyring
from tests.polling import wait_for

KEY = "0123456789abcdefghij"
OTHER = "another-key-of-20-ch"
LOOK_S = 0.01


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_keys_are_given_plain_or_hashed(file: Path) -> None:
    hashed = sha256(OTHER.encode()).hexdigest()
    file.write_text(f"- key: {KEY}\n  tenant: red\n- sha256: '{hashed}'\n  operator: true\n")
    assert read_key_file(file) == {digest(KEY): Caller("red"), digest(OTHER): OPERATOR}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must hold a list"),
        (f"key: {KEY}", "must hold a list"),
        ("- [", "is not YAML"),
        ("- text", "entry 1: must be a mapping"),
        ("- {tenant: red}", "entry 1: give either key or sha256"),
        (f"- {{key: {KEY}, sha256: abc, tenant: red}}", "entry 1: give either key or sha256"),
        (f"- {{key: {KEY}}}", "entry 1: give either the name of a tenant, or operator"),
        (f"- {{key: {KEY}, tenant: red, operator: true}}", "entry 1: give either the name of a tenant, or operator"),
        (f"- {{key: {KEY}, operator: 1}}", "entry 1: operator must be true or false"),
        (f"- {{key: {KEY}, tenant: 5}}", "entry 1: tenant must be a text"),
        (f"- {{key: {KEY}, tenant: {'x' * 257}}}", "entry 1: tenant: at most 256 bytes"),
        ("- {key: short-secret, tenant: red}", "entry 1: key must be a text of at least 20"),
        ("- {key: 1234567890123456789012345, tenant: red}", "entry 1: key must be a text"),
        ("- {sha256: abc, tenant: red}", "entry 1: sha256 must have 64"),
        (f"- {{key: {KEY}, tenant: red, role: x}}", "entry 1: unknown field 'role'"),
        (f"- {{key: {KEY}, tenant: red}}\n- {{key: {KEY}, tenant: blue}}", "entry 2: the key is given twice"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_keys(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_key_file(file)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("security.credentials")
    assert not any(secret in str(caught.value) for secret in (KEY, "short-secret", "1234567890"))


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"security\.credentials: cannot read .*keys\.yaml"):
        Keyring(file)


def write(file: Path, text: str) -> None:
    """Replaces the file, as editors do, so that no half of it is ever read."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def caller_of(keyring: Keyring, key: str) -> Caller | None:
    try:
        return keyring.caller(key)
    except Unauthenticated:
        return None


def test_no_call_waits_for_a_file_that_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, go = threading.Event(), threading.Event()
    write(file, f"- {{key: {KEY}, tenant: red}}")
    keyring = Keyring(file, look_s=LOOK_S)

    def slowly(path: Path) -> Callers:
        reads.set()
        assert go.wait(30)
        return read_key_file(path)

    monkeypatch.setattr("pbkv_cluster.core.security.keyring.read_key_file", slowly)
    write(file, f"- {{key: {OTHER}, tenant: blue}}")
    assert reads.wait(30)
    assert keyring.caller(KEY) == Caller("red"), "the keys of before count while the file is read"
    go.set()
    wait_for(lambda: caller_of(keyring, OTHER) == Caller("blue"))


def test_a_revoked_key_is_refused_though_no_call_came_meanwhile(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(file, f"- {{key: {KEY}, tenant: red}}")
    keyring = Keyring(file, look_s=LOOK_S)
    write(file, f"- {{key: {OTHER}, tenant: blue}}")
    wait_for(lambda: "1 API keys are read again" in caplog.text)
    with pytest.raises(Unauthenticated):
        keyring.caller(KEY)


def test_the_file_is_followed_whatever_goes_wrong(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, f"- {{key: {KEY}, tenant: red}}")
    keyring = Keyring(file, look_s=LOOK_S)
    failed = threading.Event()

    def fail(path: Path) -> Callers:
        failed.set()
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("pbkv_cluster.core.security.keyring.read_key_file", fail)
        write(file, f"- {{key: {OTHER}, tenant: green}}")
        assert failed.wait(30)
        assert keyring.caller(KEY) == Caller("red")
    write(file, f"- {{key: {OTHER}, tenant: blue}}")
    wait_for(lambda: caller_of(keyring, OTHER) == Caller("blue"))


def test_nothing_is_left_of_a_keyring_that_is_not_used(file: Path) -> None:
    write(file, f"- {{key: {KEY}, tenant: red}}")
    before = set(threading.enumerate())
    keyring = Keyring(file, look_s=LOOK_S)
    (thread,) = set(threading.enumerate()) - before
    del keyring
    thread.join(30)
    assert not thread.is_alive()


def test_a_changed_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write(file, f"- {{key: {KEY}, tenant: red}}")
    keyring = Keyring(file, look_s=LOOK_S)
    assert keyring.caller(KEY) == Caller("red")
    write(file, f"- {{key: {OTHER}, tenant: blue}}")
    wait_for(lambda: caller_of(keyring, OTHER) == Caller("blue"))
    assert caller_of(keyring, KEY) is None

    def complains(times: int) -> bool:
        assert keyring.caller(OTHER) == Caller("blue"), "the keys of before stay"
        return caplog.text.count("the keys of before stay") == times

    for number, wrong in enumerate(("- {key: broken", "", None), start=1):
        if wrong is None:
            file.unlink()
        else:
            write(file, wrong)
        wait_for(partial(complains, number))
        assert caller_of(keyring, OTHER) == Caller("blue")
    assert KEY not in caplog.text
    assert OTHER not in caplog.text


def test_the_cluster_key_outlives_changes_of_the_file(file: Path) -> None:
    write(file, f"- {{key: {KEY}, tenant: red}}")
    keyring = Keyring(file, "cluster", LOOK_S)
    write(file, f"- {{key: {OTHER}, tenant: blue}}")
    wait_for(lambda: caller_of(keyring, OTHER) == Caller("blue"))
    assert keyring.caller("cluster") is OPERATOR
    with pytest.raises(Unauthenticated, match="needed"):
        keyring.caller("")


def test_a_caller_may_use_what_is_its_tenants() -> None:
    red = Caller("red")
    assert red.tenant_of("") == red.tenant_of("red") == "red"
    with pytest.raises(PermissionDenied, match="another tenant than 'blue'"):
        red.tenant_of("blue")
    assert OPERATOR.tenant_of("") == ""
    assert OPERATOR.tenant_of("blue") == "blue"
    assert [red.may_use(tenant) for tenant in ("red", "blue", "")] == [True, False, False]
    assert all(OPERATOR.may_use(tenant) for tenant in ("red", ""))
    with pytest.raises(PermissionDenied, match="clearing needs"):
        red.check_operator("clearing")
    OPERATOR.check_operator("clearing")


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"x-api-key": "abc"}, "abc"),
        ({"authorization": "Basic OmFiYw=="}, "abc"),  # an empty user
        ({"authorization": "Basic dTphOmI="}, "a:b"),
        ({"authorization": "Basic ???"}, ""),
        ({"authorization": "Digest abc"}, ""),
        ({}, ""),
    ],
)
def test_where_a_key_is_in_headers(headers: dict[str, str], key: str) -> None:
    assert api_key_of(headers) == key
