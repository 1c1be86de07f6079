"""Holds the GPU's memory until its input ends: all but MIB. Prints "held N" in MiB once it has it. By the driver's own library."""

import ctypes
import sys

MIB = 1 << 20


def check(code, what):
    if code != 0:
        sys.exit(f"vram_holder: {what}: CUDA error {code}")


def main():
    leave = int(sys.argv[1]) * MIB
    cuda = ctypes.CDLL("libcuda.so.1")
    check(cuda.cuInit(0), "cuInit")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    held = 0
    for piece in (1024 * MIB, 64 * MIB, 2 * MIB):
        while True:
            free, total, address = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
            check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
            if free.value < leave + piece:
                break
            if cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(piece)) != 0:
                break
            held += piece
    print(f"held {held // MIB}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
