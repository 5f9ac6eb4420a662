"""An NVIDIA card through CUDA's driver library alone: a task, and a program that holds memory until its input ends.

As a program (`card.py MB`) it is who uses a card without asking Ostler.
"""

import ctypes
import sys
import uuid

MB = 2**20
WILD = b"""
.version 7.0
.target sm_50
.address_size 64
.visible .entry wild() {
    .reg .u64 %where;
    .reg .u32 %what;
    mov.u64 %where, 4096;
    mov.u32 %what, 1;
    st.global.u32 [%where], %what;
    ret;
}
"""


class CudaFailed(Exception):
    """A call of CUDA did not succeed; `code` is its CUresult."""

    def __init__(self, call, code):
        super().__init__(f"{call}: CUresult {code}")
        self.code = code


def _library():
    return ctypes.CDLL("libcuda.so.1")


def _do(cuda, call, *args):
    code = getattr(cuda, call)(*args)
    if code:
        raise CudaFailed(call, code)


def seen():
    """The uuids of the cards that CUDA shows to this process, spelled as `nvidia-smi` does."""
    cuda, count = _library(), ctypes.c_int()
    _do(cuda, "cuInit", 0)
    _do(cuda, "cuDeviceGetCount", ctypes.byref(count))
    found = []
    for number in range(count.value):
        device, name = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        _do(cuda, "cuDeviceGet", ctypes.byref(device), number)
        _do(cuda, "cuDeviceGetUuid_v2", name, device)
        found.append(f"GPU-{uuid.UUID(bytes=bytes(name))}")
    return found


def take(mb):
    """Allocate so much on the first card, and show that it can be written and read back. Returns what keeps it."""
    cuda, device, context, place = _library(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    _do(cuda, "cuInit", 0)
    _do(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _do(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _do(cuda, "cuCtxSetCurrent", context)
    _do(cuda, "cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(mb * MB))
    _do(cuda, "cuMemsetD8_v2", place, ctypes.c_ubyte(0xA5), ctypes.c_size_t(mb * MB))
    back = (ctypes.c_ubyte * 4096)()
    last = ctypes.c_uint64(place.value + mb * MB - 4096)
    _do(cuda, "cuMemcpyDtoH_v2", back, last, ctypes.c_size_t(4096))
    if bytes(back) != b"\xa5" * 4096:
        raise CudaFailed("memory read back", -1)
    return cuda, context, place


def fault():
    """Make the card write where this process has no memory; the driver ends that and tells the kernel's log: Xid 31."""
    held = take(1)
    cuda = held[0]
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    _do(cuda, "cuModuleLoadData", ctypes.byref(module), WILD)
    _do(cuda, "cuModuleGetFunction", ctypes.byref(kernel), module, b"wild")
    _do(cuda, "cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    _do(cuda, "cuCtxSynchronize")


def run(mb=0):
    """What CUDA shows; with `mb`, after having used so much of the card."""
    found = seen()
    if mb:
        take(mb)
    print(*found)
    return found


if __name__ == "__main__":
    held = take(int(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
