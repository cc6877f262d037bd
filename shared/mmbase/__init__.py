"""mmbase: what mmx and mmbench must not disagree on.

The dataset folder and its tables, errors and exit codes, the command-line shell, progress, devices,
threads and the choice of matrix kernels. It knows nothing of encoders or recommenders; the tools
exchange data through `mmstore` alone.
"""

__version__ = "0.2.0"  # of the distribution, of mmx and of mmbench
