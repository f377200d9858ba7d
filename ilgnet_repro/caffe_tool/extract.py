"""`extract_features`: blobs of a net, for the rows that its own data layers read, stored in LMDBs as Caffe stores them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..errors import GraphError
from ..reading.feature_files import FeatureRow, write_databases
from ..runtime.modes import as_loaded
from ..runtime.net import CaffeNet
from .batches import TestFeed
from .log import Log

REPORTED = 1000  # rows between two lines of the log


@torch.no_grad()
def caffe_extract(
    net: CaffeNet,
    feed: TestFeed,
    databases: Mapping[str, Path],
    batches: int,
    log: Log = lambda location, message: None,
) -> int:
    """Store each row of each blob of ``batches`` passes, keys ``%010d``; return the number of rows of the first blob.

    ``databases`` are paths by blob name.  As in Caffe a row is one of the blob's first axis, in float_data without a
    label, and rows beyond the last of a source are its first again.  Raises GraphError for a blob with more than four
    axes, and IlgnetError where a database exists or cannot be written.
    """
    if batches < 1:
        raise GraphError(f"{batches} batches: must be 1 or more")
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    counts = dict.fromkeys(databases, 0)
    log("extract_features.cpp:134", "Extracting Features")
    with write_databases(databases) as writer, as_loaded(net):
        for batch in feed.batches(batches):
            inputs = {name: value.to(device) for name, value in batch.items()}
            found = net.run(inputs, tuple(databases), with_loss=False).blobs
            for blob in databases:
                for values in _rows(blob, found[blob].cpu().float().numpy()):
                    writer.add([FeatureRow(b"%010d" % counts[blob], None, {blob: values})])
                    counts[blob] += 1
                    if counts[blob] % REPORTED == 0:
                        _report(log, 162, blob, counts[blob])
    for blob, count in counts.items():
        _report(log, 172, blob, count)
    log("extract_features.cpp:177", "Successfully extracted the features!")
    return next(iter(counts.values()))


def _report(log: Log, line: int, blob: str, count: int) -> None:
    log(f"extract_features.cpp:{line}", f"Extracted features of {count} query images for feature blob {blob}")


def _rows(blob: str, values: np.ndarray) -> np.ndarray:
    if values.ndim > 4:
        raise GraphError(
            f"blob {blob!r} of shape {list(values.shape)}: a Datum holds rows of three axes at most"
        )
    return values if values.ndim else values[None]
