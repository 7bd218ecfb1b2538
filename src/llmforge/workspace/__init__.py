"""Step directories: manifests, fingerprints and atomic publishing (docs/architecture.md)."""

from llmforge.workspace.fingerprint import fingerprint, fingerprint_json
from llmforge.workspace.manifest import (
    MANIFEST,
    Input,
    Manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from llmforge.workspace.step import (
    Finished,
    Outcome,
    Step,
    add_metrics,
    empty_directory,
    find_finished,
    publish,
    run_step,
)

__all__ = [
    "MANIFEST",
    "Finished",
    "Input",
    "Manifest",
    "Outcome",
    "Step",
    "add_metrics",
    "empty_directory",
    "find_finished",
    "fingerprint",
    "fingerprint_json",
    "manifest_path",
    "publish",
    "read_manifest",
    "run_step",
    "write_manifest",
]
