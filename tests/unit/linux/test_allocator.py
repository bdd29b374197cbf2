"""The C library's allocator, in a process of its own: threads share its heap, and free memory goes back."""

import subprocess
import sys

import pytest

THREADS_ALLOCATE = """
import ctypes, sys, threading
from kproxy_ebpf.linux import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
heap = next(line.split()[0] for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
begin = int(heap.partition("-")[0], 16)
if "one" in sys.argv:
    allocator.use_one_arena()
places = []
thread = threading.Thread(target=lambda: places.append(libc.malloc(1000)))
thread.start()
thread.join()
print(0 <= places[0] - begin < 1 << 30)
"""

HOLES = """
import ctypes
from kproxy_ebpf.linux import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def pages():
    return int(open("/proc/self/statm").read().split()[1])

blocks = [libc.malloc(16384) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 16384)
for block in blocks[:-1]:
    libc.free(block)
before = pages()
allocator.give_back()
print(before - pages())
"""


def output(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(("arguments", "shared"), [((), "False"), (("one",), "True")])
def test_threads_share_one_heap(arguments: tuple[str, ...], shared: str) -> None:
    assert output(THREADS_ALLOCATE, *arguments) == shared


def test_free_memory_below_what_is_in_use_goes_back() -> None:
    """32 MB are free below one block; a few pages stay where the allocator keeps its records."""
    assert int(output(HOLES)) > 6000
