"""Free memory stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import threading
from jaxedit import memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(2):
        before = faults()
        b"x" * 2**27
        found.append(faults() - before)

found = []
assert {keep}
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(found[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
@pytest.mark.parametrize(("keep", "stays"), [("memory.keep()", True), ("True", False)])
def test_a_block_is_met_again_without_page_faults(keep, stays):
    program = PROGRAM.replace("{keep}", keep)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (int(run.stdout) < 100) == stays
