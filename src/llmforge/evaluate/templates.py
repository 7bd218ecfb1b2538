"""Chat templates: conversations to ids as a model was trained on them."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]
FILE = "chat_template.jinja"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# Stands for what a message says where its own characters may not count: of Unicode's private use area.
MARK = "\ue000{}\ue001"


class ChatTemplate:
    """The template of a model directory, or of `file` in its stead; `UserError` where there is none."""

    def __init__(self, tokenizer: Tokenizer, file: Path | None = None) -> None:
        self.tokenizer = tokenizer
        self.source, self.text = _from_file(file) if file else _own(tokenizer.directory, tokenizer)

    def render(self, messages: Messages, asks: bool = True) -> str:
        """The text of a conversation; `asks` for the answer that comes next."""
        try:
            return str(
                self._renderer.apply_chat_template(
                    [dict(message) for message in messages],
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

    def encode(self, messages: Messages) -> list[int]:
        """The ids of a conversation, ready for the answer. Special tokens count where the template writes them; in
        what messages say they are text, as everywhere.
        """
        spelled: list[str] = []

        def hidden(found: re.Match[str]) -> str:
            spelled.append(found[0])
            return MARK.format(len(spelled) - 1)

        text = self.render(
            [{**one, "content": self._special.sub(hidden, one["content"])} for one in messages]
        )
        parts = re.split("\ue000(\\d+)\ue001", text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids += self.tokenizer.encode([spelled[int(part)]])[0].tolist()
            elif part:
                ids += self._with_special(part)
        return ids

    def end_ids(self) -> list[int]:
        """The special token that the template writes right behind an answer, if it does."""
        mark = MARK.format("")
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        behind = self.render(turn, asks=False).rpartition(mark)[2]
        found = self._special.match(behind)
        return self._with_special(found[0]) if found else []

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.definition.json["added_tokens"]
        names = sorted((token["content"] for token in added), key=len, reverse=True)
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

    def _with_special(self, text: str) -> list[int]:
        backend = self.tokenizer.backend
        backend.encode_special_tokens = False
        try:
            return list(backend.encode(text, add_special_tokens=False).ids)
        finally:
            backend.encode_special_tokens = True


def _from_file(file: Path) -> tuple[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {file} cannot be read ({type(error).__name__}).") from None
    if not text.strip():
        raise UserError(f"--chat-template {file} is empty.")
    return f"--chat-template {file}", text


def _own(directory: Path, tokenizer: Tokenizer) -> tuple[str, str]:
    file = directory / FILE
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
            f"{directory} has no chat template ({FILE}, or chat_template in tokenizer_config.json), as base models have none; "
            "give one by --chat-template FILE, or continue a text with llmforge generate."
        )
    return str(config), found
