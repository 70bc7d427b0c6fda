"""What the allocator of this process does with memory that is free again.

XLA's CPU programs take their temporary memory anew at every call. glibc gets blocks that large from
the kernel and gives them back at once, so that a program meets every page for the first time, each
time; benchmarks/train_vs_torch.py shows what that costs.
"""

import ctypes

ARENAS = (-8, 1)  # M_ARENA_MAX: the heaps of other threads hold no large blocks
MAPPED = (-3, 2**30)  # M_MMAP_THRESHOLD: larger blocks are still the kernel's
KEPT = (-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the most that stays at the end of the heap


def keep() -> bool:
    """Free memory stays with this process; False where the allocator is not glibc's.

    Training does so. All threads then share one heap, for which compilation waits, so this is for
    programs that run long. Call it before the threads are there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*option) for option in (ARENAS, MAPPED, KEPT))
