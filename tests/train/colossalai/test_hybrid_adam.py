"""HybridAdam on the CPU, where offloaded weights are updated: its own kernel, compiled without CUDA."""

import importlib.util
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("colossalai")

# The kernel's source includes CUDA's headers for one name, and all of PyTorch for two.
HEADERS = {
    "cublas_v2.h": "",
    "cuda.h": "",
    "cuda_runtime_api.h": "",
    "cuda_fp16.h": "typedef _Float16 __half;",
    "torch/extension.h": "#include <ATen/core/Tensor.h>\n#include <torch/csrc/utils/pybind.h>\n"
    "namespace torch { using at::Tensor; }",
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ColossalAI's `cpu_adam` for x86, unoptimized: some seconds of compiling."""
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler, python = shutil.which("c++"), sysconfig.get_path("include")
    if platform.machine() != "x86_64" or not compiler or not Path(python, "Python.h").is_file():
        pytest.skip("needs x86-64, a C++ compiler and Python's headers")
    place = tmp_path_factory.mktemp("kernel")
    for name, text in HEADERS.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    found = importlib.util.find_spec("colossalai")
    assert found
    assert found.origin
    source = Path(found.origin).parent / "kernel/extensions/csrc/kernel/x86/cpu_adam.cpp"
    flags = [
        "-O0",
        "-w",
        "-shared",
        "-fPIC",
        "-std=c++20",
        "-march=native",
        "-DTORCH_EXTENSION_NAME=cpu_adam",
    ]
    headers = [f"-I{path}" for path in (place, *include_paths(), python)]
    libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_python", "-ltorch_cpu", "-lc10"]
    file = place / "cpu_adam.so"
    subprocess.run([compiler, *flags, *headers, str(source), "-o", str(file), *libraries], check=True)
    spec = importlib.util.spec_from_file_location("cpu_adam", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FACTORS = (1.0, 0.1, 0.5)


def trained(make: Any, factors: tuple[float, ...] = FACTORS) -> torch.Tensor:
    """Weights after a step of each factor, with the bf16 gradients that Gemini gives."""
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = make([{"params": [weight], "weight_decay": 0.1}], betas=(0.9, 0.95), eps=1e-8)
    numbers = torch.Generator().manual_seed(0)
    for factor in factors:
        master = weight.data
        weight.data = torch.randn(1000, generator=numbers).bfloat16()
        weight.grad = weight.data  # a gradient of another dtype than the weight's, as Gemini makes them
        weight.data = master
        optimizer.factor = factor
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("rank", [0, 1])
def test_that_its_kernels_do_not_build_is_said_by_one_rank(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine with a GPU and without nvcc."""
    from llmforge.backends.colossalai import compat

    compat.install()
    import colossalai.zero.gemini.gemini_optimizer  # noqa: F401 - before a GPU is pretended

    from llmforge.backends.colossalai import hybrid_adam, optimizer  # noqa: F401

    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(dist, "get_rank", lambda group=None: rank)
        weight = torch.nn.Parameter(torch.ones(2))
        made = optimizer.make_optimizer([{"params": [weight]}], (0.9, 0.95), 1e-8, dist.group.WORLD)
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()
    assert type(made) is optimizer.AdamW
    said = capsys.readouterr().err
    assert said.count("HybridAdam's kernels cannot be built") == (1 if rank == 0 else 0)
    assert rank or "nvcc missing); using PyTorch's AdamW." in said


def test_hybrid_adam_ignores_its_clipping_for_bf16_gradients_on_the_cpu(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmforge.backends.colossalai import compat

    compat.install()
    from colossalai.kernel.kernel_loader import CPUAdamLoader

    from llmforge.backends.colossalai.hybrid_adam import ScaledHybridAdam
    from llmforge.backends.colossalai.optimizer import AdamW

    monkeypatch.setattr(CPUAdamLoader, "load", lambda self: kernel)
    torch.testing.assert_close(trained(ScaledHybridAdam), trained(AdamW), rtol=0, atol=1e-6)
    monkeypatch.setattr(ScaledHybridAdam, "_widen_gradients", lambda self: None)
    undone = trained(ScaledHybridAdam)
    torch.testing.assert_close(undone, trained(AdamW, (1.0, 1.0, 1.0)), rtol=0, atol=1e-6)
    assert (undone - trained(AdamW)).abs().max() > 1e-3
