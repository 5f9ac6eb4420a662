"""An NVIDIA card through CUDA's driver library alone: a task, and a program that holds memory until its input ends.

As a program (`card.py MB`) it is who uses a card without asking Ostler.
"""

import ctypes
import sys
import uuid

MB = 2**20


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
