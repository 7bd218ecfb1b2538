"""Records that are conversations, as datasets for fine-tuning spell them, in one form: `messages` with `role` and `content`.

messages            {"messages": [{"role", "content"}]}, OpenAI's, with `tools` and `tool_calls`
sharegpt            {"conversations": [{"from", "value"}]}, with `system` beside it
alpaca              {"instruction", "input", "output"}, with `system` and `history` beside it
prompt-completion   {"prompt", "completion"}, each text or messages
pairs               {"prompt", "chosen", "rejected"}, each text or messages; or chosen and rejected with the prompt in them
prompts             {"prompt"}, text or messages

The last two are for training on preferences, and are no part of ANY. Beside the messages of the prompt, pairs have
`chosen` and `rejected`, an answer each.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    **{role: role for role in ("system", "user", "assistant", "tool")},
}
ANY = "chat"
Message = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A way to spell conversations: a record with all `fields` is one, and `messages(record)` gives its messages."""

    fields: tuple[str, ...]
    messages: Callable[[dict[str, Any]], list[Message]]
    others: tuple[str, ...] = ()


def conversation_of(record: dict[str, Any], layout: str) -> str | None:
    """The conversation in `record` as JSON, {"messages"} and perhaps {"tools"}; None where it is none of `layout` (a name of
    LAYOUTS, or ANY). A `ValueError` says what is wrong with one. Of the layouts of PREFERENCES every record must be one.
    """
    if layout in PREFERENCES:
        value = PREFERENCES[layout](record)
    else:
        wanted = LAYOUTS.values() if layout == ANY else [LAYOUTS[layout]]
        found = next(
            (one for one in wanted if all(record.get(name) is not None for name in one.fields)), None
        )
        if found is None:
            return None
        value = {"messages": found.messages(record)}
        _check(value["messages"])
    tools = record.get("tools")
    if isinstance(tools, str):
        tools = json.loads(tools)
    text = json.dumps({**value, **({"tools": tools} if tools else {})}, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a message has an unpaired surrogate") from None
    return text


def contents(conversation: str) -> str:
    """What the messages of a conversation (JSON) say, one after another: its text for everything but training."""
    return "\n\n".join(one["content"] for one in json.loads(conversation)["messages"] if one.get("content"))


def _openai(record: dict[str, Any]) -> list[Message]:
    return [_message(one) for one in _list(record, "messages")]


def _sharegpt(record: dict[str, Any]) -> list[Message]:
    return _system(record) + [_message(one) for one in _list(record, "conversations")]


def _alpaca(record: dict[str, Any]) -> list[Message]:
    messages = _system(record)
    for turn in record.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("'history' is not a list of [question, answer]")
        messages += [_said("user", turn[0], "history"), _said("assistant", turn[1], "history")]
    question = _text(record["instruction"], "instruction")
    if more := _text(record.get("input") or "", "input"):
        question = f"{question}\n{more}"
    return [*messages, _said("user", question), _said("assistant", record["output"], "output")]


def _prompt_completion(record: dict[str, Any]) -> list[Message]:
    messages = _system(record)
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = record[name]
        messages += (
            [_message(one) for one in value] if isinstance(value, list) else [_said(role, value, name)]
        )
    return messages


def _pair(record: dict[str, Any]) -> dict[str, Any]:
    """The two conversations of a pair as their common beginning and an answer each."""
    whole = [_answered(record, name) for name in ("chosen", "rejected")]
    for messages in whole:
        _check(messages)
    said = [[{**one, "content": one["content"].strip()} for one in messages] for messages in whole]
    if said[0] == said[1]:
        raise ValueError("chosen equals rejected")
    same = next((i for i, (a, b) in enumerate(zip(*whole, strict=False)) if a != b), min(map(len, whole)))
    for rest in (whole[0][same:], whole[1][same:]):
        if rest and rest[0]["role"] != "assistant":
            raise ValueError("chosen and rejected have different prompts")
        if len(rest) != 1:
            raise ValueError("chosen or rejected has not one answer behind their common beginning")
    return {"messages": whole[0][:same], "chosen": whole[0][same], "rejected": whole[1][same]}


def _answered(record: dict[str, Any], name: str) -> list[Message]:
    """The conversation that ends with the answer in the field `name`."""
    value, prompt = record.get(name), record.get("prompt")
    if value is None:
        raise ValueError(f"no '{name}'")
    if not isinstance(value, list):
        if prompt is None:
            raise ValueError(f"'{name}' is text, and there is no 'prompt'")
        return [*_asked(record), _said("assistant", value, name)]
    messages = [_message(one) for one in value]
    if messages and messages[0]["role"] == "assistant":
        return [*(_asked(record) if prompt is not None else []), *messages]
    if prompt is not None:  # which many datasets repeat in the conversations
        asked = _asked(record)
        if messages[: len(asked)] != asked:
            without = asked[1:] if asked[0]["role"] == "system" else asked
            if messages[: len(without)] != without:
                raise ValueError(f"'{name}' does not begin with 'prompt'")
            return [*asked, *messages[len(without) :]]
        return messages
    return [*_system(record), *messages]


def _prompt(record: dict[str, Any]) -> dict[str, Any]:
    if record.get("prompt") is None:
        raise ValueError("no 'prompt'")
    messages = _asked(record)
    _check([*messages, _said("assistant", "-")])
    return {"messages": messages}


def _asked(record: dict[str, Any]) -> list[Message]:
    value = record["prompt"]
    said = [_message(one) for one in value] if isinstance(value, list) else [_said("user", value, "prompt")]
    return [*_system(record), *said]


# Told apart in this order.
LAYOUTS = {
    "messages": Layout(("messages",), _openai, ("tools",)),
    "sharegpt": Layout(("conversations",), _sharegpt, ("system", "tools")),
    "alpaca": Layout(("instruction", "output"), _alpaca, ("input", "system", "history")),
    "prompt-completion": Layout(("prompt", "completion"), _prompt_completion, ("system", "tools")),
}
PREFERENCES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"pairs": _pair, "prompts": _prompt}


def fields_of(layout: str) -> tuple[str, ...]:
    """Every field that a record of `layout` may have."""
    if layout in PREFERENCES:
        return ("prompt", "chosen", "rejected", "system", "tools")
    wanted = LAYOUTS.values() if layout == ANY else [LAYOUTS[layout]]
    return tuple(dict.fromkeys(name for one in wanted for name in (*one.fields, *one.others)))


def _list(record: dict[str, Any], name: str) -> Sequence[Any]:
    value = record[name]
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is not a list of messages")
    return value


def _system(record: dict[str, Any]) -> list[Message]:
    system = record.get("system")
    return [_said("system", system, "system")] if system else []


def _said(role: str, value: Any, name: str = "content") -> Message:
    return {"role": role, "content": _text(value, name)}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is not text")
    return value


def _message(value: Any) -> Message:
    """One message, spelled with role and content or with from and value."""
    if not isinstance(value, dict):
        raise ValueError("a message is not a JSON object")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise ValueError(f"unknown role {str(role)[:40]!r}" if role else "a message without a role")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):  # parts, of which only text can be trained
        if not all(isinstance(part, dict) and part.get("type", "text") == "text" for part in content):
            raise ValueError("a message has other parts than text")
        content = "".join(_text(part.get("text"), "text") for part in content)
    calls = value.get("tool_calls")
    if not content and not calls:
        raise ValueError("empty content")
    message = {"role": ROLES[role.lower()], "content": _text(content or "", "content")}
    more = {key: value[key] for key in ("name", "tool_call_id") if value.get(key)}
    return {**message, **more, **({"tool_calls": calls} if calls else {})}


def _check(messages: Sequence[Message]) -> None:
    """Refuses what is no conversation to learn from."""
    if not all(one["content"].strip() or one.get("tool_calls") for one in messages):
        raise ValueError("empty content")
    roles = [one["role"] for one in messages]
    if "assistant" not in roles:
        raise ValueError("no assistant turn")
    if "system" in roles[1:]:
        raise ValueError("roles out of order (system after the first message)")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[0] != "user":
        raise ValueError(f"roles out of order ({turns[0]} before the first user)")
    for before, after in pairwise(turns):
        if before == after and before != "tool":
            raise ValueError(f"roles out of order (two {after} turns in a row)")
