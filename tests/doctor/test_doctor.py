"""What a machine has, what runs on it, and a package that crashes on import."""

import copy
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from llmforge.backends import colossalai, torch
from llmforge.doctor.facts import look_at
from llmforge.doctor.plugins import judge, refusal
from llmforge.doctor.report import render

GPU = {"name": "H100", "memory": 80_000_000_000, "free": 79_000_000_000, "capability": "9.0"}


@pytest.fixture(scope="session")
def seen(llmforge: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What doctor says of this machine, on which `apex` crashes and `flash-attn` raises."""
    place = tmp_path_factory.mktemp("packages")
    for name, module, code in (
        ("apex", "apex", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        ("flash-attn", "flash_attn", "raise ImportError('built for another torch')"),
    ):
        (place / module).mkdir()
        (place / module / "__init__.py").write_text(code)
        about = place / f"{module}-9.8.7.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.8.7\n")
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    found: dict[str, Any] = json.loads(llmforge("doctor", "--json", PYTHONPATH=path).stdout)
    return found


def test_doctor_says_what_is_here(seen: dict[str, Any]) -> None:
    packages = seen["packages"]
    for name in ("torch", "transformers", "sentencepiece", "gigatoken"):
        assert packages[name]["version"] == metadata.version(name)
        assert "error" not in packages[name]
    assert packages["torch"]["gloo"] is True
    assert seen["system"]["cores"] == len(os.sched_getaffinity(0))
    assert 1e8 < seen["system"]["memory"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert {"nvcc", "CUDA_HOME", "ssh"} <= seen["tools"].keys()
    assert all(seen["plugins"][name]["runs"] == "yes" for name in (b.name for b in torch.BACKENDS))


def test_a_package_that_crashes_is_reported_and_does_not_crash_doctor(seen: dict[str, Any]) -> None:
    assert seen["packages"]["apex"] == {"version": "9.8.7", "error": "crashes on import (SIGSEGV)"}
    assert seen["packages"]["flash-attn"]["error"] == "ImportError: built for another torch"


@pytest.mark.parametrize(
    ("files", "error"),
    [
        (("__init__",), "ModuleNotFoundError: No module named 'apex.normalization'"),
        (("__init__", "normalization"), "ModuleNotFoundError: No module named 'fused_layer_norm_cuda'"),
    ],
)
def test_an_apex_without_fused_norms_does_not_work(
    files: tuple[str, ...], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's package of that name, and NVIDIA's without its CUDA half."""
    (tmp_path / "apex").mkdir()
    for name in files:
        (tmp_path / "apex" / f"{name}.py").touch()
    about = tmp_path / "apex-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.1\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert look_at("apex") == {"version": "0.1", "error": error}


def test_a_plugin_that_cannot_run_here_is_exit_code_1(llmforge: Any, seen: dict[str, Any]) -> None:
    if seen["plugins"]["zero2"]["runs"] == "yes":
        pytest.skip("zero2 runs here")
    done = llmforge("doctor", "--plugin", "zero2", code=1)
    assert "error: --plugin zero2 cannot run here: " in done.stderr
    assert "zero2_cpu" in done.stdout  # the tables are shown all the same
    assert "--plugin zero9: must be one of native" in llmforge("doctor", "--plugin", "zero9", code=2).stderr


@pytest.fixture
def cluster(seen: dict[str, Any]) -> dict[str, Any]:
    """The facts of a machine on which everything runs."""
    facts = copy.deepcopy(seen)
    version = {"transformers": "4.51.3", "colossalai": "0.5.0", "flash-attn": "2.7.4", "apex": "0.1"}
    facts["packages"].update({name: {"version": number} for name, number in version.items()})
    facts["packages"]["torch"] |= {"version": "2.5.1", "cuda": "12.4", "gpus": [GPU], "nccl": "2.21.5"}
    facts["tools"] |= {"nvcc": "12.1", "CUDA_HOME": "/usr/local/cuda", "c++": "12.2.0"}
    return facts


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts["packages"].update({name: None})


def version(name: str, number: str) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts["packages"].update({name: {"version": number}})


def without_gpu(facts: dict[str, Any]) -> None:
    facts["packages"]["torch"] |= {"gpus": [], "nccl": None}


def test_everything_runs_where_everything_is(cluster: dict[str, Any]) -> None:
    verdicts = judge(cluster)
    assert {verdict.runs for verdict in verdicts.values()} == {"yes"}
    assert [verdict.notes for verdict in verdicts.values()] == [[]] * len(verdicts)
    assert "H100, 80.0 GB, 79.0 free" in render(cluster, verdicts)


@pytest.mark.parametrize(
    ("change", "plugin", "runs", "words"),
    [
        (without("colossalai"), "zero2", "no", "colossalai is not installed (pip install"),
        (without("colossalai"), "ddp", "yes", ""),
        (version("colossalai", "0.4.9"), "3d", "no", "colossalai is 0.4.9, not 0.5"),
        (version("transformers", "4.52.0"), "gemini", "no", "transformers is 4.52.0, newer than 4.51.3"),
        (version("transformers", "5.23.0"), "fsdp", "yes", ""),
        (without("torch"), "native", "no", "torch is not installed"),
        (without_gpu, "3d", "rehearsal", "no GPU"),
        (without_gpu, "ddp", "yes", "on the CPU"),
        (
            lambda f: f["tools"].update(nvcc=None),
            "gemini",
            "yes",
            "AdamW for HybridAdam, whose kernels do not build: no nvcc",
        ),
        (
            lambda f: f["tools"].update(nvcc="11.8"),
            "zero1",
            "yes",
            "nvcc is of CUDA 11.8, torch of CUDA 12.4",
        ),
        (lambda f: f["tools"].update(nvcc="11.8"), "torch_ddp", "yes", ""),
        (without("flash-attn"), "native", "yes", "PyTorch's own attention: flash-attn is not installed"),
        (without("apex"), "3d", "yes", "the model's own norms: apex is not installed"),
        (without("apex"), "ddp", "yes", ""),
        (without("flash-attn"), "zero2", "yes", "PyTorch's own attention: flash-attn is not installed"),
    ],
)
def test_a_plugin_misses_what_it_needs_and_nothing_else(
    cluster: dict[str, Any], change: Callable[[dict[str, Any]], None], plugin: str, runs: str, words: str
) -> None:
    change(cluster)
    verdict = judge(cluster)[plugin]
    assert verdict.runs == runs
    said = "; ".join(verdict.missing + verdict.notes)
    assert words in said if words else not said
    assert (refusal(plugin, verdict, rehearse=False) is None) == (runs == "yes")
    assert (refusal(plugin, verdict, rehearse=True) is None) == (runs != "no")


def test_a_rehearsal_is_named_where_a_gpu_is_missing(cluster: dict[str, Any]) -> None:
    without_gpu(cluster)
    for plugin in (b.name for b in colossalai.BACKENDS):
        sentence = refusal(plugin, judge(cluster)[plugin], rehearse=False)
        assert (
            sentence == f"--plugin {plugin} cannot run here: there is no GPU; --rehearse runs it on the CPU."
        )


@pytest.mark.stress
def test_doctor_needs_no_word(llmforge: Any) -> None:
    assert "runs here" in llmforge("doctor").stdout
