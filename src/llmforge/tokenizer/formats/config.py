"""`tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`: read and checked, and written.

As in transformers 4.51 and 5, `special_tokens_map.json` counts, and then over the configuration, only where that
has no `added_tokens_decoder`. (transformers, tokenization_utils_base.py, `_from_pretrained`)
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.errors import UserError
from llmforge.sizes import refuse_large
from llmforge.tokenizer.formats.shapes import added_token, check_id, check_text

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
FLAGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space"),
    *("clean_up_tokenization_spaces", "split_special_tokens"),
)
SIDES = ("padding_side", "truncation_side")
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# Not written again: where other files are or were, code, and what the written `tokenizer.json` says itself.
LEFT_OUT = (
    *(
        "auto_map",
        "vocab_file",
        "merges_file",
        "tokenizer_file",
        "special_tokens_map_file",
        "added_tokens_file",
    ),
    *("from_slow", "gguf_file", "init_inputs", "name_or_path", "tokenizer_object", "slow_tokenizer_class"),
    *("backend", "is_local", "local_files_only", "fix_mistral_regex", "tokenizer_scheme", "_commit_hash"),
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file `path`, or {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(refuse_large(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(
            f"{path} has lists or objects that are nested too deeply; download the file again."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); download the file again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; download the file again.")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of the tokenizer in `directory`, checked; {} where there is none.

    Named special tokens are texts or None, `added_tokens_decoder` has whole entries by id, and the tokens of
    `additional_special_tokens` and `extra_special_tokens` are checked texts.
    """
    path = directory / CONFIG
    config = read_json(path)
    if config.get("added_tokens_decoder") is None:
        config.pop("added_tokens_decoder", None)
        map_path = directory / SPECIAL_MAP
        overlay = read_json(map_path)
        _check_named(overlay, map_path)
        config = {**config, **overlay}
    _check_named(config, path)
    config["added_tokens_decoder"] = _decoder(config.get("added_tokens_decoder", {}), path)
    for flag in FLAGS:
        if not isinstance(config.get(flag), bool | None):
            raise UserError(
                f"{path}: {flag} is {config[flag]!r}, neither true nor false; correct the field, or download the file again."
            )
    for side in SIDES:
        if config.get(side) not in (None, "left", "right"):
            raise UserError(
                f"{path}: {side} is {config[side]!r}, neither 'left' nor 'right'; correct the field."
            )
    if not isinstance(config.get("model_max_length"), int | float | None):
        raise UserError(
            f"{path}: model_max_length is {config['model_max_length']!r}, not a number; correct the field."
        )
    names = config.get("model_input_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: model_input_names is {names!r}, not a list of names; correct the field.")
    if not isinstance(config.get("tokenizer_class"), str | None):
        raise UserError(
            f"{path}: tokenizer_class is {config['tokenizer_class']!r}, not a name; correct the field."
        )
    return config


def special_tokens(config: Mapping[str, Any]) -> list[str]:
    """The special tokens that a checked configuration names or lists, each once, in transformers' order."""
    listed: list[str] = []
    for name in LISTED:
        value = config.get(name) or []
        listed += list(value.values()) if isinstance(value, dict) else value
    # transformers 5 takes any other `..._token` for a special token of the model, such as `image_token`.
    own = [v for k, v in config.items() if k.endswith("_token") and k not in NAMED and isinstance(v, str)]
    return list(dict.fromkeys([t for name in NAMED if (t := config.get(name))] + listed + own))


def read_added(directory: Path) -> dict[str, int]:
    """The tokens of `added_tokens.json` with their ids."""
    path = directory / ADDED
    added = read_json(path)
    for content, i in added.items():
        check_id(i, f"[{content!r}]", path)
        check_text(content, f"[{content!r}]", path)
    return added


def token_content(value: Any) -> str | None:
    """The text of a special token, which configurations write as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def write_config(
    directory: Path, config: Mapping[str, Any], definition: Mapping[str, Any], source: Path
) -> None:
    """Writes `config`, and what lies beside it in `source`, so that transformers 4.51 and 5 read it alike.

    The class is `PreTrainedTokenizerFast`: any other rebuilds its tokenizer by rules of its own, which differ between
    versions. Special tokens are plain texts (4.51 fails on an object), their flags stand in `added_tokens_decoder`.
    """
    # A null is what a missing field is, but transformers fails on some (padding_side, model_input_names).
    written = {key: value for key, value in config.items() if key not in LEFT_OUT and value is not None}
    # A list under the name of transformers 5 breaks 4.51; an object under that name is read by both.
    if isinstance(extra := written.get("extra_special_tokens"), list):
        del written["extra_special_tokens"]
        both = [*(written.get("additional_special_tokens") or []), *extra]
        written["additional_special_tokens"] = list(dict.fromkeys(both))
    padding = definition.get("padding")
    if padding and isinstance(padding.get("pad_token"), str) and not written.get("pad_token"):
        written["pad_token"] = padding["pad_token"]  # as transformers does
    written["tokenizer_class"] = "PreTrainedTokenizerFast"
    written["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in definition["added_tokens"]
    }
    write_json(directory / CONFIG, written)
    named = {name: written[name] for name in (*NAMED, "additional_special_tokens") if written.get(name)}
    write_json(directory / SPECIAL_MAP, named)
    if (source / TEMPLATE).is_file():
        shutil.copyfile(source / TEMPLATE, directory / TEMPLATE)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, directory / TEMPLATES)


def write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError:  # a field that nobody reads may hold half a character
        text = json.dumps(value, indent=2).encode()
    path.write_bytes(text + b"\n")


def _check_named(config: dict[str, Any], path: Path) -> None:
    for name in NAMED:
        if config.get(name) is not None:
            config[name] = _content(config[name], name, path) or None
    for name in LISTED:
        value = config.get(name)
        if value is None:
            config.pop(name, None)
        elif isinstance(value, dict) and name == "extra_special_tokens":
            config[name] = {key: _content(token, f"{name}.{key}", path) for key, token in value.items()}
        elif isinstance(value, list):
            config[name] = [_content(token, f"{name}[{i}]", path) for i, token in enumerate(value)]
        else:
            raise UserError(
                f"{path}: {name} is {value!r}, not a list; correct the field, or download the file again."
            )


def _content(value: Any, field: str, path: Path) -> str:
    content = token_content(value)
    if content is None:
        raise UserError(
            f"{path}: {field} is {value!r}, neither a text nor an object with a content; correct the field, or download the "
            "file again."
        )
    check_text(content, field, path)
    return content


def _decoder(value: Any, path: Path) -> dict[int, dict[str, Any]]:
    field = "added_tokens_decoder"
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: {field} is not an object of tokens by id; correct the field, or download the file again."
        )
    decoder = {}
    for key, token in value.items():
        if not key.isdecimal() or not key.isascii():
            raise UserError(f"{path}: {field} has the key {key!r}, not an id; correct the key.")
        one = token if isinstance(token, dict) else {"content": token, "special": True}
        decoder[int(key)] = added_token({**one, "id": int(key[:12])}, f"{field}[{key}]", path)
    return decoder
