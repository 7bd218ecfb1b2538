"""YAML files that users write: recipes, and the flags of `train --config`."""

from pathlib import Path
from typing import Any

from llmforge.errors import UserError

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000


def read_yaml(path: Path, flag: str = "") -> dict[str, Any]:
    """The mapping in the YAML file `path`; empty where the file is. `flag` is the one that named it, for messages.

    Raises `UserError` for everything else that a file may hold: other text, a key given twice, aliases (`*name`)
    that multiply without end.
    """
    import yaml

    what = f"{flag} {path}".strip()
    kind = "a YAML file of options" if flag else "the recipe's YAML file"

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which YAML keeps the last."""

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)  # `<<: *name`
            if len(node.value) > MOST_VALUES:
                raise yaml.constructor.ConstructorError(None, None, "merges without end", node.start_mark)

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.composer.ComposerError(None, None, "a key must be a word", key.start_mark)
                if key.value in seen:
                    problem = f"the key {key.value} is given twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return node

    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"{what} {problem}; give {kind}.")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{what} has more than {MOST_BYTES >> 20} MB; give {kind}.")
    try:
        value = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what} is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UserError(f"{what} is nested too deeply.") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{what} must contain `key: value` lines.")
    if not _is_small(value):
        raise UserError(f"{what} has more than {MOST_VALUES:,} values; give {kind}.")
    return value


def _is_small(value: Any) -> bool:
    """Whether `value` has at most MOST_VALUES parts, those that aliases repeat counted each time."""
    waiting, seen = [value], 0
    while waiting and seen <= MOST_VALUES:
        one = waiting.pop()
        seen += 1
        inner = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
        waiting.extend(inner)
    return seen <= MOST_VALUES
