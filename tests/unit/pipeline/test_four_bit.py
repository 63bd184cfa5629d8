"""Where 4-bit cannot be had, the reason comes first; what products run in follows the hardware."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch

from anneal_pipeline.config.tuning import QuantizationConfig, TuningConfig
from anneal_pipeline.device import resolve_compute
from anneal_pipeline.errors import UserError
from anneal_pipeline.model import four_bit
from anneal_pipeline.model.four_bit import BaseForm, choose_base_form, find_fault

CPU = torch.device("cpu")
EVERY_FORM = pytest.mark.parametrize(
    "form",
    [{"type": kind, "doubleQuant": nested} for kind in ("nf4", "fp4") for nested in (True, False)],
    ids=lambda form: "-".join(map(str, form.values())),
)


def form_of(**tuning: Any) -> BaseForm:
    return choose_base_form(TuningConfig.parse(tuning), device=CPU)


class TestWithBitsandbytes:
    @EVERY_FORM
    def test_it_works_on_this_machine(self, form: dict[str, Any]) -> None:
        assert find_fault(CPU, wanted=QuantizationConfig.parse(form)) is None
        assert form_of(quantization=form) == BaseForm(in_4_bit=True)

    @EVERY_FORM
    def test_what_is_tried_is_what_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
    ) -> None:
        tried = []
        quantize = bitsandbytes.functional.quantize_4bit

        def listening(weight: torch.Tensor, **options: Any) -> Any:
            tried.append(options)
            return quantize(weight, **options)

        monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", listening)
        form_of(quantization=form)
        assert tried == [{"quant_type": form["type"], "compress_statistics": form["doubleQuant"]}]

    def test_plain_lora_never_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        assert form_of(method="lora") == BaseForm(in_4_bit=False)


class TestWithoutBitsandbytes:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    def test_qlora_is_refused_with_what_to_do(self) -> None:
        with pytest.raises(UserError, match="bitsandbytes is not installed; use a") as caught:
            form_of()
        assert caught.value.reason == "QuantizationUnavailable"

    def test_fallback_goes_on_as_plain_lora_and_says_so(self) -> None:
        form = form_of(fallback="allow")
        assert form.method == "lora"
        assert form.notice is not None
        assert "Going on as plain LoRA over the unquantised base" in form.notice

    def test_loftq_has_nothing_to_correct_there(self) -> None:
        form = form_of(fallback="allow", lora={"initialization": "loftq"})
        assert form.notice is not None
        assert "Going on as plain LoRA, begun as default, over the" in form.notice


class TestOldGpu:
    """Explained before a kernel is called: after a CUDA error no other call works either."""

    GPU = torch.device("cuda", 0)

    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
        def fake(capability: tuple[int, int], *, cuda: str | None) -> list[str]:
            called: list[str] = []
            monkeypatch.setattr(torch.version, "cuda", cuda)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
            monkeypatch.setattr(
                four_bit, "_round_trip_error", lambda device, wanted: len(called.append("it") or "")
            )
            return called

        return fake

    @pytest.mark.parametrize(
        ("capability", "cuda", "least"),
        [((5, 2), "12.6", "6.0"), ((6, 1), "13.0", "7.5"), ((7, 0), "13.2", "7.5")],
    )
    def test_it_is_refused_or_goes_on_as_plain_lora_before_any_kernel_is_called(
        self,
        gpu: Callable[..., list[str]],
        capability: tuple[int, int],
        cuda: str,
        least: str,
    ) -> None:
        called = gpu(capability, cuda=cuda)
        has = ".".join(map(str, capability))
        want = (
            f"Old GPU has compute capability {has}, and bitsandbytes for CUDA {cuda} needs {least}"
        )
        with pytest.raises(UserError, match=want) as caught:
            choose_base_form(TuningConfig.parse({}), device=self.GPU)
        assert caught.value.reason == "QuantizationUnavailable"
        form = choose_base_form(TuningConfig.parse({"fallback": "allow"}), device=self.GPU)
        assert form.method == "lora"
        assert want in str(form.notice)
        assert not called

    @pytest.mark.parametrize(
        ("capability", "cuda"),
        [((6, 0), "12.6"), ((7, 5), "13.0"), ((12, 0), "13.2"), ((4, 2), None)],
        ids=["Pascal", "Turing", "Blackwell", "no CUDA build, as ROCm"],
    )
    def test_any_other_is_tried(
        self, gpu: Callable[..., list[str]], capability: tuple[int, int], cuda: str | None
    ) -> None:
        called = gpu(capability, cuda=cuda)
        assert choose_base_form(TuningConfig.parse({}), device=self.GPU).in_4_bit
        assert called == ["it"]


def test_a_build_that_does_not_fit_is_told_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a bitsandbytes whose native library is missing does: it raises at the first call."""

    def call(*_: Any) -> float:
        ctypes.CDLL("libbitsandbytes_of_another_cuda.so")
        return 0.0

    monkeypatch.setattr(four_bit, "_round_trip_error", call)
    with pytest.raises(UserError) as caught:
        form_of()
    assert "libbitsandbytes_of_another_cuda.so" in caught.value.message
    assert f"bitsandbytes 0.50.2, torch {torch.__version__}, cpu" in caught.value.message


def test_wrong_numbers_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "_round_trip_error", lambda *_: float("nan"))
    assert "wrong by nan" in str(find_fault(CPU, wanted=QuantizationConfig()))


@pytest.mark.parametrize(
    ("wanted", "kind", "has_bfloat16", "trained_in", "want"),
    [
        ("auto", "cpu", True, "bfloat16", "float32"),
        ("auto", "cuda", True, "bfloat16", "bfloat16"),
        ("auto", "cuda", False, "float16", "float16"),
        ("auto", "cuda", False, "bfloat16", "float32"),
        ("float32", "cuda", True, "bfloat16", "float32"),
        ("bfloat16", "cpu", True, None, "bfloat16"),
        ("float16", "cuda", True, "float16", "float16"),
    ],
)
def test_compute_type_follows_the_hardware(
    wanted: str, kind: str, has_bfloat16: bool, trained_in: str | None, want: str
) -> None:
    got = resolve_compute(wanted, kind=kind, has_bfloat16=has_bfloat16, trained_in=trained_in)
    assert got == want


def test_what_is_trained_whole_is_not_loaded_in_float16() -> None:
    """Its gradients would be in float16, which no loss scale can be taken out of."""
    old = {"kind": "cuda", "has_bfloat16": False, "trained_in": "float16", "trains_whole": True}
    assert resolve_compute("auto", **old) == "float32"
    with pytest.raises(UserError, match="modulesToSave"):
        resolve_compute("float16", **old)


@pytest.mark.parametrize(
    ("wanted", "kind", "has_bfloat16", "trained_in", "said"),
    [
        ("bfloat16", "cuda", False, None, "this GPU does not have it"),
        ("float16", "cpu", True, None, "for GPUs"),
        ("float16", "cuda", True, "bfloat16", "trained in bfloat16 and overflows"),
    ],
)
def test_float16_overflow_and_missing_types_are_refused(
    wanted: str, kind: str, has_bfloat16: bool, trained_in: str | None, said: str
) -> None:
    """Pitfall: fp16 compute dtype overflows."""
    with pytest.raises(UserError, match=said):
        resolve_compute(wanted, kind=kind, has_bfloat16=has_bfloat16, trained_in=trained_in)
