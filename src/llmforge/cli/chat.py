"""`llmforge chat`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmforge.cli.command import example
from llmforge.cli.generate import write_part
from llmforge.console import say, writing_results
from llmforge.errors import UserError
from llmforge.evaluate.options import ChatOptions
from llmforge.options import Debug

if TYPE_CHECKING:
    from llmforge.evaluate.chat import Conversation

CONVERSATION = 1024  # tokens before an answer that --memory-limit reserves memory for
HELP = "/reset begins anew, /save FILE writes the conversation (.json), /quit or the end of input ends."


@example('llmforge chat --model smollm2 --system "Answer in Chinese."')
def chat(options: ChatOptions, _: Debug) -> None:
    """Talk to a model, one message a line; over a pipe as well.

    /reset begins anew, /save FILE writes the conversation, /quit or the end of input ends. Ctrl-C stops an answer.
    """
    from llmforge import hub

    directory = hub.local(options.model)
    from llmforge.evaluate.chat import Conversation
    from llmforge.evaluate.models import load_model
    from llmforge.tokenizer.chat_template import ChatTemplate

    sampling = options.sampling
    tokens = CONVERSATION + sampling.max_new_tokens
    loaded = load_model(directory, sampling.dtype, options.trust_remote_code, sampling.memory, tokens)
    template = ChatTemplate(loaded.tokenizer, options.chat_template)
    conversation = Conversation(loaded, template, options.sampling, options.system)
    if sys.stdin.isatty():
        say(HELP)
    for line in _lines():
        if line.strip() in ("/quit", "/exit"):
            break
        if line.strip():
            _one(conversation, line)
    loaded.tell_memory()


def _one(conversation: "Conversation", line: str) -> None:
    """One line: a command, or a message and its answer."""
    word, _, rest = line.strip().partition(" ")
    try:
        if word == "/reset":
            conversation.reset()
        elif word == "/save":
            conversation.save(Path(rest.strip()).expanduser())
            say(f"saved: {rest.strip()}")
        elif word.startswith("/") and word[1:].isalpha():
            say(f"{word} is no command; {HELP}")
        else:
            _answer(conversation, line)
    except UserError as error:
        if not sys.stdin.isatty():
            raise
        say(f"error: {error}")


def _answer(conversation: "Conversation", line: str) -> None:
    write = write_part if sys.stdout.isatty() else _write_raw
    try:
        conversation.answer(line, write)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        write("\n")
        say("stopped: the message and its answer are forgotten.")
        return
    write("\n")


def _write_raw(text: str) -> None:
    """To a file or a pipe as it is."""
    with writing_results():
        print(text, end="", flush=True)


def _lines() -> Iterator[str]:
    """The lines of standard input; a terminal is asked for each."""
    try:
        if not sys.stdin.isatty():
            for line in sys.stdin:
                yield line.rstrip("\r\n")
            return
        import readline  # noqa: F401 - lets `input` edit lines

        while True:
            try:
                yield input("> ")
            except EOFError:
                write_part("\n")
                return
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8.") from None
