"""OpenCV 4 as a reference tool: one of our nets run by its own Caffe reader, with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ilgnet_repro.caffe.caffemodel import write_caffemodel
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.runtime.net import CaffeNet

# OpenCV 5 removed the reader.
READS_CAFFE = hasattr(cv2.dnn, "readNetFromCaffe")
CLASSES = 4


def reference(net: CaffeNet, text: str, arrays: Sequence[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Run the net in OpenCV with our weights."""
    path = folder / "net.caffemodel"
    blobs = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    write_caffemodel(path, parse_net(text), blobs)
    read = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.fromfile(path, np.uint8))
    for index, array in enumerate(arrays):
        read.setInput(array, f"in{index}")
    return list(read.forwardAndRetrieve(["op"])[0])


def found_rows(rows: np.ndarray) -> np.ndarray:
    """Detections by image and falling score; OpenCV mixes classes and fills up with zeros."""
    rows = rows.reshape(-1, 7)
    rows = rows[np.any(rows != 0, axis=1)]
    return rows[np.lexsort((-rows[:, 2], rows[:, 0]))]


def detection(code_type: str, shared: bool, **fields: object) -> str:
    nms = {name: fields.pop(name) for name in ("nms_threshold", "top_k", "eta") if name in fields}
    # OpenCV demands all of these; a keep_top_k of -1 makes it write outside its memory.
    stated: dict[str, object] = {"num_classes": CLASSES, "background_label_id": 0}
    stated |= {"keep_top_k": 200, "confidence_threshold": 0}
    stated |= {"code_type": code_type, "share_location": str(shared).lower(), **fields}
    texts = [f"{name}: {value}" for name, value in stated.items()]
    texts.append(f"nms_param {{ {' '.join(f'{name}: {value}' for name, value in nms.items())} }}")
    return f"detection_output_param {{ {' '.join(texts)} }}"
