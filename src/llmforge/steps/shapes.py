"""What each step adds to its manifest, and of what shape: checked where a manifest is read, so that whoever reads one
can rely on it.

A shape is a function that says whether a value fits, a list of one shape (a list of such), an object of shapes by key
(which must all be there where the field is needed), or `Each` (an object whose values have one shape) and `Maybe` (null, too, or left out).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Shape: TypeAlias = "Callable[[Any], bool] | list[Any] | Mapping[str, Any] | Each | Maybe"
LARGEST = 1 << 62


@dataclass(frozen=True)
class Each:
    shape: Shape


@dataclass(frozen=True)
class Maybe:
    shape: Shape


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(value: Any) -> bool:
    return isinstance(value, str)


def rows(value: Any) -> bool:
    """`model.Vocabulary` as JSON."""
    return (
        isinstance(value, dict)
        and value.keys() == {"source", "size", "padded"}
        and all(map(count, value.values()))
        and value["source"] <= value["size"] <= value["padded"]
    )


def generated(value: Any) -> bool:
    """The text of one prompt, or the number of prompts of a file."""
    return isinstance(value, dict) and (text(value.get("text")) or count(value.get("prompts")))


def measured(value: Any) -> bool:
    """What evaluate gives of one label: bits per byte of texts, the accuracies of a task, figures of
    lm-evaluation-harness, or of programs.
    """
    if not isinstance(value, dict):
        return False
    if "bits_per_byte" in value:
        return number(value["bits_per_byte"]) and number(value.get("tokens_per_character"))
    if "harness" in value:
        return _misfit(value, _HARNESS, "", True) is None
    if "code" in value:
        orders = {key: part for key, part in value.items() if key.startswith("pass@")}
        return _misfit(orders, Each(_FIGURE), "", True) is None and all(
            count(value.get(name)) for name in ("problems", "samples")
        )
    subjects = value.get("subjects")
    return isinstance(subjects, dict) and all(
        isinstance(part, dict) and count(part.get("questions")) and all(map(_accuracies, part.values()))
        for part in (*subjects.values(), value.get("all"))
    )


_FIGURE = {"value": number, "stderr": Maybe(number)}
_HARNESS = {"shots": Each(count), "rows": Each(Each(_FIGURE))}


def _accuracies(value: Any) -> bool:
    """The number of questions, or an accuracy with its standard error, which one question does not have."""
    if not isinstance(value, dict):
        return count(value)
    return number(value.get("accuracy")) and (value.get("stderr") is None or number(value["stderr"]))


_COUNTED = {"documents": count, "tokens": count}
_REJECTED = {**_COUNTED, "reasons": Each(_COUNTED)}
_LEDGER = {"read": _COUNTED, "written": _COUNTED, "rejected": _REJECTED}
_ENCODER = {"backend": text, "reason": text, "documents": count, "bytes": count}
_PART = dict.fromkeys(("tokens", "valid_tokens", "bytes"), count)
_CHECKS = {
    "documents": count,
    "characters": count,
    "reachability": {
        **dict.fromkeys(("new", "unreachable", "source_unreachable", "source_lost"), count),
        "reasons": Each(text),
    },
    "parity": Maybe(dict.fromkeys(("mismatches", "inherited", "ties"), count)),
    "round_trip": {"failures": count, "inherited": count},
    "drift": dict.fromkeys(("documents", "changed", "changed_without_new_pieces"), count),
}
_READ = {"read": count, "used": count, "rejected": {"documents": count, "reasons": Each(count)}}
_COMPARED = dict.fromkeys(("documents", "changed", "tokens_before", "tokens_after"), count)
_MODEL: dict[str, Shape] = {"outputs.vocabulary": Maybe(rows), "outputs.tokenizer": Maybe(text)}
SHAPES: dict[str, dict[str, Shape]] = {
    "learn-pieces": {
        "outputs.pieces": count,
        "metrics.words": count,
        "metrics.characters": Maybe(count),
        "metrics.tokens_before": Maybe(count),
        "metrics.tokens_after": Maybe(count),
        "metrics.curve": Maybe([[count]]),
    },
    "init-tokenizer": {
        "outputs.source_size": count,
        "outputs.size": count,
        "metrics.pieces": {
            "added": count,
            "closure": count,
            "already_present": Maybe(count),  # without --pieces there is none
            "special": Maybe(count),
        },
        "metrics.gates": _CHECKS,
    },
    "prune-vocabulary": {
        **_MODEL,
        "outputs.source_size": count,
        "outputs.size": count,
        "metrics.removed": count,
        "metrics.data": _COMPARED,
        "metrics.keep_data": Maybe(_COMPARED),
        "metrics.verified": Maybe(number),
    },
    "score-data": {
        **{f"metrics.{name}": count for name in ("documents", "bytes", "rejected")},
        "metrics.mean": Each(number),
    },
    "init-model": {**_MODEL, "outputs.vocabulary": rows, "metrics.initialization": Maybe(Each(number))},
    "prepare-data": {
        "outputs.fingerprint": text,
        "outputs.tokenizer": text,
        "outputs.max_length": lambda value: count(value) and value > 0,
        "outputs.categories": [text],
        "metrics.parts": [_PART],
        "metrics.rows": count,
        "metrics.tokens": count,
        "metrics.fill": number,
        "metrics.encoder": _ENCODER,
        "metrics.ledger": {**_LEDGER, "categories": Each(_LEDGER)},
        "metrics.split": Maybe(dict.fromkeys(("conversations", "parts", "longer"), count)),
    },
    "prepare-data-shard": {"metrics.documents": count, "metrics.tokens": count, "metrics.encoder": _ENCODER},
    "train": _MODEL,
    "train-preferences": {
        **_MODEL,
        "metrics.steps": count,
        "metrics.data": _READ,
        "metrics.last": Each(number),
        "metrics.heldout": Maybe({"accuracy": number, "loss": number, "margin": number, "data": _READ}),
        "metrics.largest_kl": Maybe(number),
    },
    "train-model": _MODEL,
    "train-adapter": _MODEL,
    "export": {
        **_MODEL,
        "outputs.vocabulary": rows,
        "outputs.base": Maybe(text),
        "metrics.rows_cut": Maybe(count),  # of an adapter there are none
        "metrics.parameters": Maybe(count),
        "metrics.verified": Maybe(number),
        "metrics.vllm": Maybe([text]),
        "metrics.quantized": Maybe({"bytes": count, "bits_per_weight": number}),
    },
    "delta-make": {f"metrics.{name}": count for name in ("tensors", "grown_tensors", "whole_tensors")},
    "generate": {"metrics": generated},
    "evaluate": {"metrics": Each(Each(measured))},
}


def misfit(
    step: str, outputs: Mapping[str, Any], metrics: Mapping[str, Any], needs: Collection[str]
) -> str | None:
    """The first field of a manifest that has another shape than its `step` gives it. One that is missing counts if it is
    among `needs`: versions differ in what they record.
    """
    for name, shape in SHAPES.get(step, {}).items():
        outer, _, inner = name.partition(".")
        held: Any = {"outputs": outputs, "metrics": metrics}[outer]
        if inner and inner not in held and name not in needs:
            continue
        if found := _misfit(held.get(inner) if inner else held, shape, name, name in needs):
            return found
    return None


def _misfit(value: Any, shape: Shape, name: str, whole: bool) -> str | None:
    """The first field in `value`, the field `name`, that does not fit; missing ones count if `whole`."""
    if isinstance(shape, Maybe):
        return None if value is None else _misfit(value, shape.shape, name, whole)
    if isinstance(shape, Each):
        if not isinstance(value, dict):
            return name
        inner = [(one, shape.shape, f"{name}.{key}") for key, one in value.items()]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return name
        inner = [(one, shape[0], f"{name}[{number}]") for number, one in enumerate(value)]
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return name
        inner = [
            (value.get(key), one, f"{name}.{key}") for key, one in shape.items() if whole or key in value
        ]
    else:
        return None if shape(value) else name
    return next((found for one in inner if (found := _misfit(*one, whole))), None)
