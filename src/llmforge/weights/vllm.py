"""What vLLM asks of a model directory, looked up without vLLM.

The rules are those of vLLM's registry of models (`model_executor/models/registry.py`), its loaders of weights
(`model_executor/model_loader/`), its embedding (`layers/vocab_parallel_embedding.py`) and `config/model.py`, as of 2025.
`benchmarks/gpu/vllm_check.py` asks vLLM itself.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmforge.tokenizer import Tokenizer, load
from llmforge.weights.architecture import find_vocabulary_tensors
from llmforge.weights.config import CONFIG, read_config
from llmforge.weights.files import GENERATION_CONFIG
from llmforge.weights.read import Weights, open_weights

# Of transformers' causal language models, those of vLLM's registry.
FAMILIES = """
    Afmoe Apertus Arcee Bamba Bloom Cohere Cohere2 Cwm Dbrx DeepseekV2 DeepseekV3 DeepseekV32 Dots1
    Ernie4_5 Ernie4_5_Moe Exaone4 Falcon FalconH1 FalconMamba FlexOlmo GPTBigCode GPTJ GPTNeoX Gemma
    Gemma2 Gemma3 Gemma3n Glm Glm4 Glm4Moe GptOss Granite GraniteMoe GraniteMoeHybrid GraniteMoeShared
    HunYuanDenseV1 HunYuanMoEV1 Jais2 Jamba Lfm2 Lfm2Moe Llama LongcatFlash Mamba Mamba2 MiniMax
    MiniMaxM2 Mistral Mixtral Mpt Nemotron NemotronH OPT Olmo Olmo2 Olmo3 Olmoe Persimmon Phi Phi3
    Phimoe Qwen2 Qwen2Moe Qwen3 Qwen3Moe Qwen3Next SeedOss SmolLM3 StableLm Starcoder2 Zamba2
"""
ARCHITECTURES = {*(f"{family}ForCausalLM" for family in FAMILIES.split()), "GPT2LMHeadModel"}
NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "plamo2", "glm4")
# Classes of vLLM that add the prefix of the base model where a file lacks it.
ADD_PREFIX = ("GPT2LMHeadModel", "BloomForCausalLM")


def reasons_against(directory: Path, trust_remote_code: bool = False) -> list[str]:
    """Why vLLM would not load the Hugging Face model in `directory`, or generate otherwise than the model does: a clause
    each, none where it would. Reads configurations, headers of weights and the tokenizer.
    """
    config, weights, tokenizer = read_config(directory), open_weights(directory), load(directory)
    return [
        *_architecture(config),
        *_weights(directory, config, weights, tokenizer, trust_remote_code),
        *_tokenizer(directory, tokenizer),
        *_generation(directory, config),
    ]


def _architecture(config: dict[str, Any]) -> Iterator[str]:
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        yield f"{CONFIG} names no architectures, by which vLLM finds its class"
        return
    if named[0] not in ARCHITECTURES and not _has_backend(named[0]):
        yield (
            f"vLLM has no class for {named[0]}, and transformers' own does not let vLLM compute its attention, which its "
            "Transformers backend needs"
        )
    dtype = config.get("torch_dtype") or config.get("dtype")
    if dtype == "float16" and config.get("model_type") in NOT_IN_FLOAT16:
        yield f"vLLM refuses {config['model_type']} in float16; export with --dtype bfloat16"


def _has_backend(architecture: str) -> bool:
    import transformers

    made = getattr(transformers, architecture, None)
    return bool(getattr(made, "_supports_attention_backend", False))


def _weights(
    directory: Path, config: dict[str, Any], weights: Weights, tokenizer: Tokenizer, trust: bool
) -> Iterator[str]:
    used = {tensor.path.name for tensor in weights.tensors.values()}
    indexed = (directory / "model.safetensors.index.json").is_file()
    found = {file.name for file in directory.glob("*.safetensors")}
    if any(name.startswith("consolidated") for name in found):
        yield "vLLM reads consolidated*.safetensors in Mistral's own format before the files of transformers; remove them"
    elif not indexed and found - used:
        yield f"vLLM reads every *.safetensors where there is no index, {min(found - used)} too; remove it"
    vocabulary = find_vocabulary_tensors(weights, config, trust)
    size = config.get("vocab_size")
    for role, tensor in vocabulary.by_role().items():
        if tensor.rows != size:
            yield f"vLLM asks for as many rows of the {role} as vocab_size says, {size}, and there are {tensor.rows:,}"
    if tokenizer.size > vocabulary.rows:
        yield f"the tokenizer has {tokenizer.size:,} tokens for {vocabulary.rows:,} rows, and vLLM refuses ids beyond them"
    architecture = (config.get("architectures") or [""])[0]
    if "." not in vocabulary.embedding.name.removesuffix(".weight") and architecture not in ADD_PREFIX:
        yield f"the weights lack the prefix of the base model ({vocabulary.embedding.name}), and vLLM knows them with it only"


def _tokenizer(directory: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """vLLM loads it by AutoTokenizer."""
    import transformers

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        yield "there is no tokenizer that transformers loads"
        return
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        text = "The cat sat. 中文的词语。 def f(x):\n    return x"
        ids = theirs(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # of any class, over any file
        yield f"transformers does not load the tokenizer, as vLLM does ({' '.join(str(error).split())[:200]})"
        return
    if ids != tokenizer.encode([text])[0].tolist():
        yield "transformers encodes a text with this tokenizer otherwise than llmforge does, and vLLM uses transformers"


def _generation(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    """vLLM takes its sampling and the ids that end a text from generation_config.json, which may be absent."""
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        ends = stated.get("eos_token_id")
    except (ValueError, AttributeError):
        yield f"{GENERATION_CONFIG} is not a JSON object"
        return
    for one in ends if isinstance(ends, list) else [ends]:
        if one is not None and not (isinstance(one, int) and 0 <= one < config.get("vocab_size", 0)):
            yield f"eos_token_id {one!r} of {GENERATION_CONFIG} is no id of the model"
