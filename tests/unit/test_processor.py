"""What a processor is good at is read from the names that Linux gives its instructions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deployments import processor


@pytest.mark.parametrize(
    ("line", "int8"),
    [
        ("flags\t\t: fpu avx2 fma", False),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t\t: avx2 avx_vnni", True),
        ("Features\t: fp asimd i8mm bf16", True),
        ("model name\t: avx512_vnni", False),
    ],
)
def test_int8_is_told_by_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, int8: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    assert processor.computes_int8() is int8


@pytest.mark.parametrize(
    ("line", "fp8"),
    [("flags\t\t: fpu avx2 fma", False), ("flags\t\t: avx2 avx512f", True), ("flags\t\t: amx_tile amx_int8", True)],
)
def test_fp8_kv_is_told_by_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, fp8: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    assert processor.stores_fp8_kv() is fp8


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_models_run_in_what_the_processor_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: fast)
    assert processor.working_dtype() is dtype
