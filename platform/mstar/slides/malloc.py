"""Keeps freed pixel buffers in the process, where the C library is glibc."""

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
_MMAP_ABOVE_BYTES = 32 * 2**20  # the most that glibc takes
_KEEP_FREE_BYTES = 128 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Tells glibc to reuse buffers of patch size rather than give them back to the kernel.

    A 512 px patch is 768 KiB. By default each one is mapped, zeroed page by page and unmapped
    again, which cost up to a quarter of the time of reading it. At most 128 MiB of free memory are
    kept instead. Thresholds set in the environment are left alone. Returns whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = mallopt(_MMAP_THRESHOLD, _MMAP_ABOVE_BYTES) and mallopt(
        _TRIM_THRESHOLD, _KEEP_FREE_BYTES
    )
    return bool(done)
