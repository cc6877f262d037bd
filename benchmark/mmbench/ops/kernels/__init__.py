"""CPU kernels compiled by numba, imported only when first needed; each has a plain torch path beside its caller.

A kernel is a loop over rows `lo … hi-1`, so that `mmbench.ops.threads.run` may split the rows over
threads. It has no floating-point reassociation unless it says so: element-wise results do not
depend on how the loop was vectorised.
"""
