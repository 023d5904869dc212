"""neobert_train without what lets root write everywhere; others have to obey permissions anyway."""

import ctypes
import runpy

VERSION_3, DAC_OVERRIDE = 0x20080522, 1  # of <linux/capability.h>

if __name__ == "__main__":
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    capabilities = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice 32
    libc.capget(header, capabilities)
    capabilities[0] &= ~(1 << DAC_OVERRIDE)
    libc.capset(header, capabilities)
    runpy.run_module("neobert_train", run_name="__main__", alter_sys=True)
