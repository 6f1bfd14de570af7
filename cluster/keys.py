"""API keys: making them, keeping only their hashes, and recognising them.

A key is `pm-` and 32 random bytes in URL-safe base64 (43 characters). The first 8 characters after `pm-` are its public id,
shown in lists and usage; the other 35 carry 210 random bits. A key is stored as SHA-256 over a salt of its own and the
whole key: with that much randomness there is nothing to guess, so a slow hash would cost every request and protect
nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.api.errors import ApiError

PREFIX: Final = "pm-"
ID_CHARS: Final = 8
MAX_HEADER_CHARS: Final = 256

_KEY: Final = re.compile(r"pm-[A-Za-z0-9_-]{43}")
_KEY_BYTES: Final = 32
_SALT_BYTES: Final = 16


class KeyLimits(BaseModel):
    """What a key may use; None: unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000_000)
    tokens_per_minute: int | None = Field(None, ge=1, le=1_000_000_000_000)
    concurrency: int | None = Field(None, ge=1, le=1_000_000)


class KeyRecord(BaseModel):
    """What is kept of a key. The key itself cannot be made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{8}$")
    name: str = Field(min_length=1, max_length=128)
    tenant: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    created: float = Field(ge=0, allow_inf_nan=False)
    """Seconds since 1970."""
    revoked: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Seconds since 1970; None: valid."""
    salt: str = Field(pattern=r"^[0-9a-f]{32}$", repr=False)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    limits: KeyLimits = KeyLimits()

    def revoke(self, now: float) -> KeyRecord:
        """A copy that is refused from `now` (seconds since 1970) on."""
        return self if self.revoked is not None else self.model_copy(update={"revoked": now})


class Minted(NamedTuple):
    """A new key, to be shown once, and the record to keep."""

    key: str
    record: KeyRecord


class Rejection(StrEnum):
    """Why a request has no valid key. For logs; the caller learns only whether a key was there."""

    MISSING = "missing"
    DOUBLED = "doubled"
    TOO_LONG = "too long"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"


class KeysFileError(ValueError):
    """A file of keys that cannot be read; the message names the line and never its content."""


def mint(
    name: str,
    now: float,
    random_bytes: Callable[[int], bytes],
    *,
    tenant: str = "default",
    limits: KeyLimits | None = None,
) -> Minted:
    """A new key. `now` in seconds since 1970; `random_bytes(n)` must be fit for secrets (`secrets.token_bytes`)."""
    drawn = random_bytes(_KEY_BYTES)
    while _would_look_like_an_option(drawn):
        drawn = random_bytes(_KEY_BYTES)
    key = PREFIX + base64.urlsafe_b64encode(drawn).decode().rstrip("=")
    salt = random_bytes(_SALT_BYTES).hex()
    record = KeyRecord(
        id=_id_of(key),
        name=name,
        tenant=tenant,
        created=now,
        salt=salt,
        hash=_hash(salt, key),
        limits=limits or KeyLimits(),
    )
    return Minted(key, record)


def verify(authorization: Sequence[str], records: Mapping[str, KeyRecord]) -> KeyRecord | Rejection:
    """The record of the key in a request.

    `authorization` has the values of all `Authorization` headers, `records` the records by id. A key that is not known
    costs as much time as one that is.
    """
    if not authorization:
        return Rejection.MISSING
    if len(authorization) > 1:
        return Rejection.DOUBLED
    header = authorization[0]
    if len(header) > MAX_HEADER_CHARS:
        return Rejection.TOO_LONG
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not _KEY.fullmatch(key):
        return Rejection.MALFORMED
    record = records.get(_id_of(key))
    salt, expected = (record.salt, record.hash) if record is not None else (_NO_SALT, _NO_HASH)
    matches = hmac.compare_digest(_hash(salt, key), expected)
    if record is None or not matches:
        return Rejection.UNKNOWN
    return record if record.revoked is None else Rejection.REVOKED


def unauthorized(rejection: Rejection) -> ApiError:
    """The 401 for a request without a valid key. An unknown, a revoked and a malformed key read the same."""
    if rejection is Rejection.MISSING:
        message = "A key is needed: send it as `Authorization: Bearer pm-...`; `pointsman keys add` makes one."
    else:
        message = "The key in `Authorization` is not valid: send one valid key as `Authorization: Bearer pm-...`."
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, "invalid_api_key", message, type="authentication_error", headers=headers)


def dump_records(records: Iterable[KeyRecord]) -> str:
    """The records as JSON lines."""
    return "".join(record.model_dump_json() + "\n" for record in records)


def load_records(text: str) -> dict[str, KeyRecord]:
    """Records by id, of JSON lines. Raises `KeysFileError` for a line that is no record or repeats an id."""
    records: dict[str, KeyRecord] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = KeyRecord.model_validate_json(line)
        except ValidationError:
            raise KeysFileError(f"line {number} of the keys file is no key record; restore or remove it") from None
        if record.id in records:
            raise KeysFileError(f"line {number} of the keys file repeats the id of an earlier key; remove one of them")
        records[record.id] = record
    return records


def _would_look_like_an_option(drawn: bytes) -> bool:
    """Whether the id would begin with `-`, the 62nd letter of URL-safe base64: a command line takes that for an option."""
    return drawn[0] >> 2 == 62


def _id_of(key: str) -> str:
    return key[len(PREFIX) : len(PREFIX) + ID_CHARS]


def _hash(salt: str, key: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + key.encode()).hexdigest()


_NO_SALT: Final = "00" * _SALT_BYTES
_NO_HASH: Final = "00" * 32
