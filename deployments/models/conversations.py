"""Conversations to fit the embedded models on: the dense model's own answers to plain questions.

Packages carry prose and code but no chats, and a model fitted without any forgets how to answer first. The model's
greedy answers are the closest thing to what it was tuned on, and they are the behaviour that is to be kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deployments.models.store import Progress
from deployments.processor import working_dtype

FILE = "conversations.json"
_BATCH = 32
_ANSWER_TOKENS = 80

_COUNTRIES = ("Germany", "Japan", "Kenya", "Brazil", "Canada", "Egypt", "India", "Norway", "Peru", "Spain", "Italy")
_THINGS = ("colours", "fruits", "animals", "planets", "sports", "rivers", "musical instruments", "vegetables")
_TOPICS = ("photosynthesis", "gravity", "a database index", "inflation", "recursion", "a vaccine", "the water cycle")
_TASKS = (
    "adds two numbers",
    "reverses a string",
    "counts the vowels in a word",
    "returns the largest number of a list",
    "checks whether a number is prime",
    "reads a JSON file",
    "sorts a list of dictionaries by a key",
)
_SCENES = ("the sea", "a fox", "an old clock", "winter", "a lighthouse", "a journey by train")
_ADVICE = (
    "sleeping better",
    "learning a language",
    "saving money",
    "growing tomatoes",
    "a job interview",
    "a long walk",
)
_WORKS = ("Hamlet", "Don Quixote", "The Odyssey", "Pride and Prejudice", "War and Peace")
_QUESTIONS = (
    "Hello, how are you?",
    "How many days are there in a week?",
    "What is the largest ocean on Earth?",
    "What is the boiling point of water?",
    "Who was the first person to walk on the Moon?",
    "What language is spoken in Portugal?",
    "What is the opposite of hot?",
    "How do plants drink water?",
    "Why is the sky blue?",
    "What does a doctor do?",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
    "Return a JSON object with the keys name and age for a person named Alice who is 30.",
    "Make a list of three things to pack for a trip.",
    "Rewrite this sentence politely: Give me the report now.",
    "Correct the spelling: I recieved teh letter.",
    "Is the number 7 odd or even?",
    "Complete the sentence: The cat sat on the",
)


def prompts() -> list[str]:
    """Every question, in a fixed order that mixes the sorts."""
    asked = [f"What is the capital of {country}?" for country in _COUNTRIES]
    asked += [f"Name three {thing}." for thing in _THINGS]
    asked += [f"Explain {topic} in one sentence." for topic in _TOPICS]
    asked += [f"What is {topic}?" for topic in _TOPICS]
    asked += [f"Write a Python function that {task}." for task in _TASKS]
    asked += [f"Write a short story about {scene}." for scene in _SCENES]
    asked += [f"Give me one tip for {subject}." for subject in _ADVICE]
    asked += [f"Who wrote {work}?" for work in _WORKS]
    asked += [f"What is {number} + {number + 2}?" for number in range(2, 14, 2)]
    asked += _QUESTIONS
    step = 17  # prime to the number of questions, so that every one comes once
    return [asked[place * step % len(asked)] for place in range(len(asked))]


def write_conversations(dense: Path, folder: Path, progress: Progress) -> None:
    """Let the model in `dense` answer every prompt greedily and write the rendered conversations into `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Its methods return unions that depend on their arguments.
    tokenizer: Any = AutoTokenizer.from_pretrained(dense, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=working_dtype()).eval()
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts()
    ]
    texts: list[str] = []
    for start in range(0, len(rendered), _BATCH):
        progress("conversations: asking the dense model", start / len(rendered))
        batch = tokenizer(rendered[start : start + _BATCH], return_tensors="pt", padding=True)
        answers = model.generate(**batch, max_new_tokens=_ANSWER_TOKENS, do_sample=False, temperature=None, top_p=None)
        for prompt, answer in zip(rendered[start:], answers[:, batch["input_ids"].shape[1] :], strict=False):
            texts.append(prompt + tokenizer.decode(answer, skip_special_tokens=True) + "<|im_end|>\n")
    (folder / FILE).write_text(json.dumps(texts, indent=1), encoding="utf-8")


def read_conversations(folder: Path) -> list[str]:
    """The conversations that `write_conversations` wrote."""
    texts: list[str] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return texts
