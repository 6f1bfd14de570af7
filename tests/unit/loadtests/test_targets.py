from __future__ import annotations

import pytest

from loadtests.targets import TargetError, parse_target


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "/v1"),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1:8000", "/v1"),
        ("http://localhost", "localhost:80", "/v1"),
        ("https://[::1]:99/team/v1", "[::1]:99", "/team/v1"),
    ],
)
def test_urls_of_this_machine(url: str, authority: str, prefix: str) -> None:
    target = parse_target(url)
    assert (target.authority, target.prefix) == (authority, prefix)


def test_other_machines_need_to_be_allowed() -> None:
    with pytest.raises(TargetError, match="--allow-remote"):
        parse_target("https://example.com")
    assert parse_target("https://example.com", allow_remote=True).port == 443


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "http://127.0.0.1/?a=b", "http://127.0.0.1:x"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(TargetError):
        parse_target(url)
