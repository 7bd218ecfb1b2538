"""Where the inputs of a step come from, where its recipe does not say: from the steps before it."""

from collections.abc import Mapping, Sequence

from llmforge.options import Option

# A measurement or a page is read by people; that a step makes one says nothing of what the next one works on.
FOR_PEOPLE = frozenset({"table", "text", "page"})
NO_MODELS = (["gguf"], ["adapter"])  # formats of export that llama.cpp and peft load, and no command here


class Wiring:
    """What the steps so far wrote and worked from, by kind: `source` (the model or tokenizer everything starts from),
    `pieces`, `tokenizer`, `model`, `dataset`, `training`, `delta`.
    """

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._results: dict[str, None] = {}  # what a report shows: trainings, tables, texts

    def find(self, one: Option) -> list[str]:
        """The words that option `one` has by default; empty where no step before has any."""
        if one.reads == "models":  # to compare: where it began, and where it is
            return [*dict.fromkeys(self._last[kind] for kind in ("source", "model") if kind in self._last)]
        if one.reads == "result":
            return [*self._results]
        return [self._last[one.reads]] if one.reads in self._last else []

    def add(self, declared: Sequence[Option], texts: Mapping[str, list[str]]) -> None:
        """Takes in a step by its words: what it works from, if it makes anything of it, and what it writes."""
        if "command" in texts:  # a launched training
            output = output_of(texts["command"])
            self._add_training(output)
            return
        if texts.get("method") == ["reward"]:  # a reward model is no model to go on with
            self._results[texts["output"][0]] = None
            return
        given = [(one, texts[one.name][0]) for one in declared if texts.get(one.name)]
        self._results |= {text: None for one, text in given if one.writes in ("table", "text")}
        written = [(one.writes, text) for one, text in given if one.writes and one.writes not in FOR_PEOPLE]
        if not written or texts.get("format") in NO_MODELS:
            return
        self._last.update({one.reads: text for one, text in given if one.reads and one.reads != "models"})
        for kind, text in written:
            if kind == "training":
                self._add_training(text)
            else:
                self._last[kind] = text

    def _add_training(self, output: str | None) -> None:
        if output is None:
            self._last.pop("training", None)
            self._last.pop("model", None)
        else:
            self._results[output] = None
            self._last.update(training=output, model=f"{output}/modeling")


def output_of(words: Sequence[str]) -> str | None:
    """The output directory in the command line of a training."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in ("--output", "--save-dir"):
            return value if equals else next(iter(words[number + 1 :]), None)
    return None
