"""tools/gpu_check.py in small on the CPU: every section runs, and what is wrong or too slow is found."""

from __future__ import annotations

import json

import pytest
import torch

from tests.tiny_runs import tool
from video_gn import gpu_check
from video_gn.benchmark.videos import render_videos
from video_gn.gpu_check import check, correct
from video_gn.gpu_check.findings import Findings, Place

pytestmark = pytest.mark.skipif(correct.fused is None, reason="needs Triton")
GPU_ONLY = ("waits", "graph")


@pytest.mark.parametrize("section", gpu_check.SECTIONS)
def test_section(section: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = render_videos(tmp_path / "videos", 2, (64, 80, 40)) if section in ("loader", "training") else None
    findings = check(Place(torch.device("cpu"), quick=True, videos=videos, workers=0), [section])
    assert findings.lines and not findings.missed
    assert {line.section for line in findings.lines} == {section}
    goals = [line for line in findings.lines if line.ok is not None]
    assert goals or section in (*GPU_ONLY, "formats", "norms", "parts", "steps", "loader")


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = correct.fused.apply
    monkeypatch.setattr(correct.fused, "apply", lambda *arguments: right(*arguments) * 1.01)
    findings = check(Place(torch.device("cpu"), quick=True), ["kernels"])
    assert [line.name.split(":")[0] for line in findings.missed] == [
        f"Group Norm, {of}" for of in ("y", "dx", "dgamma", "dbeta", "dresidual")
    ]


def test_a_section_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def breaks(place: Place, findings: Findings) -> None:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setitem(gpu_check.SECTIONS, "stem", breaks)
    findings = check(Place(torch.device("cpu"), quick=True), ["stem", "graph"])
    assert [(line.section, line.note) for line in findings.missed] == [("stem", "no kernel image")]
    assert findings.lines[-1].section == "graph"
    assert "MISSED" in capsys.readouterr().out


def test_speed_counts_on_a_gpu_at_full_size_only() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [Place(*place).goals for place in ((gpu, False), (gpu, True), (cpu, False))] == [True, False, False]


def test_the_tool_writes_what_it_finds(tmp_path) -> None:
    done = tool(
        "tools/gpu_check.py", "--quick", "--device", "cpu", "--only", "stem", "--json", str(tmp_path / "found.json")
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "found.json").read_text())
    assert [line["ok"] for line in content["findings"]] == [True, True] and "torch" in content["environment"]
    unknown = tool("tools/gpu_check.py", "--only", "kernel", "--device", "cpu")
    assert unknown.returncode == 2 and "section 'kernel' is not known; choose from kernels, pools" in unknown.stderr
