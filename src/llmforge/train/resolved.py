"""The resolved configuration of a run: shown, and written where the user wants it."""

import yaml

from llmforge.console import say
from llmforge.steps import write_report
from llmforge.steps.manifest import write_durably
from llmforge.train.options import TrainOptions
from llmforge.train.save_dir import CONFIG_FILE


def write_config(config: TrainOptions) -> None:
    """Prints `config` as YAML, and writes it to OUTPUT/config.yaml and --config-file."""
    text = yaml.safe_dump(config.to_json(), sort_keys=False, allow_unicode=True)
    say("configuration:\n" + "".join(f"  {line}\n" for line in text.splitlines()).rstrip())
    write_durably(config.output / "config.yaml", text.encode())
    if config.config_file:
        write_report(config.config_file, text, CONFIG_FILE, "--config-file")
