"""Runs the fuzzers of tests/hardening again and again, each time with other random files, until the time is up.

python tools/fuzz.py --minutes 60        prints the number of rounds; ends with 1 at the first failure
"""

import argparse
import subprocess
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    end, rounds = time.monotonic() + 60 * arguments.minutes, 0
    while time.monotonic() < end:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "fuzz",
            "tests/hardening",
            f"--hypothesis-seed={rounds}",
        ]
        if subprocess.run(command).returncode:
            return 1
        rounds += 1
    print(f"{rounds} rounds without a failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
