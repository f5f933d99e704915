"""`course doctor`: what works on this machine, and what to do about what does not."""

import importlib.util
import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from course.cores import cores
from course.lang import current, tr
from course.registry import ROOT

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and what it means."""

    what: str
    state: str
    says: str


def examine() -> Iterator[Finding]:
    """All findings, in the order in which they matter."""
    version = platform.python_version()
    yield Finding("Python", OK, f"{version} ({sys.executable})")
    missing = [
        m for m in ("torch", "numpy", "pytest", "matplotlib", "rich") if importlib.util.find_spec(m) is None
    ]
    if missing:
        names = ", ".join(missing)
        yield Finding(
            tr("packages", "依赖"),
            BAD,
            tr(
                f"{names} missing: run `make learn`, or `pip install -r requirements.txt`",
                f"缺少 {names}：运行 `make learn`，或 `pip install -r requirements.txt`",
            ),
        )
    if "torch" in missing:
        return
    for look in (_torch, _cuda, _repeatable, _low_precision, _processes, _disk, _language):
        yield look()


def _torch() -> Finding:
    import torch

    pinned = next(
        (
            line.split("==")[1].strip()
            for line in (ROOT / "requirements.txt").read_text().splitlines()
            if line.startswith("torch==")
        ),
        "",
    )
    same = torch.__version__.partition("+")[0] == pinned
    text = f"{torch.__version__}, {torch.get_num_threads()} " + tr("threads", "个线程")
    if same:
        return Finding("torch", OK, text)
    return Finding(
        "torch", NOTE, text + tr(f"; the course is tested with {pinned}", f"；课程是用 {pinned} 测试的")
    )


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(
            "CUDA", OK, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        )
    return Finding(
        "CUDA",
        NOTE,
        tr(
            "no device: the CUDA cases of the tests are skipped, everything else runs",
            "没有 CUDA 设备：测试里的 CUDA 用例会跳过，其余照常",
        ),
    )


def _repeatable() -> Finding:
    """Train a small network twice from the same seed and compare every bit."""
    import torch

    def train() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(32, 32, generator=generator).requires_grad_() for _ in range(2)]
        for _ in range(20):
            x = torch.randn(16, 32, generator=generator)
            loss = (torch.tanh(x @ weights[0]) @ weights[1]).square().mean()
            for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data -= 0.1 * grad
        return [weight.detach() for weight in weights]

    same = all(torch.equal(a, b) for a, b in zip(train(), train(), strict=True))
    what = tr("repeatable", "可复现")
    if same:
        return Finding(
            what, OK, tr("two runs from one seed agree bit for bit", "同一个种子的两次训练逐位一致")
        )
    return Finding(
        what,
        BAD,
        tr(
            "two runs from one seed differ: the bitwise tests will fail here",
            "同一个种子的两次训练不一致：逐位比较的测试在这里会失败",
        ),
    )


def _low_precision() -> Finding:
    import torch

    what = tr("low precision", "低精度")
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            product = torch.ones(4, 4) @ torch.ones(4, 4)
        results.append(product.dtype == dtype and product[0, 0].item() == 4)
    if all(results):
        return Finding(
            what, OK, tr("bf16 and fp16 autocast work on the CPU", "CPU 上的 bf16 与 fp16 autocast 可用")
        )
    return Finding(
        what,
        NOTE,
        tr("autocast does not work here: lesson 07 needs it", "autocast 在这里不可用：第 07 课需要它"),
    )


def _processes() -> Finding:
    what = tr("processes", "进程")
    if hasattr(os, "fork"):
        return Finding(what, OK, tr(f"{cores()} cores, fork works", f"{cores()} 个核心，支持 fork"))
    return Finding(
        what,
        NOTE,
        tr(
            f"{cores()} cores, no fork: the gates start a fresh process for each run, and tests have no time limit",
            f"{cores()} 个核心，不支持 fork：gates 每次都会启动新进程，测试也没有时间上限",
        ),
    )


def _disk() -> Finding:
    what = tr("disk", "磁盘")
    try:
        with tempfile.TemporaryFile(dir=ROOT) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(what, BAD, tr(f"cannot write in {ROOT}: {error}", f"无法写入 {ROOT}：{error}"))
    free = shutil.disk_usage(ROOT).free / 2**30
    state = OK if free >= 1 else NOTE
    return Finding(what, state, tr(f"{free:.0f} GiB free", f"剩余 {free:.0f} GiB"))


def _language() -> Finding:
    encoding = (sys.stdout.encoding or locale.getpreferredencoding()).lower().replace("-", "")
    text = f"{current()}, {encoding}"
    what = tr("language", "语言")
    if encoding == "utf8":
        return Finding(what, OK, text)
    return Finding(
        what,
        NOTE,
        text
        + tr(
            "; set PYTHONUTF8=1 to see mathematics and Chinese",
            "；设置 PYTHONUTF8=1 才能正常显示数学符号和中文",
        ),
    )
