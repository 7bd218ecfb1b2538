"""New pieces from a list of words with frequencies, such as jieba's `dict.txt`, instead of from a corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge import console
from llmforge.errors import UserError
from llmforge.steps import Finished, Outcome, Step, run_step
from llmforge.tokenizer import bytelevel
from llmforge.tokenizer.continued_bpe import Learned
from llmforge.tokenizer.files import tokenizer_files
from llmforge.tokenizer.formats.sentencepiece_model import SPACE
from llmforge.tokenizer.inside import Inside
from llmforge.tokenizer.learn import write_pieces
from llmforge.tokenizer.loading import load
from llmforge.tokenizer.options import LearnPiecesOptions
from llmforge.tokenizer.words import script_pattern


def pieces_from_words(options: LearnPiecesOptions) -> Finished:
    """Writes `options.output`, a jsonl of the `num_pieces` most frequent words of `word_list` that the tokenizer lacks.

    A line is a word, its frequency (1 if there is none) and anything else, divided by spaces or tabs. The
    characters and parts that a word needs are left to the closure of init-tokenizer.
    """
    inputs = [*tokenizer_files(options.tokenizer), *options.word_list]
    step = Step(
        "learn-pieces", options.output, options.arguments(), inputs, options.overwrite, single_file=True
    )
    return run_step(step, lambda path: _build(path, options))


def _build(path: Path, options: LearnPiecesOptions) -> Outcome:
    lists, script, number = options.word_list, options.script, options.num_pieces
    tokenizer = load(options.tokenizer, options.tokenizer_scheme)
    inside = Inside(tokenizer)
    pattern = None if script is None else script_pattern(script)
    known = set(tokenizer.pieces())
    words = read_words(lists)
    wanted: dict[str, int] = {}
    for word, frequency in words.items():
        if len(word) <= options.max_piece_length and (pattern is None or pattern.fullmatch(word)):
            spelled = _spelled(inside, word)
            if spelled and spelled not in known:
                wanted[spelled] = wanted.get(spelled, 0) + frequency
    ranked = sorted(wanted.items(), key=lambda entry: (-entry[1], entry[0]))
    frequent = [entry for entry in ranked if entry[1] >= options.min_frequency]
    standing = [(piece, frequency) for piece, frequency in frequent if inside.stands(piece)]
    chosen = standing[:number]
    if not chosen:
        raise UserError(
            f"{', '.join(map(str, lists))}: every word is in the source tokenizer already or is excluded; lower --min-frequency or "
            "leave out --script."
        )
    cut = len(frequent) - len(standing)
    if len(chosen) < number:
        others = f"; {cut:,} more are split by the source's pre-tokenizer and cannot be tokens" if cut else ""
        console.warn(f"the list has only {len(chosen):,} such words, not {number:,}{others}.")
    learned = Learned([piece for piece, _ in chosen], [frequency for _, frequency in chosen])
    write_pieces(path, tokenizer, learned)
    outputs: dict[str, Any] = {"pieces": len(chosen), "tokenizer": tokenizer.fingerprint}
    return Outcome(outputs=outputs, metrics={"words": len(words), "cut_by_the_source": cut})


def read_words(lists: Sequence[Path]) -> dict[str, int]:
    """The words of `lists` with their frequencies, added up."""
    words: dict[str, int] = {}
    for file in lists:
        if not file.is_file():
            raise UserError(f"{file} is not a file; give a list of words, one per line.")
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    fields = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
                    frequency = int(fields[1]) if len(fields) > 1 else 1
                except ValueError:
                    raise UserError(
                        f"{file}, line {number}: not a word followed by a whole number; correct or remove the line."
                    ) from None
                if fields:
                    words[fields[0]] = words.get(fields[0], 0) + frequency
    return words


def _spelled(inside: Inside, word: str) -> str:
    text = inside.fold(word)
    return bytelevel.to_piece(text.encode()) if inside.byte_level else text.replace(" ", SPACE)
