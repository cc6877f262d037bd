"""Ten million ids: planning, resuming, finishing and look-up take 1 GiB and 20 µs per item."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from mmstore import FeatureSet, FeatureSetWriter
n, path = int(sys.argv[1]), Path(sys.argv[2])
ids = np.random.default_rng(0).permutation(n).astype("S10")
plan = dict(modality="visual", dim=4, ids=ids, provenance={})
began, times = time.process_time(), {}
def lap(name):
    times[name] = round(time.process_time() - began, 2)
with FeatureSetWriter(path, **plan) as writer:
    rows = writer.pending[: n // 2]
    lap("planned")
    for start in range(0, rows.size, 65536):
        writer.write(part := rows[start : start + 65536], np.ones((part.size, 4), np.float32))
        writer.flush()
with FeatureSetWriter(path, **plan) as writer:
    rows = writer.pending
    lap("resumed")
    for start in range(0, rows.size, 65536):
        writer.write(part := rows[start : start + 65536], np.ones((part.size, 4), np.float32))
        writer.flush()
    lap("written")
    writer.finish()
lap("finished")
peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({**times, "peak_bytes": peak_bytes}))
assert FeatureSet(path).matrix(ids[:1000])[1].all()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_ten_million_ids(tmp_path: Path) -> None:
    import json

    n = 10_000_000
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n), str(tmp_path / "x.h5")],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    print(result)
    assert result["peak_bytes"] < 1 << 30
    assert result["finished"] / n < 20e-6
