"""mmbase: what mmx and mmbench must not disagree on.

The dataset folder and its tables, errors and exit codes, the command-line shell, progress, devices,
threads and the choice of matrix kernels. It knows nothing of encoders or recommenders; the tools
exchange data through `mmstore` alone.
"""
