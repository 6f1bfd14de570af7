from __future__ import annotations

import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deployments.models import conversations, kv_prompts, text
from deployments.models.kv_prompts import KINDS, LENGTHS, NotEnoughTextError, make_prompts

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}{% endfor %}<assistant>"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A tokenizer of one token per byte, and as much held-out text as it takes."""
    units = sorted({*pre_tokenizers.ByteLevel.alphabet(), *string.printable})
    made = Tokenizer(models.BPE({unit: place for place, unit in enumerate(units)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=4096).save_pretrained(tmp_path)
    monkeypatch.setattr(
        text, "documents", lambda kind, split: [f"{kind} {split} {n} ".ljust(900, ".") for n in range(9)]
    )
    return tmp_path


def test_questions_are_none_that_models_are_fitted_on():
    assert set(kv_prompts.QUESTIONS).isdisjoint(conversations.prompts())


def test_prompts_are_of_all_kinds_short_and_long_and_always_the_same(folder):
    made = make_prompts(folder, 12, 2000)
    assert [prompt.kind for prompt in made[:4]] == [*KINDS, KINDS[0]]
    code = [prompt.ids for prompt in made if prompt.kind == "code"]
    assert [len(ids) for ids in code] == [*LENGTHS, LENGTHS[0]]
    assert code[0] != code[3]
    assert made == make_prompts(folder, 12, 2000)


def test_prompts_leave_room_for_the_answer(folder):
    for template in (None, TEMPLATE):
        made = make_prompts(folder, 12, 200, template)
        assert max(len(prompt.ids) for prompt in made) <= 200
    with pytest.raises(NotEnoughTextError, match="20 tokens"):
        make_prompts(folder, 3, 20)


def test_a_chat_template_is_used_where_there_is_one(folder):
    plain, rendered = (make_prompts(folder, 1, 500, template)[0].ids for template in (None, TEMPLATE))
    assert len(rendered) == len(plain) + len("<user> <assistant>")


def test_text_that_runs_out_is_told(folder):
    with pytest.raises(NotEnoughTextError, match="held-out code is too short"):
        make_prompts(folder, 500, None)
