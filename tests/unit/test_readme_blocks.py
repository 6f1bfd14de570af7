from __future__ import annotations

import pytest

from tests.readme_blocks import Block, find_blocks, lifecycle_command, make_targets

README = """\
# Title

```console
$ make up
cluster is ready
$ pointsman chat "hi" \\
>   --model fast
Hello
```

<!-- not run: it would stop the cluster -->

```bash
make down   # and all of it
# a comment
```

```python
print("not a command")
```

1. In a list:

   ```sh
   export A=1
   echo $A
   ```
"""


def test_commands_are_found_by_language() -> None:
    assert find_blocks(README) == [
        Block(3, ("make up", 'pointsman chat "hi" \\\n  --model fast')),
        Block(13, ("make down   # and all of it",), "it would stop the cluster"),
        Block(24, ("export A=1", "echo $A")),
    ]


def test_a_mark_holds_for_the_next_block_alone() -> None:
    first, second = find_blocks("<!-- not run: slow -->\n```sh\na\n```\n```sh\nb\n```\n")
    assert first.reason == "slow"
    assert second.reason is None


def test_text_between_a_mark_and_a_block_undoes_the_mark() -> None:
    (block,) = find_blocks("<!-- not run: slow -->\nSome text.\n```sh\na\n```\n")
    assert block.reason is None


def test_a_mark_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="line 1: `not run` needs a reason"):
        find_blocks("<!-- not run: -->\n```sh\na\n```\n")


def test_a_block_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2: this block has no end"):
        find_blocks("text\n```sh\na\n")


def test_make_targets_are_words_that_are_neither_options_nor_variables() -> None:
    assert make_targets('make -j2 test check ARGS="-x"  # run') == ("test", "check")
    assert make_targets("cmake up") == ()


def test_starting_and_stopping_are_recognised() -> None:
    assert lifecycle_command("pointsman up --config infra/clusters/gpu.yaml") == "up"
    assert lifecycle_command(".venv/bin/pointsman down") == "down"
    assert lifecycle_command("pointsman chat up") is None
