"""Chat templates: conversations to ids, and which of them are the assistant's.

Masks follow from rendering alone: an answer is what the template adds to the conversation before it, which is rendered
with the prompt for an answer. Special tokens count where the template writes them; in what messages say they are text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer
from llmforge.tokenizer.formats.config import TEMPLATE

Messages = Sequence[Mapping[str, Any]]
NAMED = Path(__file__).parent / "chat_templates"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# Characters that no text has, because Unicode keeps them for programs. The first two stand around the number of what a
# message says where its own characters may not count, the others before and behind an answer.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"
MARK = MARKS[0] + "{}" + MARKS[1]
BEGIN, END = MARKS[2], MARKS[3]
LOOKS_SPECIAL = re.compile(r"<\|[^<>|\s]{1,60}\|>|<(?:start|end)_of_turn>")


@dataclass(frozen=True)
class _Hidden:
    """Messages in which special tokens are numbered marks, and what the marks stand for."""

    messages: list[dict[str, Any]]
    spelled: list[str] = field(default_factory=list)


class ChatTemplate:
    """The template of a model directory, or in its stead that of a file or one of the `named`; `UserError` where there is
    none.
    """

    def __init__(self, tokenizer: Tokenizer, source: Path | None = None) -> None:
        self.tokenizer = tokenizer
        self.source, self.text = _given(source) if source else _own(tokenizer.directory, tokenizer)

    def render(self, messages: Messages, asks: bool = True, tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation; `asks` for the answer that comes next."""
        try:
            return str(
                self._renderer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=tools or None,
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=asks,
                )
            )
        except Exception as error:  # what jinja raises, and what a template raises by itself
            raise UserError(
                f"{self.source}: the chat template cannot render this conversation "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); give another one by --chat-template."
            ) from error

    def encode(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        """The ids of a conversation, ready for the answer."""
        hidden = self._hidden(messages)
        ids: list[int] = self._encoded(self.render(hidden.messages, tools=tools), hidden.spelled)[0].tolist()
        return ids

    def length(self, messages: Messages, tools: Sequence[Any] | None = None) -> int:
        """The number of ids of a whole conversation."""
        hidden = self._hidden(messages)
        return len(self._encoded(self.render(hidden.messages, asks=False, tools=tools), hidden.spelled)[0])

    def training(
        self, messages: Messages, tools: Sequence[Any] | None = None, last: bool = False
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """The ids (n,) of a whole conversation, and which of them are trained (n,): those of the assistant's answers, or of
        the `last` one, each with the token that ends it.

        Raises `UserError` where the template cannot render it, or renders an answer in such a way that it cannot be told
        from what comes before it.
        """
        hidden = self._hidden(messages)
        text = self.render(hidden.messages, asks=False, tools=tools)
        answers = [i for i, one in enumerate(hidden.messages) if one["role"] == "assistant"]
        spans = [self._answer(hidden.messages, i, text, tools) for i in (answers[-1:] if last else answers)]
        ids, begins, ends = self._encoded(text, hidden.spelled)
        trained = np.zeros(len(ids), np.bool_)
        for begin, end in spans:
            trained |= (begins < end) & ((ends > begin) | (begins == begin))
        return ids, trained

    def _answer(
        self, messages: Sequence[dict[str, Any]], number: int, text: str, tools: Sequence[Any] | None
    ) -> tuple[int, int]:
        """Where in `text` (of all `messages`) the answer with this number begins and ends."""
        asked = self.render(messages[:number], asks=True, tools=tools)
        answered = self.render(messages[: number + 1], asks=False, tools=tools)
        # Some templates ask for the next answer in any case.
        asks_always = answered == self.render(messages[: number + 1], asks=True, tools=tools)
        if text.startswith(answered) and answered.startswith(asked) and not asks_always:
            return len(asked), self._end(text, len(asked), len(answered))
        begin, end = self._marked(messages, number, text, tools)
        if text.startswith(asked):
            begin = len(asked)
            # Calls of tools stand behind the content. What messages spell is no special token here.
            if messages[number].get("tool_calls") and self._ender:
                found = text.find(self._ender, begin)
                end = None if found < 0 else found
        if begin is None or end is None:
            raise UserError(
                f"{self.source}: the chat template changes earlier messages when later ones follow, so message "
                f"{number + 1} cannot be told apart; give another one by --chat-template, or --train-on last."
            )
        behind = self._special.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        return begin, behind.end() if behind else end

    def _marked(
        self, messages: Sequence[dict[str, Any]], number: int, text: str, tools: Sequence[Any] | None
    ) -> tuple[int | None, int | None]:
        """Where in `text` the content of a message begins and ends, seen by marks that are put there; None where the
        template does not pass it on as it is.
        """
        content = messages[number].get("content")
        found: list[int | None] = [None, None]
        for which, (before, behind) in enumerate(((BEGIN, ""), ("", END))):
            for tried in (content, content.strip()) if isinstance(content, str) else ():
                marked = [*messages]
                marked[number] = {**messages[number], "content": before + tried + behind}
                rendered = self.render(marked, asks=False, tools=tools)
                mark = before or behind
                if rendered.count(mark) == 1 and rendered.replace(mark, "") == text:
                    found[which] = rendered.index(mark)
                    break
        return found[0], found[1]

    def _end(self, text: str, begin: int, end: int) -> int:
        """The end of an answer without the white space behind its last special token, which nobody has to predict."""
        special = [match.end() for match in self._special.finditer(text, begin, end)]
        return special[-1] if special and not text[special[-1] : end].strip() else end

    def missing_tokens(self) -> list[str]:
        """What the template writes around messages that looks like a special token, and is none of the tokenizer."""
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        found = dict.fromkeys(LOOKS_SPECIAL.findall(self.render(turn)))
        return [one for one in found if not self._special.fullmatch(one)]

    def end_ids(self) -> list[int]:
        """The special token that the template writes right behind an answer, if it does."""
        return self._encoded(self._ender, [])[0].tolist() if self._ender else []

    def require_tokens(self) -> None:
        """Raises `UserError` where the template writes what looks like a special token and is none of the tokenizer."""
        if missing := self.missing_tokens():
            raise UserError(
                f"{self.source}: the chat template writes {', '.join(missing)}, which {self.tokenizer.directory} does not have "
                f"as special tokens; add them: llmforge init-tokenizer --special-tokens {','.join(missing)}."
            )

    @cached_property
    def _ender(self) -> str:
        mark = MARK.format("")
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        behind = self.render(turn, asks=False).rpartition(mark)[2]
        found = self._special.match(behind)
        return found[0] if found else ""

    def _hidden(self, messages: Messages) -> _Hidden:
        """`messages` with special tokens that they spell as marks."""
        found = _Hidden([])

        def number(match: re.Match[str]) -> str:
            found.spelled.append(match[0])
            return MARK.format(len(found.spelled) - 1)

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                if any(mark in value for mark in MARKS):
                    raise UserError("a message has a noncharacter of Unicode, U+FDD0 to U+FDD3; remove it.")
                return self._special.sub(number, value)
            if isinstance(value, list):
                return [hide(one) for one in value]
            return {key: hide(one) for key, one in value.items()} if isinstance(value, dict) else value

        found.messages.extend(
            {key: value if key == "role" else hide(value) for key, value in one.items()} for one in messages
        )
        return found

    def _encoded(
        self, text: str, spelled: Sequence[str]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The ids of a rendered text, and where in it each token begins and ends; those of a mark all stand at its place."""
        ids: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
        spans: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
        at = 0
        for number, part in enumerate(re.split(f"{MARKS[0]}(\\d+){MARKS[1]}", text)):
            if number % 2:
                own = self.tokenizer.encode([spelled[int(part)]])[0]
                length = len(MARK.format(part))
                where = np.tile([at, at + length], (len(own), 1))
            else:
                own, where = self._with_special(part)
                where, length = where + at, len(part)
            ids.append(own)
            spans.append(where)
            at += length
        places = np.concatenate(spans)
        return np.concatenate(ids), places[:, 0], places[:, 1]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        # Others (<think>, a line break) count in any text; templates look for them in messages.
        added = self.tokenizer.definition.json["added_tokens"]
        names = sorted((token["content"] for token in added if token["special"]), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _renderer(self) -> Any:
        """transformers' renderer, which runs templates in a sandbox; it needs the names of the special tokens alone."""
        import tokenizers
        import transformers

        config = self.tokenizer.definition.config
        named = {name: config[name] for name in SPECIAL if isinstance(config.get(name), str)}
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **named
        )

    def _with_special(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Ids and (n, 2) places of `text`, in which special tokens count."""
        if not text:
            return np.zeros(0, np.int32), np.zeros((0, 2), np.int64)
        backend = self.tokenizer.backend
        backend.encode_special_tokens = False
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = True
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)


def names() -> list[str]:
    """The templates that llmforge has."""
    return sorted(file.stem for file in NAMED.glob("*.jinja"))


def _given(source: Path) -> tuple[str, str]:
    if str(source) in names() and not source.exists():
        return f"--chat-template {source}", (NAMED / f"{source}.jinja").read_text(encoding="utf-8")
    if not source.exists():
        raise UserError(
            f"--chat-template {source} does not exist; give a file, or one of {', '.join(names())}."
        )
    return _from_file(source)


def _from_file(file: Path) -> tuple[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {file} cannot be read ({type(error).__name__}).") from None
    if not text.strip():
        raise UserError(f"--chat-template {file} is empty.")
    return f"--chat-template {file}", text


def _own(directory: Path, tokenizer: Tokenizer) -> tuple[str, str]:
    file = directory / TEMPLATE
    if file.is_file():
        return str(file), file.read_text(encoding="utf-8")
    config = directory / "tokenizer_config.json"
    found: Any = None
    if config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError):
            raise UserError(f"{config} is not a JSON object; fetch it again.") from None
    if isinstance(found, list):  # several by name; the one called default is for conversations
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found.strip():
        raise UserError(
            f"{directory} has no chat template ({TEMPLATE}, or chat_template in tokenizer_config.json), as base models have none; "
            f"give one by --chat-template (a file, or {', '.join(names())}), or continue a text with llmforge generate."
        )
    return str(config), found
