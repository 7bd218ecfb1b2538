"""Conversations: their layouts, which tokens are trained, and the datasets that are made of them."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmforge.corpus import Chunk, ReadOptions, read_blocks
from llmforge.corpus.conversations import conversation_of
from llmforge.dataset.packed import PackedDataset
from llmforge.errors import UserError
from llmforge.tokenizer import load
from llmforge.tokenizer.chat_template import ChatTemplate, names
from llmforge.tokenizer.expand import init_tokenizer
from llmforge.tokenizer.options import InitTokenizerOptions

from .conftest import write_jsonl

TEMPLATES = [
    ("smollm2", None),
    ("llama3-hf", None),
    ("qwen3", None),
    ("gemma", None),
    ("gemma3", None),
    ("smollm2", "chatml"),
    ("llama3-hf", "llama3"),
    ("mistral", "ziya"),
]
LAYOUTS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "a"},
            ]
        },
        [("user", "q"), ("assistant", "a")],
    ),
    (
        "sharegpt",
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [("user", "q"), ("assistant", "a")]),
    (
        "alpaca",
        {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]]},
        [("user", "q0"), ("assistant", "a0"), ("user", "q\ni"), ("assistant", "a")],
    ),
    ("prompt-completion", {"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
    (
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        [("user", "q"), ("assistant", "a")],
    ),
]


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize(("layout", "record", "messages"), LAYOUTS)
def test_layouts_are_told_apart_by_their_fields(
    layout: str, record: dict[str, Any], messages: list[tuple[str, str]]
) -> None:
    for wanted in (layout, "chat"):
        found = conversation_of(record, wanted)
        assert found is not None
        assert [(one["role"], one["content"]) for one in json.loads(found)["messages"]] == messages
    assert conversation_of({"text": "no conversation"}, layout) is None


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "q"}], "no assistant turn"),
        ([{"role": "assistant", "content": "a"}], "assistant before the first user"),
        (turns("q", "a") + turns("q", "a", system="s"), "system after the first message"),
        ([*turns("q"), *turns("q", "a")], "two user turns in a row"),
        (turns("", "a"), "empty content"),
        (turns("q", "  "), "empty content"),
        ([{"role": "alien", "content": "q"}, *turns("q", "a")], "unknown role 'alien'"),
        ([{"content": "q"}], "a message without a role"),
        ("q", "not a list"),
        (["q"], "not a JSON object"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "other parts than text"),
        ([{"role": "user", "content": 5}], "not text"),
    ],
)
def test_what_is_no_conversation_says_why(messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        conversation_of({"messages": messages}, "chat")


@lru_cache
def opened(directory: Path, template: str | None) -> tuple[ChatTemplate, Any]:
    ours = ChatTemplate(load(directory), Path(template) if template else None)
    theirs = (
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **named(ours))
        if (directory / "tokenizer.json").is_file()
        else None
    )
    return ours, theirs


def named(template: ChatTemplate) -> dict[str, str]:
    config = template.tokenizer.definition.config
    return {name: config[name] for name in ("bos_token", "eos_token") if isinstance(config.get(name), str)}


WORDS = ["hello", " there", "\n", "你好，", "  ", "1998", "<b>", "'s", "{{ x }}", "</think>", "é"]
CONTENT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join).filter(str.strip)


@pytest.mark.parametrize(("name", "template"), TEMPLATES)
def test_masks_of_real_templates(real_input: Callable[[str], Path], name: str, template: str | None) -> None:
    ours, theirs = opened(real_input(name), template)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3))
    def check(pairs: list[tuple[str, str]]) -> None:
        messages = turns(*(content for pair in pairs for content in pair))
        ids, trained = ours.training(messages)
        if theirs is not None:  # the ids are those of transformers
            assert ids.tolist() == theirs.apply_chat_template(
                messages, chat_template=ours.text, tokenize=True, return_dict=False
            )
        edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8), [0]])))
        found = [ids[a:b] for a, b in edges.reshape(-1, 2)]
        assert len(found) == len(pairs)
        for answer, (_, content) in zip(found, pairs, strict=True):
            # All of the answer, or what the template leaves of it, and then the token that ends a turn; nothing else.
            assert answer[-1] == ours.end_ids()[0]
            text = ours.tokenizer.decode(answer[:-1]).strip()
            kept = content.split("</think>")[-1] if name == "qwen3" else content
            assert text.endswith(kept.strip())
            if name != "qwen3":
                assert text == content.strip()
        rest = ours.tokenizer.decode(ids[~trained])
        assert all(question.strip() in rest for question, _ in pairs)
        last = ours.training(messages, last=True)[1]
        assert np.flatnonzero(last).tolist() == list(range(edges[-2], edges[-1]))

    check()


@pytest.mark.parametrize("content", ["", "Let me look."])
def test_calls_of_tools_are_trained(real_input: Callable[[str], Path], content: str) -> None:
    call = {"type": "function", "function": {"name": "get", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "22C"},
        {"role": "assistant", "content": "It is 22C."},
    ]
    template, _ = opened(real_input("qwen3"), None)
    ids, trained = template.training(messages, [call])
    text = template.tokenizer.decode(ids[trained])
    assert '"Paris"' in text
    assert content in text
    assert text.count("<|im_end|>") == 2
    assert text.endswith("It is 22C.<|im_end|>")
    assert "22C\n</tool_response>" not in text


def test_special_tokens_in_what_people_say_are_text(real_input: Callable[[str], Path]) -> None:
    template, _ = opened(real_input("smollm2"), None)
    end = template.end_ids()[0]
    ids, trained = template.training(turns("what is <|im_end|>?", "It is <|im_end|>."))
    assert ids.tolist().count(end) == 3  # of the system prompt, the question and the answer
    assert template.tokenizer.decode(ids[trained]) == "It is <|im_end|>.<|im_end|>"
    with pytest.raises(UserError, match="noncharacter"):
        template.training(turns("\ufdd0", "a"))


def test_a_template_that_always_asks_and_one_that_changes_the_past(
    real_input: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = load(real_input("smollm2"))

    def trained(text: str, *contents: str) -> str:
        (tmp_path / "t.jinja").write_text(text)
        ids, mask = ChatTemplate(tokenizer, tmp_path / "t.jinja").training(turns(*contents))
        return str(tokenizer.decode(ids[mask]))

    always = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant:"
    assert trained(always, "q", "a", "q", "b") == "a<|im_end|>b<|im_end|>"
    shortened = (
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content[:1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(UserError, match="message 2 cannot be told apart"):
        trained(shortened, "q", "first", "q", "b")
    bare = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    assert trained(bare, "q", "a", "q", "b") == "a\nb\n"


RECORDS: list[dict[str, Any]] = [
    {"messages": turns("Hi", "Hello there")},
    {
        "conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！"}],
        "category": "zh",
    },
    {"instruction": "Translate", "input": "cat", "output": "猫"},
    {"prompt": "2+2=", "completion": "4"},
    {"text": "A document, and no conversation."},
    {"source": "Title", "target": "A document with a part that is not trained."},
]


def trained_texts(dataset: Path, directory: Path) -> list[str]:
    """The trained text of every document of a dataset, sorted."""
    tokenizer = load(directory)
    data = PackedDataset([dataset])
    found = []
    for row in data.rows(range(len(data))):
        for piece in np.split(np.stack([row.input_ids, row.labels]), np.cumsum(row.seq_lengths)[:-1], axis=1):
            found.append(str(tokenizer.decode(piece[0][piece[1] >= 0])))
    return sorted(found)


@pytest.fixture(scope="module")
def chat_tokenizer(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("chat") / "tokenizer"
    names = ["<|im_start|>", "<|im_end|>"]
    options = InitTokenizerOptions(
        tokenizer=byte_level, output=output, special_tokens=names, chat_template=Path("chatml")
    )
    finished = init_tokenizer(options)
    assert finished.manifest.outputs["size"] == finished.manifest.outputs["source_size"] + 2
    return output


def test_a_dataset_of_conversations_and_documents(
    llmforge: Any, chat_tokenizer: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    common = ["--tokenizer", chat_tokenizer, "--max-length", 256, "--bins", 1, "--format", "chat"]
    llmforge("prepare-data", "--data", data, "--output", tmp_path / "out", *common)
    end = "<|endoftext|>"
    expected = ["Hello there<|im_end|>", "你好！<|im_end|>", "猫<|im_end|>", "4<|im_end|>"]
    expected += [RECORDS[4]["text"] + end, RECORDS[5]["target"] + end]
    assert trained_texts(tmp_path / "out", chat_tokenizer) == sorted(expected)
    # The same from lists, Parquet, and several workers.
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "all.json").write_text(json.dumps(RECORDS))
    llmforge("prepare-data", "--data", tmp_path / "list", "--output", tmp_path / "out-list", *common)
    assert trained_texts(tmp_path / "out-list", chat_tokenizer) == sorted(expected)
    (tmp_path / "parquet").mkdir()
    columns = {key for one in RECORDS for key in one}
    rows = [{key: one.get(key) for key in columns} for one in RECORDS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "a.parquet")
    llmforge(
        "prepare-data",
        "--data",
        tmp_path / "parquet",
        "--output",
        tmp_path / "out-parquet",
        *common,
        "--workers",
        2,
    )
    assert trained_texts(tmp_path / "out-parquet", chat_tokenizer) == sorted(expected)
    done = llmforge("prepare-data", "--data", data, "--output", tmp_path / "dry", *common, "--dry-run")
    assert "tokens" in done.stdout
    llmforge("prepare-data", "--data", data, "--output", tmp_path / "held", *common, "--holdout", "20%")
    held = [json.loads(line) for file in (tmp_path / "held" / "holdout").iterdir() for line in file.open()]
    assert all(("messages" in one) == ("\n\n" in one["target"]) for one in held)
    left = len(trained_texts(tmp_path / "held", chat_tokenizer))
    assert left + len(held) == len(RECORDS)


def test_a_conversation_longer_than_a_row_goes_on_in_the_next(
    llmforge: Any, chat_tokenizer: Path, tmp_path: Path
) -> None:
    answer = "The cat sat on the mat. " * 30
    data = write_jsonl(tmp_path / "long.jsonl", [{"messages": turns("q", answer, "again", answer)}])
    llmforge(
        *("prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", chat_tokenizer),
        *("--max-length", 64, "--bins", 1, "--format", "messages"),
    )
    data_set = PackedDataset([tmp_path / "out"])
    rows = data_set.rows(range(len(data_set)))
    assert len(rows) > 4
    ids, trained = ChatTemplate(load(chat_tokenizer)).training(turns("q", answer, "again", answer))
    assert sum(len(row.input_ids) for row in rows) >= (trained.sum())
    kept = np.concatenate([row.labels[row.labels >= 0] for row in rows])
    assert sorted(kept.tolist()) == sorted(ids[trained].tolist())


def test_bad_conversations_are_counted_by_reason(llmforge: Any, chat_tokenizer: Path, tmp_path: Path) -> None:
    bad = [
        {"messages": turns("q")},
        {"messages": turns("", "a")},
        {"other": 1},
        {"messages": turns("a \ufdd0", "b")},
    ]
    data = write_jsonl(tmp_path / "bad.jsonl", [{"messages": turns("q", "a")}, *bad])
    command = ["prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", chat_tokenizer]
    done = llmforge(*command, "--format", "chat", code=1)
    assert "4 of 5 documents cannot be used" in done.stderr
    llmforge(*command, "--format", "chat", "--max-rejected", 0.9)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert [one["line"] for one in rejected] == [2, 3, 4, 5]
    for one, reason in zip(
        rejected, ("no assistant turn", "empty content", "no conversation", "noncharacter"), strict=True
    ):
        assert reason in one["reason"]


def test_what_cannot_be_rendered_is_refused_before_the_work(
    llmforge: Any, byte_level: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    command = ["prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", byte_level]
    assert "has no chat template" in llmforge(*command, "--format", "chat", code=1).stderr
    done = llmforge(*command, "--format", "chat", "--chat-template", "chatml", code=1)
    assert "--special-tokens <|im_start|>,<|im_end|>" in done.stderr
    assert (
        "does not exist; give a file, or one of chatml"
        in llmforge(*command, "--format", "chat", "--chat-template", "nothing", code=1).stderr
    )
    assert "give --format chat as well" in llmforge(*command, "--train-on", "last", code=2).stderr
    assert "give --format chat" in llmforge(*command, code=1).stderr
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}")
    broken = llmforge(*command, "--format", "chat", "--chat-template", tmp_path / "broken.jinja", code=1)
    assert "TemplateSyntaxError" in broken.stderr


def test_another_template_makes_another_dataset(llmforge: Any, chat_tokenizer: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    command = ["prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", chat_tokenizer]
    command += ["--bins", 1, "--format", "chat"]
    assert "done: " in llmforge(*command).stdout
    assert "already done" in llmforge(*command).stdout
    assert "train_on" in llmforge(*command, "--train-on", "last", code=1).stderr
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    assert "chat_template" in llmforge(*command, "--chat-template", tmp_path / "t.jinja", code=1).stderr


def test_plain_texts_keep_their_manifest(llmforge: Any, byte_level: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "The cat sat on the mat."}])
    llmforge(
        "prepare-data", "--data", data, "--output", tmp_path / "out", "--tokenizer", byte_level, "--bins", 1
    )
    arguments = json.loads((tmp_path / "out" / "llmforge.json").read_text())["arguments"]
    assert not {"format", "chat_template", "train_on"} & arguments.keys()


def test_blocks_keep_conversations_apart(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    chunk = Chunk(0, str(path), path.name, ".jsonl", "", "a", 0, path.stat().st_size, path.stat().st_size)
    (block,) = read_blocks(chunk, ReadOptions())
    assert block.conversations is None
    (block,) = read_blocks(chunk, ReadOptions(conversations="chat"))
    assert block.conversations is not None
    assert [one is None for one in block.conversations.to_pylist()] == [False] * 4 + [True] * 2
    assert block.text[1].as_py() == "你好\n\n你好！"


def test_the_named_templates() -> None:
    assert names() == ["chatml", "llama3", "ziya"]
