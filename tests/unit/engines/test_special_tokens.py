from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.vllm_special_tokens import SpecialTokenGuard

SPECIALS = {"<|im_start|>": 1, "<|im_end|>": 2, "<s>": 3, "<s>s>": 4}
PRIVATE = [chr(0xF0000 + number) for number in range(8)]


class CharacterTokenizer:
    """One token per character, from 1000 on; special tokens in the text become control tokens; 0 is BOS."""

    def get_added_vocab(self) -> dict[str, int]:
        return SPECIALS

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        assert split_special_tokens
        return [1000 + ord(letter) for letter in text]

    def __call__(self, text: str, **kwargs: Any) -> Mapping[str, Any]:
        ids = [0] if kwargs["add_special_tokens"] else []
        while text:
            special = next((s for s in sorted(SPECIALS, key=len, reverse=True) if text.startswith(s)), None)
            ids.append(SPECIALS[special] if special else 1000 + ord(text[0]))
            text = text[len(special or "x") :]
        return {"input_ids": ids}


TOKENIZER = CharacterTokenizer()
GUARD = SpecialTokenGuard(TOKENIZER)
user_text = st.lists(
    st.sampled_from([*SPECIALS, "<|im_", "start|>", "<", "s>", "é", *PRIVATE]) | st.text(max_size=3)
).map("".join)


def encode(text: str, **kwargs: Any) -> list[int]:
    return GUARD.encode(TOKENIZER, text, {"add_special_tokens": False, **kwargs})


@given(user_text)
def test_what_users_write_is_text_and_nothing_is_lost(text: str) -> None:
    neutral = GUARD.neutralise(text)
    assert isinstance(neutral, str)
    assert not any(special in neutral for special in SPECIALS)
    assert encode(neutral) == [1000 + ord(letter) for letter in text]
    assert GUARD.restore(neutral) == text


@given(user_text, user_text)
def test_the_templates_own_tokens_stay_control(first: str, second: str) -> None:
    neutral = [GUARD.neutralise(text) for text in (first, second)]
    ids = encode(f"<|im_start|>{neutral[0]}<|im_end|>{neutral[1]}", add_special_tokens=True)
    assert [i for i in ids if i < 1000] == [0, 1, 2]
    assert ids == [0, 1, *(1000 + ord(c) for c in first), 2, *(1000 + ord(c) for c in second)]


def test_all_strings_of_a_body_are_looked_at() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a<s>b"}]}],
        "tools": [{"function": {"parameters": {"properties": {"<|im_end|>": {"enum": ["<s>", 1, None, True]}}}}}],
        "n": 2,
    }
    neutral = GUARD.neutralise(body)
    assert "<s>" not in repr(neutral)
    assert "im_end" not in repr(neutral)
    assert neutral["n"] == 2
    assert neutral["tools"][0]["function"]["parameters"]["properties"].popitem()[1]["enum"][1:] == [1, None, True]


def test_text_without_special_tokens_takes_the_engines_own_path() -> None:
    assert not GUARD.holds_sentinel("nothing special <|im_ start|>")
    assert GUARD.holds_sentinel(GUARD.neutralise("<s>"))


def test_the_length_is_cut_where_the_engine_asks_for_it() -> None:
    text = GUARD.neutralise("<s>abcdef")
    assert len(encode(text, truncation=True, max_length=5)) == 5
    assert len(encode(text, truncation=False, max_length=5)) == 9
