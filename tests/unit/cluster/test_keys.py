import hashlib
import itertools

import pytest

from cluster.keys import (
    KeyLimits,
    KeyRecord,
    KeysFileError,
    Minted,
    Rejection,
    dump_records,
    load_records,
    mint,
    unauthorized,
    verify,
)

COUNTER = itertools.count()


def fake_random(size: int) -> bytes:
    """Repeatable bytes that differ at each call."""
    return hashlib.shake_256(str(next(COUNTER)).encode()).digest(size)


def minted(name: str = "mine") -> Minted:
    return mint(name, 1_000.0, fake_random, limits=KeyLimits(requests_per_minute=5))


def test_a_key_has_256_random_bits_and_is_not_in_its_record() -> None:
    key, record = minted()
    assert key.startswith("pm-")
    assert len(key) == 46
    assert record.id == key[3:11]
    assert key not in dump_records([record])
    assert key[11:] not in dump_records([record])
    assert record.hash not in repr(record)


def test_the_right_key_is_recognised() -> None:
    pairs = [minted(str(index)) for index in range(5)]
    records = {pair.record.id: pair.record for pair in pairs}
    for key, record in pairs:
        assert verify([f"Bearer {key}"], records) == record
        assert verify([f"bearer {key}"], records) == record


KEY, RECORD = mint("x", 0.0, fake_random)
RECORDS = {RECORD.id: RECORD}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], Rejection.MISSING),
        ([f"Bearer {KEY}", f"Bearer {KEY}"], Rejection.DOUBLED),
        ([f"Bearer {'x' * 8192}"], Rejection.TOO_LONG),
        ([f"Bearer {KEY}{'x' * 8192}"], Rejection.TOO_LONG),
        ([""], Rejection.MALFORMED),
        (["Bearer"], Rejection.MALFORMED),
        (["Bearer "], Rejection.MALFORMED),
        ([KEY], Rejection.MALFORMED),
        ([f"Basic {KEY}"], Rejection.MALFORMED),
        ([f"Bearer  {KEY}"], Rejection.MALFORMED),
        ([f"Bearer {KEY} "], Rejection.MALFORMED),
        ([f"Bearer {KEY}\n"], Rejection.MALFORMED),
        ([f"Bearer {KEY}, Bearer {KEY}"], Rejection.MALFORMED),
        (["Bearer ' OR 1=1 --"], Rejection.MALFORMED),
        (["Bearer pm-" + "ä" * 43], Rejection.MALFORMED),
        (["Bearer pm-" + "a" * 43], Rejection.UNKNOWN),
        ([f"Bearer {KEY[:-1]}{'a' if KEY[-1] != 'a' else 'b'}"], Rejection.UNKNOWN),
        ([f"Bearer {KEY[:11]}{'a' * 35}"], Rejection.UNKNOWN),
    ],
    ids=range(18),
)
def test_any_other_is_rejected_with_a_reason(headers: list[str], reason: Rejection) -> None:
    assert verify(headers, RECORDS) is reason
    error = unauthorized(reason)
    assert error.status == 401
    assert error.headers == {"www-authenticate": "Bearer"}
    assert KEY not in error.body().decode()


def test_a_revoked_key_is_rejected_and_reads_like_an_unknown_one() -> None:
    revoked = RECORD.revoke(5.0)
    assert revoked.revoke(9.0).revoked == 5.0
    assert verify([f"Bearer {KEY}"], {RECORD.id: revoked}) is Rejection.REVOKED
    assert unauthorized(Rejection.REVOKED).body() == unauthorized(Rejection.UNKNOWN).body()


def test_records_survive_the_file() -> None:
    records = [minted(str(index)).record for index in range(3)]
    assert list(load_records(dump_records(records) + "\n").values()) == records


@pytest.mark.parametrize("line", ["{}", "canary", '{"id": "canary"}', "[1]"])
def test_a_damaged_file_is_named_by_line_without_its_content(line: str) -> None:
    with pytest.raises(KeysFileError, match="line 2") as caught:
        load_records(dump_records([RECORD]) + line + "\n")
    assert "canary" not in str(caught.value)


def test_an_id_may_stand_once() -> None:
    with pytest.raises(KeysFileError, match="line 2"):
        load_records(dump_records([RECORD, KeyRecord(**RECORD.model_dump())]))


def test_no_id_looks_like_an_option_of_a_command_line():
    draws = iter([b"\xf8" * 32, b"\xfb" * 32, b"\x00" * 32, b"s" * 16])
    assert mint("alice", 0.0, lambda count: next(draws)[:count]).record.id == "A" * 8
