"""Tokens: made once, kept as hashes, compared in constant time, gone when revoked."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role
from runtime.security.tokens import TokenStore, check_token
from tests.security.helpers import DAY


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "certs" / "tokens.json")


def test_a_token_makes_a_client(store: TokenStore) -> None:
    ann, eve = store.add("ann"), store.add("eve")
    assert check_token(store, ann.text) == Identity("ann", Role.CLIENT)
    assert check_token(store, eve.text) == Identity("eve", Role.CLIENT)


def test_a_token_is_256_random_bits_and_never_the_same(store: TokenStore) -> None:
    made = [store.add("ann") for _ in range(20)]
    for each in made:
        form = re.fullmatch(r"planc_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", each.text)
        assert form is not None
        assert form[1] == each.id
        assert len(base64.urlsafe_b64decode(form[2] + "=")) == 32
    assert len({each.text[22:] for each in made}) == 20


def test_the_file_has_hashes_and_is_closed(store: TokenStore) -> None:
    made = store.add("ann")
    text = store.path.read_text()
    assert made.text[22:] not in text
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert [p.name for p in store.path.parent.iterdir()] == ["tokens.json"]
    assert list(json.loads(text)["tokens"]) == [made.id]


def test_no_token_or_hash_is_in_any_representation(store: TokenStore) -> None:
    made = store.add("ann")
    (entry,) = store.entries().values()
    shown = f"{made!r} {made} {store!r} {entry!r} {store.entries()!r}"
    assert made.text[22:] not in shown
    assert entry.sha256 not in shown
    assert "ann" in shown


def test_every_other_text_is_nobody(store: TokenStore) -> None:
    ann, eve = store.add("ann"), store.add("eve")
    for position in range(len(ann.text)):
        changed = "A" if ann.text[position] != "A" else "B"
        assert check_token(store, ann.text[:position] + changed + ann.text[position + 1 :]) is None
    for text in (
        "",
        "planc_",
        ann.text + "\n",
        " " + ann.text,
        ann.text[:-1],
        ann.text.upper(),
        eve.text[:22] + ann.text[22:],
        f"planc_{ann.id}_{store.entries()[ann.id].sha256[:43]}",
        store.entries()[ann.id].sha256,
        "planc_" + "0" * 16 + "_" + "0" * 43,
        "\udcff",
        "x" * 1_000_000,
    ):
        assert check_token(store, text) is None
    assert check_token(store, ann.text) is not None


def test_known_or_unknown_the_comparison_is_made(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, seen = store.add("ann"), list[tuple[int, int]]()
    compare = hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        seen.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for text in (ann.text, ann.text[:-1] + "~", "planc_" + "0" * 16 + "_" + "0" * 43, ""):
        check_token(store, text)
    assert seen == [(64, 64)] * 4


def test_a_token_ends(store: TokenStore) -> None:
    end = datetime.now(UTC) + DAY
    ann = store.add("ann", end)
    assert check_token(store, ann.text) is not None
    assert check_token(store, ann.text, end) is not None
    assert check_token(store, ann.text, end + timedelta(microseconds=1)) is None
    with pytest.raises(CredentialsError, match="could never be used"):
        store.add("ann", datetime.now(UTC))


def test_revoked_is_gone_at_once_for_stores_that_are_open(store: TokenStore) -> None:
    elsewhere = TokenStore(store.path)
    one, two, eve = store.add("ann"), store.add("ann"), store.add("eve")
    assert all(check_token(elsewhere, each.text) for each in (one, two, eve))
    assert store.revoke("ann", one.id) == 1
    assert check_token(elsewhere, one.text) is None
    assert check_token(elsewhere, two.text) == Identity("ann", Role.CLIENT)
    three = store.add("ann")
    assert store.revoke("ann") == 2
    assert [check_token(elsewhere, each.text) for each in (one, two, three)] == [None] * 3
    assert check_token(elsewhere, eve.text) == Identity("eve", Role.CLIENT)


def test_revoking_what_is_not_there_changes_nothing(store: TokenStore) -> None:
    with pytest.raises(CredentialsError, match="no such file"):
        store.revoke("ann")
    assert not store.path.parent.exists()
    ann = store.add("ann")
    before = store.path.read_bytes()
    with pytest.raises(CredentialsError, match="client 'eve' has no token;"):
        store.revoke("eve")
    with pytest.raises(CredentialsError, match="client 'eve' has no token " + ann.id):
        store.revoke("eve", ann.id)
    assert store.path.read_bytes() == before


def _text(**entry: object) -> str:
    good = {"name": "ann", "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"}
    return json.dumps({"version": 1, "tokens": {"0" * 16: {**good, **entry}}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"version": 2, "tokens": {}}',
        '{"version": 1, "tokens": {}, "more": 1}',
        '{"version": 1, "tokens": {"short": {}}}',
        _text(role="owner"),
        _text(name="../x"),
        _text(name="ann\n"),
        _text(sha256="0" * 63),
        _text(expires="2026-01-01T00:00:00"),
        _text(expires=5),
        "[" * 100_000,
    ],
)
def test_a_file_of_another_form_accepts_nobody_and_says_so(
    store: TokenStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ann = store.add("ann")
    assert check_token(store, ann.text) is not None
    store.path.write_text(text)
    with pytest.raises(CredentialsError, match="expected a file of tokens"):
        store.entries()
    with pytest.raises(CredentialsError, match="expected a file of tokens"):
        store.add("eve")
    assert store.path.read_text() == text
    with caplog.at_level(logging.ERROR):
        assert check_token(store, ann.text) is None
    assert "no token is accepted" in caplog.text
    assert ann.text not in caplog.text


def test_a_file_that_is_gone_or_open_to_others_accepts_nobody(store: TokenStore) -> None:
    ann = store.add("ann")
    open_to_others = store.path.read_bytes()
    store.path.unlink()
    assert check_token(store, ann.text) is None
    store.path.write_bytes(open_to_others)
    store.path.chmod(0o622)
    assert check_token(store, ann.text) is None
    store.path.chmod(0o600)
    assert check_token(store, ann.text) == Identity("ann", Role.CLIENT)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n"])
def test_a_token_is_for_a_name(store: TokenStore, name: str) -> None:
    with pytest.raises(CredentialsError, match="cannot be a name"):
        store.add(name)
    assert not store.path.exists()


def test_changes_at_the_same_time_are_all_kept(store: TokenStore) -> None:
    together = threading.Barrier(8)

    def add(number: int) -> str:
        own = TokenStore(store.path)
        together.wait()
        return own.add(f"n{number}").text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(add, range(8)))
    names = {found.name for text in texts if (found := check_token(store, text))}
    assert names == {f"n{number}" for number in range(8)}
