"""Peak rates and memory of known devices, as their data sheets give them."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        name: as the vendor calls it.
        bf16_flops: peak dense rate of bf16 products summed up in fp32, in FLOP/s.
        fp32_flops: peak rate of fp32 products, without TF32, which torch does not use by itself.
        memory_bytes: memory.
        words: those by which a driver's name for a device is known to mean this one.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    words: tuple[str, ...]

    def get_flops(self, bf16: bool) -> float:
        """Return the peak rate of training in bf16, or else in fp32."""
        return self.bf16_flops if bf16 else self.fp32_flops


# Dense rates, half of what data sheets give "with sparsity". From NVIDIA's data sheets of A10, A30,
# A40, A100, H100 (SXM, PCIe, NVL), H200 (SXM, NVL), GH200, HGX B200, GB200 NVL72, L4, L40, L40S,
# RTX A6000 and RTX 6000 Ada; its white papers on the architectures of GA102 (3090), Ada (4090) and
# RTX Blackwell (5090), in the rows "with FP32 accumulate", which are half of the others; and AMD's
# data sheets of MI300X and MI325X.
# The first match wins, so specific names stand before general ones.
DEVICES = {
    "a100-40": Device("NVIDIA A100 40 GB", 312e12, 19.5e12, 40e9, ("a100", "40gb")),
    "a100": Device("NVIDIA A100 80 GB", 312e12, 19.5e12, 80e9, ("a100",)),
    "h100-pcie": Device("NVIDIA H100 PCIe", 756e12, 51.2e12, 80e9, ("h100", "pcie")),
    "h100-nvl": Device("NVIDIA H100 NVL", 835.5e12, 60e12, 94e9, ("h100", "nvl")),
    "h100": Device("NVIDIA H100 SXM", 989.4e12, 66.9e12, 80e9, ("h100",)),
    "h200-nvl": Device("NVIDIA H200 NVL", 835.5e12, 60e12, 141e9, ("h200", "nvl")),
    "h200": Device("NVIDIA H200 SXM", 989.4e12, 66.9e12, 141e9, ("h200",)),
    "gh200": Device("NVIDIA GH200", 989.4e12, 66.9e12, 96e9, ("gh200",)),
    "b200": Device("NVIDIA B200", 2250e12, 75e12, 180e9, ("b200",)),
    "gb200": Device("NVIDIA GB200", 2500e12, 80e12, 186e9, ("gb200",)),
    "a10": Device("NVIDIA A10", 125e12, 31.2e12, 24e9, ("a10",)),
    "a10g": Device("NVIDIA A10G", 70e12, 35e12, 24e9, ("a10g",)),
    "a30": Device("NVIDIA A30", 165e12, 10.3e12, 24e9, ("a30",)),
    "a40": Device("NVIDIA A40", 149.7e12, 37.4e12, 48e9, ("a40",)),
    "a6000": Device("NVIDIA RTX A6000", 154.8e12, 38.7e12, 48e9, ("a6000",)),
    "l4": Device("NVIDIA L4", 121e12, 30.3e12, 24e9, ("l4",)),
    "l40": Device("NVIDIA L40", 181e12, 90.5e12, 48e9, ("l40",)),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 48e9, ("l40s",)),
    "rtx6000-ada": Device("NVIDIA RTX 6000 Ada", 364.2e12, 91.1e12, 48e9, ("6000", "ada")),
    "rtx3090ti": Device("NVIDIA RTX 3090 Ti", 80e12, 40e12, 24e9, ("3090", "ti")),
    "rtx3090": Device("NVIDIA RTX 3090", 71e12, 35.6e12, 24e9, ("3090",)),
    "rtx4090": Device("NVIDIA RTX 4090", 165.2e12, 82.6e12, 24e9, ("4090",)),
    "rtx5090": Device("NVIDIA RTX 5090", 209.5e12, 104.8e12, 32e9, ("5090",)),
    "mi300x": Device("AMD Instinct MI300X", 1307.4e12, 163.4e12, 192e9, ("mi300x",)),
    "mi325x": Device("AMD Instinct MI325X", 1307.4e12, 163.4e12, 256e9, ("mi325x",)),
}
# Parts of a device and slower ones of the same name: the table does not hold for them.
_OTHER_KINDS = {"mig", "laptop", "mobile", "max", "d"}


def find_known_device(name: str) -> Device | None:
    """Return the entry for a device as its driver calls it, such as `NVIDIA A100-SXM4-80GB`."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if words & _OTHER_KINDS:
        return None
    return next((device for device in DEVICES.values() if words.issuperset(device.words)), None)


def format_flops(rate: float) -> str:
    """Return a rate as `989 TFLOP/s` or `67.1 GFLOP/s`."""
    factor, unit = (1e12, "TFLOP/s") if rate >= 1e12 else (1e9, "GFLOP/s")
    digits = 0 if rate >= 100 * factor else 1
    return f"{rate / factor:,.{digits}f} {unit}"
