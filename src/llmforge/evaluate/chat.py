"""A conversation with a model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmforge.console import say
from llmforge.errors import UserError
from llmforge.evaluate.generation import continue_ids, end_ids
from llmforge.evaluate.models import Loaded
from llmforge.evaluate.options import SamplingOptions
from llmforge.evaluate.streaming import TextStream
from llmforge.tokenizer.chat_template import ChatTemplate
from llmforge.weights.architecture import positions


class Conversation:
    """The messages so far (`role` and `content`), and how the next one is answered."""

    def __init__(
        self, loaded: Loaded, template: ChatTemplate, sampling: SamplingOptions, system: str = ""
    ) -> None:
        self.loaded, self.template, self.sampling, self.system = loaded, template, sampling, system
        self.messages: list[dict[str, str]] = []
        self.reset()
        template.encode(
            [*self.messages, {"role": "user", "content": "a"}]
        )  # one that is broken says so at once
        own = end_ids(loaded)
        self.ends = sorted({*own, *template.end_ids()})
        if not self.ends:
            say(
                f"{loaded.tokenizer.directory.name} has no token that ends a text: answers end after --max-new-tokens "
                f"{sampling.max_new_tokens}, or with a --stop text."
            )

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, text: str, write: Callable[[str], None]) -> str:
        """The answer to `text`, written as it is made. Raises `UserError` where no tokens are left for one, which leaves the
        conversation as it was.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self.template.encode(asked)
        limit = positions(self.loaded.model.config)
        if limit and len(ids) >= limit:
            raise UserError(
                f"the conversation has {len(ids):,} tokens, and the model {limit:,} positions; /reset begins a new one."
            )
        new = min(self.sampling.max_new_tokens, limit - len(ids)) if limit else self.sampling.max_new_tokens
        turn = sum(message["role"] == "user" for message in asked) - 1
        sampling = replace(self.sampling, max_new_tokens=new, seed=self.sampling.seed + turn)
        stream = TextStream(self.loaded, ids, sampling.stop, write, self.ends)
        continue_ids(self.loaded, [ids], sampling, follow=stream.put, ends=self.ends)
        answer = stream.finish()
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def save(self, file: Path) -> None:
        """Writes the messages as one JSON object; never over a file that is there."""
        if not file.name or file.suffix not in (".json", ".jsonl"):
            raise UserError("/save needs the name of a file that ends in .json or .jsonl.")
        text = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except FileExistsError:
            raise UserError(f"/save {file}: there is a file of that name already; choose another.") from None
        except OSError as error:
            raise UserError(f"/save {file}: {error.strerror or error}.") from None
