"""Records of preferences: every layout means the same pair, and what cannot be used is counted with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.align.rows import read_rows
from llmforge.corpus.conversations import conversation_of
from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.chat_template import ChatTemplate

from .conftest import TEMPLATE

SAID = st.text("abc ", min_size=1).filter(str.strip)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


@given(SAID, SAID, SAID, st.none() | SAID)
def test_every_way_to_write_a_pair_gives_the_same_one(a: str, b: str, c: str, system: str | None) -> None:
    b, c = b + " b", c + " c"
    prompt = [turn("user", a)]
    answers = [turn("assistant", b)], [turn("assistant", c)]
    before = {"system": system} if system else {}
    opening = [turn("system", system)] if system else []
    written = [
        {**before, "prompt": a, "chosen": b, "rejected": c},
        {**before, "prompt": prompt, "chosen": answers[0], "rejected": answers[1]},
        {"prompt": [*opening, *prompt], "chosen": b, "rejected": answers[1]},
        {**before, "prompt": a, "chosen": prompt + answers[0], "rejected": prompt + answers[1]},
        {"chosen": opening + prompt + answers[0], "rejected": opening + prompt + answers[1]},
        {**before, "chosen": prompt + answers[0], "rejected": prompt + answers[1]},
    ]
    found = {conversation_of(one, "pairs") for one in written}
    assert len(found) == 1
    value = json.loads(found.pop() or "")
    assert value == {"messages": opening + prompt, "chosen": answers[0][0], "rejected": answers[1][0]}


BAD = {
    "chosen equals rejected": {"prompt": "a", "chosen": "b ", "rejected": "b"},
    "chosen and rejected have different prompts": {
        "chosen": [turn("user", "a"), turn("assistant", "b")],
        "rejected": [turn("user", "c"), turn("assistant", "b")],
    },
    "'chosen' does not begin with 'prompt'": {
        "prompt": "a",
        "chosen": [turn("user", "c"), turn("assistant", "b")],
        "rejected": "d",
    },
    "empty content": {"prompt": "a", "chosen": " ", "rejected": "b"},
    "no 'rejected'": {"prompt": "a", "chosen": "b"},
    "'chosen' is text, and there is no 'prompt'": {"chosen": "a", "rejected": "b"},
    "chosen or rejected has not one answer behind their common beginning": {
        "prompt": "a",
        "chosen": [turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")],
        "rejected": "e",
    },
    "longer than --max-length 60": {"prompt": "a", "chosen": "b " * 60, "rejected": "b"},
}


def test_records_that_cannot_be_used_are_counted_and_named(
    tiny_tokenizer: Path, template: Path, tmp_path: Path
) -> None:
    good = {"prompt": "the cat", "chosen": "sat", "rejected": "ate"}
    data = write(tmp_path / "pairs.jsonl", good, *BAD.values(), good)
    made = ChatTemplate(load(tiny_tokenizer), template)
    rows = read_rows([data], "pairs", made, 60, max_rejected=1.0)
    assert len(rows) == 2
    assert rows.account == {
        "read": len(BAD) + 2,
        "used": 2,
        "rejected": {"documents": len(BAD), "reasons": dict.fromkeys(BAD, 1)},
    }
    with pytest.raises(UserError, match=r"8 of 10 .* line 2: chosen equals rejected.* --max-rejected"):
        read_rows([data], "pairs", made, 60, max_rejected=0.5)


def test_the_ids_are_those_of_the_rendered_conversation_up_to_the_end_of_the_answer(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    tokenizer, template = load(tiny_tokenizer), tmp_path / "spaces.jinja"
    template.write_text(TEMPLATE.replace("\n", " "))
    data = write(tmp_path / "pairs.jsonl", {"prompt": "the <|end|>", "chosen": "sat", "rejected": "ate"})
    columns = read_rows([data], "pairs", ChatTemplate(tokenizer, template), 60, 0.0).columns
    prompt, chosen, rejected = (
        columns[f"{name}_ids"][0].tolist() for name in ("prompt", "chosen", "rejected")
    )
    assert tokenizer.decode(prompt + chosen) == "user: the <|end|><|end|>assistant: sat<|end|>"
    assert (
        tokenizer.decode(chosen) == " sat<|end|>"
    )  # of a token that spans the end of the prompt nothing is lost
    assert (prompt + rejected).count(tokenizer.eos_id) == 2  # what a message spells is no special token
    asked = read_rows([data], "prompts", ChatTemplate(tokenizer, template), 60, 0.0).columns["prompt_ids"][0]
    assert tokenizer.decode(asked.tolist()) == "user: the <|end|><|end|>assistant: "


def test_files_that_hold_no_such_records_are_refused_by_what_they_hold(
    tiny_tokenizer: Path, template: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    made = ChatTemplate(load(tiny_tokenizer), template)
    (tmp_path / "a.txt").write_text("the cat sat")
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    write(tmp_path / "c.jsonl", {"text": "a"})
    for name, why in (
        ("a.txt", "a text, and no record"),
        ("b.parquet", "no column 'prompt' or 'chosen'"),
        ("c.jsonl", "no 'chosen'"),
    ):
        with pytest.raises(UserError, match=f"the first is .*{name}.*: .*{why}"):
            read_rows([tmp_path / name], "pairs", made, 60, max_rejected=1.0)
        with pytest.raises(UserError, match=f"more than 1 %.*{name}.*: .*{why}") as found:
            read_rows([tmp_path / name], "pairs", made, 60, max_rejected=0.01)
        assert "--text-field" not in str(found.value)  # which train-preferences has not
