"""The words of a command line as users write them, brought to the one spelling that is parsed."""

from collections.abc import Iterable, Mapping, Sequence

from llmforge.errors import UsageError
from llmforge.options import Option


def dashed(word: str) -> str:
    """`--a_b=c_d` as `--a-b=c_d`; anything but a long option as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def canonical(
    words: Sequence[str], options: Iterable[Option], spellings: Mapping[str, str] | None = None
) -> list[str]:
    """`words` with each flag under its own name, and given again before every further word of its list.

    `--data a b c` means `--data a --data b --data c`: such an option takes every word up to the next option, as
    Colossal-LLaMA's scripts pass their bash arrays. A word that is the value of an option stays as it is, and one that
    belongs to no flag gets that of the option which takes `bare` words. Raises
    `UsageError` where an option is given in two spellings, or where a flag stands in the place of a value.
    """
    options = tuple(options)
    flags = _flags(options, spellings or {})
    bare = next((one.flag for one in options if one.bare), None)
    result: list[str] = []
    given: dict[str, dict[str, None]] = {}
    taking: str | None = None  # the list that the next words belong to
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if word == "--":
            left = waiting[::-1]
            return [*result, *(f"{bare}={one}" for one in left)] if bare else [*result, word, *left]
        if not (word.startswith("-") and len(word) > 1):
            owner = taking or bare
            result += [owner, word] if owner else [word]
            continue
        name, value = _parts(word)
        known = flags.get(name)
        taking = None
        if known is None:
            result.append(dashed(word))
            continue
        flag, one = known
        spelled = given.setdefault(flag, {})
        spelled[name] = None
        if len(spelled) > 1:
            names = sorted(spelled, key=lambda spelling: spelling != flag)
            raise UsageError(f"{' and '.join(names)} are the same flag; give one of them.")
        if one.is_switch or value is not None:
            result.append(flag if value is None else f"{flag}={value}")
        elif not waiting or _parts(waiting[-1])[0] in flags or waiting[-1] == "--":
            raise UsageError(f"{name} needs a value; a value that begins with a dash is written {name}=-1.")
        elif one.is_list:
            taking = flag
        else:
            result += [flag, waiting.pop()]
    return result


def _flags(options: Iterable[Option], spellings: Mapping[str, str]) -> dict[str, tuple[str, Option]]:
    """Every flag in every spelling, with the one that is parsed."""
    found: dict[str, tuple[str, Option]] = {}
    by_key = {one.key: one for one in options if not one.positional}
    for key, one in by_key.items():
        found[one.flag] = (one.flag, one)
        if one.is_switch:
            found[f"--no-{key}"] = (f"--no-{key}", one)
    for spelling, key in spellings.items():
        if key in by_key:
            one = by_key[key]
            found[f"-{spelling}" if len(spelling) == 1 else f"--{spelling}"] = (one.flag, one)
            if one.is_switch:
                found[f"--no-{spelling}"] = (f"--no-{key}", one)
    return found


def _parts(word: str) -> tuple[str, str | None]:
    """`--a_b=c` as `--a-b` and `c`, `-w0.1` as `-w` and `0.1`; None where no value is attached."""
    if not word.startswith("--"):
        return word[:2], word[2:].removeprefix("=") or None
    name, equals, value = dashed(word).partition("=")
    return name, value if equals else None
