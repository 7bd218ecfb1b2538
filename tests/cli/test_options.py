"""One declaration per option: flags in every spelling, values of the same type from words and YAML, manifests that stay."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmforge.cli.app import COMMANDS as TOP
from llmforge.cli.app import load_command
from llmforge.cli.arguments import canonical
from llmforge.cli.command import read_words
from llmforge.cli.compat import SPELLINGS, spellings_of
from llmforge.corpus.options import ReadOptions
from llmforge.dataset.options import PrepareOptions
from llmforge.embedding.options import ResizeOptions
from llmforge.errors import UsageError
from llmforge.evaluate.options import ProtocolOptions, SamplingOptions
from llmforge.options import convert, make, options_of
from llmforge.recipes.commands import COMMANDS
from llmforge.train.options import TrainOptions

OLD = json.loads((Path(__file__).parent / "version_0_1.json").read_text())
# The arguments of Colossal-LLaMA's scripts that set something which llmforge has, by script.
COLOSSAL_LLAMA = {
    "init-tokenizer": "source_tokenizer_dir target_tokenizer_dir expand_tokens_file",
    "init-model": "source_model_and_tokenizer_path target_tokenizer_path target_model_path",
    "prepare-data": "data_input_dirs tokenizer_dir data_output_dirs data_cache_dir data_jsonl_output_dir "
    "data_arrow_output_dir max_length num_spliced_dataset_bins",
    "train": "pretrained dataset plugin load_checkpoint save_interval save_dir tensorboard_dir config_file num_epochs "
    "accumulation_steps batch_size micro_batch_size lr max_length mixed_precision grad_clip weight_decay warmup_steps "
    "use_grad_checkpoint use_flash_attn use_neft freeze_non_embeds_params pad_token padding_mode tp pp sp sp_mode "
    "zero_stage zero microbatch_size skip_save_each_epoch",
}


def leaf(name: str):
    command = load_command(name.split()[0])
    return command.commands[name.split()[1]] if " " in name else command


@pytest.mark.parametrize("name", OLD["flags"])
def test_every_spelling_of_version_0_1_is_accepted(name):
    declared = COMMANDS[name].all_options()
    keys = {one.key for one in declared} | set(spellings_of(name))
    for flag in OLD["flags"][name].split():
        if not flag.startswith("-"):
            assert flag in keys  # an argument: a key of recipes
            continue
        one = next(o for o in declared if o.key == spelled(name, flag))
        words = [flag] if one.is_switch else [flag, "x"]
        parsed = canonical(words, declared, spellings_of(name))
        assert parsed[0] in (one.flag, f"--no-{one.key}")
        assert parsed[1:] == words[1:]


def spelled(name: str, flag: str) -> str:
    key = flag.lstrip("-").replace("_", "-")
    for one in (key, key.removeprefix("no-")):
        if (found := spellings_of(name).get(one, one)) in {o.key for o in COMMANDS[name].all_options()}:
            return found
    raise AssertionError(f"{name} does not know {flag}")


@pytest.mark.parametrize("name", COLOSSAL_LLAMA)
def test_every_argument_of_colossal_llama_is_accepted(name):
    for argument in COLOSSAL_LLAMA[name].split():
        assert canonical([f"--{argument}", "x"], COMMANDS[name].all_options(), spellings_of(name))[0] == (
            f"--{spelled(name, '--' + argument)}"
        )


@pytest.mark.parametrize(
    "flag", ["--enable_sequence_parallelism", "--zero_cpu_offload", "--benchmark", "--num_samples"]
)
def test_what_colossal_llama_alone_has_is_refused_with_what_stands_in_its_place(llmforge, flag):
    refused = llmforge("train", "--model", "m", flag, code=2)
    assert refused.stderr.startswith(f"error: {flag.replace('_', '-')} is Colossal-LLaMA's: ")


def test_other_spellings_are_hidden_and_lead_to_an_option_that_has_another_name():
    for name, table in SPELLINGS.items():
        keys = {one.key for one in COMMANDS[name].all_options()}
        assert set(table.values()) <= keys
        assert not keys & set(table)
        text = " ".join(leaf(name).get_help(leaf(name).make_context("x", [], resilient_parsing=True)).split())
        for spelling in table:
            if len(spelling) > 1:
                assert not re.search(rf"--{spelling}(?![\w-])", text), spelling


@pytest.mark.parametrize("name", COMMANDS)
def test_no_two_flags_differ_by_dashes_alone(name):
    bare = [one.key.replace("-", "") for one in COMMANDS[name].all_options()]
    assert len(set(bare)) == len(bare)


def test_the_same_thing_has_the_same_name_everywhere():
    names = {name: {one.key for one in command.all_options()} for name, command in COMMANDS.items()}
    makes = ("learn-pieces", "init-tokenizer", "init-model", "prepare-data", "train", "export", "evaluate")
    assert all("output" in names[name] for name in makes)
    assert all(
        "data" in names[name] for name in ("learn-pieces", "prepare-data", "train", "plan", "evaluate")
    )
    assert all("model" in names[name] for name in ("init-model", "train", "plan", "evaluate", "generate"))
    uses_tokenizer = (
        "learn-pieces",
        "init-tokenizer",
        "init-model",
        "prepare-data",
        "inspect-data",
        "compare-tokenizers",
    )
    assert all("tokenizer" in names[name] for name in uses_tokenizer)


def test_words_without_a_flag_are_those_of_the_option_that_takes_them():
    def words(name, *given):
        return canonical(given, COMMANDS[name].all_options(), spellings_of(name))

    same = ["--tokenizer", "a", "--tokenizer", "b", "--data", "x"]
    assert words("compare-tokenizers", "a", "b", "--data", "x") == same
    assert words("compare-tokenizers", "--tokenizer", "a", "b", "--data", "x") == same
    assert words("compare-tokenizers", "a", "--tokenizer", "b", "--corpus", "x") == same
    assert words("compare-tokenizers", "a", "--", "-b") == ["--tokenizer", "a", "--tokenizer=-b"]
    assert words("inspect-data", "d", "--html", "p") == ["--data", "d", "--output", "p"]
    assert words("train", "stray") == ["stray"]
    assert words("launch", "--", "llmforge", "train") == ["--", "llmforge", "train"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_switch_has_its_no(name):
    for one in COMMANDS[name].all_options():
        if one.is_switch:
            assert leaf(name).make_context("x", [f"--no-{one.key}"]).params[one.name] is False
            assert leaf(name).make_context("x", [one.flag]).params[one.name] is True


def test_manifests_have_the_arguments_of_version_0_1():
    """Else a finished output would be another's: the names of options may change, those in manifests may not."""
    train = TrainOptions(
        model=Path("m"),
        data=[Path("d")],
        output=Path("s"),
        learning_rate=1e-3,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )
    data = PrepareOptions(
        [Path("a.jsonl")],
        Path("t"),
        Path("o"),
        bins=4,
        packing="greedy",
        mix={"zh": 0.9, "en": 0.1},
        quality="gopher",
    )
    prepared = {
        **data.arguments(),
        "tokenizer": "xxh3:0",
        "flat": data.flat,
        "blocklist": "",
        "decontaminate": "",
    }
    ours = {
        "train": train.arguments(),
        "prepare-data": prepared,
        "reading": ReadOptions().arguments(),
        "init-model": ResizeOptions().arguments(),
        "evaluate": ProtocolOptions().arguments(),
        "generate": SamplingOptions().arguments(),
    }
    assert ours["train"].pop("mix") is None  # as if it were not there
    assert ours == OLD["arguments"]


def test_words_and_yaml_values_mean_the_same():
    for one in options_of(TrainOptions):
        if one.is_switch or one.choices or one.default in (None, "") or one.required or one.is_list:
            continue
        assert convert(one, str(one.default), one.flag) == convert(one, one.default, one.key) == one.default


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_is_converted_or_refused(value):
    for name in ("train", "prepare-data", "export"):
        for one in COMMANDS[name].all_options():
            with contextlib.suppress(UsageError):
                made = convert(one, value, one.flag)
                assert one.parse or one.is_list or one.choices or isinstance(made, one.kind)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-steps", "many"], "--max-steps is 'many', but must be a whole number."),
        (["--max-steps", "0"], "--max-steps 0: must be at least 1."),
        (["--beta1", "1.5"], "--beta1 1.5: must be between 0 and 1."),
        (["--learning-rate", "nan"], "--learning-rate nan: must be a finite number."),
        (
            ["--schedule", "steep", "--model", "m", "--data", "d", "--output", "o"],
            "--schedule steep: must be one of cosine, linear, constant, wsd.",
        ),
        (
            ["--lr", "1", "--learning-rate", "2"],
            "--learning-rate and --lr are the same flag; give one of them.",
        ),
        ([], "--model and --data and --output are missing."),
    ],
)
def test_a_wrong_value_names_its_flag(llmforge, words, sentence):
    given_words = words or ["--seed", "1"]
    assert llmforge("train", *given_words, code=2).stderr == f"error: {sentence}\n"


def test_short_flags_may_have_their_value_attached(tmp_path):
    words = canonical(["-w0.5", "-s", "3", "-s=3"][:3], COMMANDS["train"].all_options(), SPELLINGS["train"])
    assert words == ["--weight-decay=0.5", "--warmup-steps", "3"]


def test_a_yaml_file_and_the_command_line_meet_in_one_object(tmp_path):
    (tmp_path / "t.yaml").write_text("save_dir: s\npretrained: m\nlr: 3e-5\nholdout: [h, i]\nno: 1\n")
    words = {one.name: None for one in COMMANDS["train"].all_options()}
    given_words = {**words, "config": str(tmp_path / "t.yaml"), "data": ["d,e"], "learning_rate": "1"}
    with pytest.raises(UsageError, match="train has no option"):
        read_words("train", given_words)
    (tmp_path / "t.yaml").write_text("save_dir: s\npretrained: m\nlr: 3e-5\nholdout: [h, i]\n")
    options, besides = read_words("train", given_words)
    assert (options.model, options.output, options.learning_rate) == (Path("m"), Path("s"), 1.0)
    assert options.data == [Path("d"), Path("e")]
    assert options.eval_data == [Path("h"), Path("i")]
    assert besides.config == tmp_path / "t.yaml"


def test_a_missing_option_is_named():
    with pytest.raises(UsageError, match="--base and --model and --output are missing"):
        make(COMMANDS["delta make"].classes()[0], {})


def test_the_reference_page_is_up_to_date():
    import reference

    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python tools/reference.py"


@pytest.mark.parametrize("name", TOP)
def test_the_example_of_every_command_can_be_pasted(name):
    """Its words are options of the command, with values of their types."""
    for leaf_name in COMMANDS:
        if leaf_name.split()[0] != name:
            continue
        lines = leaf(leaf_name).example.replace("\\\n", " ")
        words = shlex.split(lines)[1 + len(leaf_name.split()) :]
        context = leaf(leaf_name).make_context("x", words)
        options, _ = read_words(leaf_name, context.params)
        assert options
