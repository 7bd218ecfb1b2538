"""Conversations: the template, the history, and the session on a terminal and over a pipe."""

import json
import os
import pty
import select
import sys
import time

import pytest

from llmforge.errors import UserError
from llmforge.evaluate.chat import Conversation
from llmforge.evaluate.models import load_model
from llmforge.evaluate.options import SamplingOptions
from llmforge.tokenizer.chat_template import ChatTemplate

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_model(tiny_model)


@pytest.fixture
def template_file(tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    return tmp_path / "chat.jinja"


@pytest.fixture
def template(loaded, template_file):
    return ChatTemplate(loaded.tokenizer, template_file)


def test_special_tokens_count_where_the_template_writes_them_and_not_where_a_message_spells_them(
    loaded, template
):
    messages = [{"role": "user", "content": "what is <|end|>?"}]
    ids = template.encode(messages)
    assert ids.count(loaded.tokenizer.eos_id) == 1
    assert (
        loaded.tokenizer.decode(ids)
        == template.render(messages)
        == "user: what is <|end|>?<|end|>\nassistant: "
    )


def test_the_token_behind_an_answer_ends_it(loaded, template, tmp_path):
    assert template.end_ids() == [loaded.tokenizer.eos_id]
    (tmp_path / "bare.jinja").write_text(TEMPLATE.replace("<|end|>", ""))
    assert ChatTemplate(loaded.tokenizer, tmp_path / "bare.jinja").end_ids() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{% for m in messages %}", "the chat template cannot render this conversation"),
        ("{{ raise_exception('no system prompt here') }}", "no system prompt here"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot render this conversation"),
        (" ", "is empty"),
    ],
)
def test_a_broken_template_is_named(loaded, tmp_path, text, sentence):
    (tmp_path / "broken.jinja").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        ChatTemplate(loaded.tokenizer, tmp_path / "broken.jinja").render([{"role": "user", "content": "a"}])
    assert "broken.jinja" in str(error.value)


def test_a_model_without_a_template_says_what_to_do(loaded, tmp_path):
    with pytest.raises(UserError, match=r"has no chat template .* give one by --chat-template \(a file"):
        ChatTemplate(loaded.tokenizer)
    with pytest.raises(UserError, match="does not exist; give a file, or one of chatml"):
        ChatTemplate(loaded.tokenizer, tmp_path / "nowhere.jinja")


def test_the_template_of_a_real_model(real_input):
    from llmforge.tokenizer import load

    tokenizer = load(real_input("smollm2"))
    template = ChatTemplate(tokenizer)
    messages = [{"role": "user", "content": "Hi <|im_start|>"}]
    start = tokenizer.prefix_ids or tokenizer.pieces().index("<|im_start|>")
    assert template.encode(messages).count(start) == 3  # system, user, assistant
    assert template.end_ids() == [tokenizer.eos_id]
    assert tokenizer.decode(template.encode(messages)) == template.render(messages)


def test_the_history_is_part_of_the_next_question_until_it_is_reset(loaded, template, tmp_path):
    sampling = SamplingOptions(max_new_tokens=6, temperature=1.0)
    conversation = Conversation(loaded, template, sampling, "be kind")
    parts: list[str] = []
    first = conversation.answer("the cat", parts.append)
    assert "".join(parts) == first
    conversation.answer("the rat", parts.append)
    assert [message["role"] for message in conversation.messages] == ["system"] + ["user", "assistant"] * 2
    conversation.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == {"messages": conversation.messages}
    for name, sentence in (
        ("talk.json", "there is a file"),
        ("talk", "ends in .json"),
        ("no/a.json", "No such file"),
    ):
        with pytest.raises(UserError, match=sentence):
            conversation.save(tmp_path / name)
    before = list(conversation.messages)
    with pytest.raises(UserError, match="/reset begins a new one"):
        conversation.answer("cat " * 300, parts.append)
    assert conversation.messages == before
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "be kind"}]
    assert conversation.answer("the cat", parts.append) == first


def forked(words, master_or_pipe):
    """Runs `llmforge chat` in a child of this process, which has torch imported; never returns."""
    try:
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        sys.argv = ["llmforge", "chat", *map(str, words)]
        from llmforge.cli.main import main

        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)


def on_a_terminal(words, lines):
    """What a terminal shows, and the exit code; each line is typed once the prompt is there."""
    child, master = pty.fork()
    if child == 0:
        forked(words, master)
    shown, waiting, deadline = "", [*lines, "\x04"], time.monotonic() + 240
    while time.monotonic() < deadline:
        if select.select([master], [], [], 1)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data.decode("utf-8", "replace")
        elif waiting and shown.rstrip("\r\n").endswith("> "):
            os.write(master, (waiting.pop(0) + ("" if not waiting else "\n")).encode())
    _, status = os.waitpid(child, 0)
    return shown, os.waitstatus_to_exitcode(status)


def over_a_pipe(words, text):
    given, answer = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(given[0], 0)
        os.dup2(answer[1], 1)
        os.close(given[1])
        forked(words, None)
    os.close(given[0])
    os.close(answer[1])
    os.write(given[1], text)
    os.close(given[1])
    with open(answer[0], encoding="utf-8") as file:
        out = file.read()
    return out, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_session_on_a_terminal(tiny_model, template_file, tmp_path):
    words = [
        "--model",
        tiny_model,
        "--chat-template",
        template_file,
        "--max-new-tokens",
        5,
        "--temperature",
        1,
    ]
    saved = tmp_path / "a.json"
    shown, code = on_a_terminal(words, ["the cat", "/save " + str(saved), "/rest", "/reset", "/save x.txt"])
    assert code == 0, shown
    assert "/reset begins anew" in shown
    assert "saved: " in shown
    assert "/rest is no command" in shown
    assert "error: /save needs the name of a file" in shown
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_a_session_over_a_pipe(tiny_model, template_file):
    words = ["--model", tiny_model, "--chat-template", template_file, "--max-new-tokens", 5]
    out, code = over_a_pipe(words, b"the cat\n\n/reset\nthe cat\n/quit\nnever\n")
    assert code == 0
    assert out.endswith("\n")
    assert ">" not in out.replace("<|end|>", "")
    half = len(out) // 2
    assert out[:half] == out[half:]  # temperature 0.7, but the same seed after /reset
    assert over_a_pipe(words, b"\xff\xfe\n")[1] == 1
    assert over_a_pipe(["--model", tiny_model], b"a\n")[1] == 1
