"""`llmforge verify`."""

import time

from llmforge.cli.command import example
from llmforge.console import say, show, show_json
from llmforge.errors import UserError
from llmforge.options import Result
from llmforge.steps.options import VerifyOptions


@example("llmforge verify stage-1 stage-2 trained pieces.jsonl")
def verify(options: VerifyOptions, result: Result) -> None:
    """Verify the checksums of all files of outputs.

    Outputs and checkpoints below a directory are verified too. Damaged files are listed, and the exit code is 1.
    """
    from llmforge.steps import verify_output

    began = time.monotonic()
    found = [verify_output(path) for path in options.outputs]
    seconds = time.monotonic() - began
    problems = [problem for one in found for problem in one.problems]
    by_size = [path for one in found for path in one.by_size]
    unrecorded = [path for one in found for path in one.unrecorded]
    count, files, size = (
        sum(len(one.outputs) for one in found),
        sum(one.files for one in found),
        sum(one.bytes for one in found),
    )
    if result.json:
        show_json(
            {
                "outputs": count,
                "files": files,
                "bytes": size,
                "seconds": round(seconds, 3),
                "problems": problems,
                "by_size": by_size,
                "unrecorded": unrecorded,
            }
        )
    else:
        for path in by_size:
            say(
                f"note: {path}: written by a version that recorded no checksums; only file sizes were compared."
            )
        for path in unrecorded:
            say(f"note: {path} is in no manifest of llmforge and was not checked.")
        for problem in problems:
            show(problem)
        speed = size / 1e9 / max(seconds, 1e-9)
        show(f"{count:,} outputs, {files:,} files, {size / 1e9:.2f} GB ({speed:.1f} GB/s)")
    if problems:
        raise UserError(
            f"{len(problems):,} of {files:,} files are damaged or missing; run the commands that wrote them again."
            if len(problems) > 1
            else f"{problems[0]}; run the command that wrote it again."
        )
