"""Compiles, for a GPU that need not be there, every kernel a network's forward and backward launch.

`python compile_triton.py 80 90` prints for each compute capability a line a kernel: the capability,
the kernel's name, its stack bytes and matrix instructions. The interpreter of the tests does not
see what only the compiler refuses.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tomoline.kernels import triton_kernels, triton_msdnet
from tomoline.networks.msdnet import MSDNet

KERNELS = ["product", "combine", "before_activation", "spread", "correlate"]
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64",
         torch.int32: "*i32", torch.uint8: "*u8"}  # fmt: skip
SPECIALISED = ("voxels", "rows")  # the sizes of which Triton sees that 16 divides them
launched: dict[str, tuple] = {}


class Recorder:
    """Stands for a kernel: notes what it would be compiled for, and launches nothing."""

    def __init__(self, kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.note

    def note(self, *arguments, **named) -> None:
        options = {k: named.pop(k) for k in ("num_warps", "num_stages") if k in named}
        signature, attributes = {}, {}
        for i, (name, value) in enumerate(zip(self.kernel.arg_names, arguments, strict=False)):
            tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype] if tensor else "i32"
            number = value.data_ptr() if tensor else value
            if number % 16 == 0 and (tensor or name in SPECIALISED):
                attributes[(i,)] = [["tt.divisibility", 16]]
        signature |= dict.fromkeys(named, "constexpr")
        key = str((self.kernel.__name__, signature, named, attributes, options))
        launched[key] = (self.kernel, signature, named, attributes, options)


def stack_bytes(cubin: bytes) -> int:
    """Stack a thread needs: registers that did not suffice."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"STACK:(\d+)", text))


def main() -> None:
    """Note the launches of two kinds of networks on the processor, then compile them."""
    for name in KERNELS:
        setattr(triton_kernels, name, Recorder(getattr(triton_kernels, name)))
    triton_msdnet.check_device = lambda device, dtype: None
    wide = {"depth": 2, "width": 16, "dilation": "per_layer", "max_dilation": 2}
    kinds = [{"depth": 2, "width": 2}, wide]
    for kind, dtype in [(k, t) for k in kinds for t in (torch.bfloat16, torch.float32)]:
        network, x = MSDNet(**kind), torch.zeros(1, 1, 8, 8, 8, dtype=dtype)
        fast = triton_msdnet.TritonMSDNet(network, dtype=dtype, device=x.device)
        fast.particle_bytes(x)
        fast.probabilities(x)
        triton_msdnet.triton_msdnet(network, x).sum().backward()
    for capability in sys.argv[1:]:
        target = GPUTarget("cuda", int(capability), 32)
        for kernel, signature, constants, attributes, options in launched.values():
            source = ASTSource(kernel, signature, constants, attributes)
            made = triton.compile(source, target=target, options=options)
            matrix = len(re.findall(r"wgmma\.mma_async|mma\.sync", made.asm["ptx"]))
            stack = stack_bytes(made.asm["cubin"])
            print(capability, kernel.__name__, stack, matrix, flush=True)


if __name__ == "__main__":
    main()
