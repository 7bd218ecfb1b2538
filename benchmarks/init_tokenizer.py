"""init-tokenizer with 20,000 pieces and all checks: at most 10 s on two cores is the aim.

    python benchmarks/init_tokenizer.py PIECES_FOR_MISTRAL.jsonl PIECES_FOR_SMOLLM2.jsonl

The pieces come from learn-pieces (tokenizer_expansion.py --work keeps some). Prints seconds of a whole process.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tools")]
from real_inputs import fetch  # noqa: E402


def main() -> None:
    """Runs the installed command once for each source."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for name, pieces in zip(("mistral", "smollm2"), sys.argv[1:], strict=True):
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, "-m", "llmforge", "init-tokenizer"]
            command += ["--source-tokenizer-dir", str(fetch(name)), "--expand-tokens-file", pieces]
            command += ["--target-tokenizer-dir", f"{work}/target"]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{name:8} {spent:5.1f} s CPU {wall:5.1f} s wall", flush=True)


if __name__ == "__main__":
    main()
