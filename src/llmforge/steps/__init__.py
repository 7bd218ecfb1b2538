"""Step directories: manifests, fingerprints and atomic publishing (docs/architecture.md)."""

from llmforge.steps.fingerprint import fingerprint, fingerprint_json
from llmforge.steps.manifest import (
    MANIFEST,
    Input,
    Manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from llmforge.steps.places import (
    check_apart,
    empty_directory,
    free_bytes,
    publish,
    refuse_link,
    remove_tree,
)
from llmforge.steps.reports import check_report, write_report
from llmforge.steps.step import (
    Finished,
    Outcome,
    Step,
    add_metrics,
    find_finished,
    read_inputs,
    record_files,
    run_step,
)
from llmforge.steps.verify import Verified, require_whole, unrecorded_entries, verify_output

__all__ = [
    "MANIFEST",
    "Finished",
    "Input",
    "Manifest",
    "Outcome",
    "Step",
    "Verified",
    "add_metrics",
    "check_apart",
    "check_report",
    "empty_directory",
    "find_finished",
    "fingerprint",
    "fingerprint_json",
    "free_bytes",
    "manifest_path",
    "publish",
    "read_inputs",
    "read_manifest",
    "record_files",
    "refuse_link",
    "remove_tree",
    "require_whole",
    "run_step",
    "unrecorded_entries",
    "verify_output",
    "write_manifest",
    "write_report",
]
