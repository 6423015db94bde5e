"""GPUs, their driver and cuDNN."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from video_gn.doctor.check import Line, Status, Target
from video_gn.doctor.packages import TORCH_REMEDY, conv3d_error
from video_gn.limits import size_text


def gpus(target: Target) -> Iterator[Line]:
    """Try each GPU with a Conv3d in fp32 and bf16; judge cuDNN."""
    import torch

    wanted = target.config is not None and target.config.device == "cuda"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        yield no_gpu_line(nvidia_smi("name"), torch.version.cuda, wanted)
    drivers = nvidia_smi("driver_version")
    for index in range(count):
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        about = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        text = f"{about.name}, {size_text(free)} of {size_text(total)} free, compute {about.major}.{about.minor}, "
        text += f"driver {drivers[0] if drivers else 'unknown'}, CUDA {torch.version.cuda}, "
        text += "bf16" if bf16 else "no bf16: trains in fp32"
        errors = {d: conv3d_error(device, d) for d in ([torch.float32, torch.bfloat16] if bf16 else [torch.float32])}
        wrong = [f"{str(d).removeprefix('torch.')} by {error:.0%}" for d, error in errors.items() if not error <= 0.02]
        if wrong:
            yield Line("error", f"GPU {index}", f"{text}; Conv3d is off in {', '.join(wrong)}", TORCH_REMEDY)
        elif free < 0.8 * total:
            yield Line("warning", f"GPU {index}", text, "End the other programs on it; `nvidia-smi` names them.")
        else:
            yield Line("ok", f"GPU {index}", text)
    yield cudnn_line(torch.__version__, torch.backends.cudnn.version(), count > 0)


def no_gpu_line(names: list[str], cuda: str | None, wanted: bool) -> Line:
    """Judge a torch (built for `cuda`, None: the CPU) that sees none of the GPUs that the driver names."""
    if names:
        build = f"built for CUDA {cuda}" if cuda else "built for the CPU only"
        remedy = "Install a torch that fits the driver (pytorch.org's selector), and look at CUDA_VISIBLE_DEVICES."
        text = f"the driver sees {', '.join(names)}, torch ({build}) sees none"
        return Line("error" if wanted else "warning", "GPU", text, remedy)
    if wanted:
        return Line("error", "GPU", "none, and the config's device is cuda", "Set device=auto, or use a GPU's machine.")
    return Line("ok", "GPU", "none; runs use the CPU")


def nvidia_smi(field: str) -> list[str]:
    """Return a field of each GPU, as the driver reports it; empty without a driver."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def cudnn_line(torch_version: str, cudnn: int | None, has_gpu: bool) -> Line:
    """Judge cuDNN and the torch version with a bad Conv3d, which is slow, and wrong with cuDNN below 9.15 (91500)."""
    from video_gn.distributed.precision import conv3d_hazard

    name = "none" if cudnn is None else f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    hazard = conv3d_hazard(torch_version)
    if hazard is None:
        return Line("ok", "cuDNN", f"{name}; torch {torch_version} is not known for a bad Conv3d")
    if not has_gpu:
        return Line("ok", "cuDNN", f"{name}; torch {torch_version} has a bad Conv3d on GPUs only")
    status: Status = "error" if cudnn is None or cudnn < 91500 else "warning"
    text = hazard.removeprefix("warning: ").partition("; ")[0]
    return Line(status, "cuDNN", f"{name}; {text}", "Install another torch than 2.9.")
