"""RMS norms by apex: used where they compute what the model's own compute, and gone on without everywhere else.

apex needs a GPU; `apex_stand_in` has its place where a kernel has to run.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmforge.backends.colossalai import norms

from . import apex_stand_in

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4}
needs_colossalai = pytest.mark.skipif(not find_spec("colossalai"), reason="ColossalAI is not here")


def norm(dtype: torch.dtype = torch.bfloat16, size: int = 48) -> Any:
    return LlamaRMSNorm(size, 1e-6).to(dtype)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels may run on the CPU, and what is found of apex is forgotten afterwards."""
    monkeypatch.setattr(norms, "DEVICE", "cpu")
    forget = norms.load_kernel.cache_clear
    forget()
    before = take_apex()
    yield
    take_apex()
    sys.modules.update(before)
    forget()


def take_apex() -> dict[str, Any]:
    """What Python has imported as apex, or was told is not there, which it forgets."""
    names = [name for name in sys.modules if name.partition(".")[0] == "apex"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`kernel(function)` has the place of apex's."""

    def put(function: Any) -> None:
        monkeypatch.setattr(norms, "load_kernel", lambda: (function, ""))

    return put


PACKAGES = {
    "the package of that name on PyPI": ({"__init__.py": ""}, "No module named 'apex.normalization'"),
    "a crash": (
        {"__init__.py": "raise RuntimeError('built for\\n another torch')"},
        "built for another torch",
    ),
    "a build without its kernels": (
        {
            "__init__.py": "",
            "normalization/__init__.py": "",
            "normalization/fused_layer_norm.py": "def fused_rms_norm_affine(*_):\n    import fused_layer_norm_cuda",
        },
        "No module named 'fused_layer_norm_cuda'",
    ),
    "one without RMS norms": (
        {"__init__.py": "", "normalization/__init__.py": "", "normalization/fused_layer_norm.py": ""},
        "fused_rms_norm_affine",
    ),
}


def write_package(place: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (place / "apex" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "apex" / name).write_text(text)
    return place


@pytest.mark.skipif(bool(find_spec("apex")), reason="apex is here")
def test_no_apex_is_a_reason() -> None:
    assert norms.find_problem([norm()], CPU) == "No module named 'apex'"


@pytest.mark.parametrize("name", PACKAGES)
def test_an_apex_that_does_not_work_is_a_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, words = PACKAGES[name]
    monkeypatch.syspath_prepend(str(write_package(tmp_path, files)))
    assert words in str(norms.find_problem([norm()], CPU))


def test_an_apex_that_works_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(apex_stand_in.__file__).read_text()
    files = {"__init__.py": "", "normalization/__init__.py": "", "normalization/fused_layer_norm.py": text}
    monkeypatch.syspath_prepend(str(write_package(tmp_path, files)))
    assert norms.find_problem([norm()], CPU) is None


def test_without_a_gpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    monkeypatch.setattr(norms, "DEVICE", "cuda")
    kernel(apex_stand_in.fused_rms_norm_affine)
    assert norms.find_problem([norm()], CPU) == "they need a GPU"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [16, 4096])
def test_a_kernel_that_agrees_is_taken(dtype: torch.dtype, size: int, kernel: Any) -> None:
    kernel(apex_stand_in.fused_rms_norm_affine)
    assert norms.find_problem([norm(dtype, size)], CPU) is None


class Wrong:
    """The stand-in with one mistake."""

    @staticmethod
    def epsilon(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        return apex_stand_in.fused_rms_norm_affine(x, weight, shape, 0.0)

    @staticmethod
    def weight(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        return apex_stand_in.fused_rms_norm_affine(x, 1 + weight, shape, epsilon)

    @staticmethod
    def gradient_of_input(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        inverse = torch.rsqrt(x.detach().float().square().mean(-1, keepdim=True) + epsilon)
        return (x * inverse * weight).to(x.dtype)

    @staticmethod
    def gradient_of_weight(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        output = apex_stand_in.fused_rms_norm_affine(x, weight, shape, epsilon)
        return output + (weight - weight.detach())

    @staticmethod
    def dtype(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        return apex_stand_in.fused_rms_norm_affine(x, weight, shape, epsilon).double()

    @staticmethod
    def a_row(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        output = apex_stand_in.fused_rms_norm_affine(x, weight, shape, epsilon)
        return torch.cat([output[:1], output[1:] * float("nan")])

    @staticmethod
    def call(x: Any, weight: Any, shape: Any, epsilon: float) -> Any:
        raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mistake", [name for name in vars(Wrong) if not name.startswith("_")])
def test_a_kernel_that_computes_something_else_is_refused(
    mistake: str, dtype: torch.dtype, kernel: Any
) -> None:
    kernel(getattr(Wrong, mistake))
    problem = norms.find_problem([norm(dtype)], CPU)
    assert problem == (
        "no kernel image is available" if mistake == "call" else "it computes other numbers than LlamaRMSNorm"
    )


class OnePlus(LlamaRMSNorm):  # type: ignore[misc]
    """Gemma's mathematics under LLaMA's names."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return super().forward(hidden_states) * ((1 + self.weight) / self.weight)


class Gated(LlamaRMSNorm):  # type: ignore[misc]
    def forward(self, hidden_states: torch.Tensor, gate: Any = None) -> Any:
        return super().forward(hidden_states)


def test_norms_of_other_mathematics_are_left_alone(kernel: Any) -> None:
    kernel(apex_stand_in.fused_rms_norm_affine)
    assert norms.find_problem([OnePlus(16)], CPU) == "it computes other numbers than OnePlus"
    assert norms.rms_norms(torch.nn.ModuleList([Gated(16), torch.nn.LayerNorm(16)])) == []
    gemma = GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8))
    assert norms.rms_norms(gemma) == []


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A group of this process alone."""
    place = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield None
    torch.distributed.destroy_process_group()


def test_a_fused_model_keeps_its_parameters_and_computes_the_same(kernel: Any, group: Any) -> None:
    kernel(apex_stand_in.fused_rms_norm_affine)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    ids = torch.randint(0, 64, (2, 8))

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    before, ids_before, (loss, gradients) = (
        dict(model.named_parameters()),
        [*map(id, model.parameters())],
        run(),
    )
    assert norms.fuse_norms(model, CPU, group, tell=True)
    seen = apex_stand_in.calls
    found, found_gradients = run()
    assert apex_stand_in.calls == seen + 5
    assert [*map(id, model.parameters())] == ids_before
    assert dict(model.named_parameters()).keys() == before.keys()
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(found_gradients, gradients)


def test_under_autocast_float32_weights_stay_float32(kernel: Any, group: Any) -> None:
    """What comes in may be lowered, or float32: apex would lower the weights in both."""
    kernel(apex_stand_in.fused_rms_norm_affine)
    fused, plain = norm(torch.float32), norm(torch.float32)
    assert norms.fuse_norms(torch.nn.ModuleList([fused]), CPU, group, tell=True)
    hidden = torch.randn(2, 3, 48)
    assert torch.equal(fused(hidden.bfloat16()), plain(hidden.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(hidden), plain(hidden))


def test_why_not_is_said_once_and_only_where_it_is_asked_for(
    kernel: Any, group: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel(Wrong.epsilon)
    model = torch.nn.ModuleList([norm(), norm()])
    assert not norms.fuse_norms(model, CPU, group, tell=True)
    line = "apex's fused norms are not available (it computes other numbers than LlamaRMSNorm); "
    assert capsys.readouterr().err == f"{line}using the model's own norms.\n"
    assert not norms.fuse_norms(model, CPU, group, tell=False)
    assert not norms.fuse_norms(torch.nn.ModuleList(), CPU, group, tell=True)
    assert not capsys.readouterr().err
    assert all("forward" not in vars(module) for module in model)


@needs_colossalai
@pytest.mark.parametrize("name", ["the package of that name on PyPI", "a crash"])
def test_colossalai_is_imported_beside_an_apex_that_does_not_work(
    name: str, run_program: Any, tmp_path: Path
) -> None:
    """0.5.0 passes over an apex that is missing, and dies of one that fails in another way."""
    place = write_package(tmp_path, PACKAGES[name][0])
    code, said = run_program(
        f"import sys; sys.path.insert(0, {str(place)!r})\n"
        "from llmforge.backends.colossalai import compat; compat.install(); import colossalai.booster.plugin"
    )
    assert code == 0, said


TENSOR = {"plugin": "3d", "tp": 2, "mixed_precision": "fp32", "micro_batch_size": 4}
RUNS: dict[str, dict[str, Any]] = {
    "torch_ddp": {"plugin": "torch_ddp"},
    "zero2": {"plugin": "zero2"},
    "zero1-fp32": {"plugin": "zero1", "mixed_precision": "fp32"},
    "gemini": {"plugin": "gemini"},
    "gemini_auto": {"plugin": "gemini_auto", "gradient_checkpointing": True},
    "3d-split_gather": {**TENSOR, "sp_mode": "split_gather"},
    "3d-pp": {"plugin": "3d", "pp": 2, "mixed_precision": "fp32", "micro_batch_size": 4},
    "3d-zero-1": {"plugin": "3d", "zero": 1},
}


@pytest.fixture(scope="module")
def trained(
    start: Any, case: Any, stop_after: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str | None]]:
    """The directory of trainings by plugin, `plain`, `fused`, and `resumed` with fused norms; what each raised."""
    root = tmp_path_factory.mktemp("norms")
    cases = [case(f"plain-{name}", root / f"plain-{name}", **flags) for name, flags in RUNS.items()]
    cases += [
        {**case(f"fused-{name}", root / f"fused-{name}", **flags), "with": "fused_norms"}
        for name, flags in RUNS.items()
    ]
    cases.append({**case("one", root / "one", **RUNS["zero2"]), "with": "fused_norms_on_one_rank"})
    results = start(2, cases)
    if results["fused-gemini"] is None:
        stop_after(root / "fused-gemini", root / "resumed", "epoch-0_step-3")
        resumed = case("resumed", root / "resumed", load_checkpoint="latest", **RUNS["gemini"])
        results |= start(2, [{**resumed, "with": "fused_norms"}])
    return root, results


@needs_colossalai
@pytest.mark.parametrize("name", RUNS)
def test_a_training_with_fused_norms_follows_the_one_without(name: str, trained: Any, lines: Any) -> None:
    root, results = trained
    assert results[f"plain-{name}"] is results[f"fused-{name}"] is None
    exact = RUNS[name].get("mixed_precision") == "fp32"
    for key, tolerance in (("loss", 1e-5 if exact else 0.02), ("gradient_norm", 1e-4 if exact else 0.05)):
        plain, fused = ([line[key] for line in lines(root / f"{way}-{name}")] for way in ("plain", "fused"))
        assert fused == pytest.approx(plain, abs=tolerance)


@needs_colossalai
def test_resuming_with_fused_norms_gives_the_same_bits(trained: Any, lines: Any) -> None:
    from llmforge.backends.common.storage import read_weights

    root, results = trained
    assert results.get("resumed", "it was not started") is None
    whole, resumed = (read_weights(root / name / "modeling") for name in ("fused-gemini", "resumed"))
    assert whole.keys() == read_weights(root / "plain-gemini" / "modeling").keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@needs_colossalai
def test_a_rank_that_lacks_the_kernel_makes_all_do_without(trained: Any, lines: Any) -> None:
    root, results = trained
    assert results["one"] is None
    assert [line["loss"] for line in lines(root / "one")] == [
        line["loss"] for line in lines(root / "plain-zero2")
    ]
