"""The tables of pycaffe's and cv2.dnn's names: ``python -m ilgnet_repro.cli.names_page --write docs/pycaffe.md``.

Each name is looked up in this package: it is done, or differs as its note says, or is absent, for which its note has the
reason.  A name that is absent without a reason, or has one and is there, is an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .. import cvdnn, pycaffe
from ..errors import IlgnetError
from ..files import atomic_file
from ..pycaffe import coord_map, draw, net_spec
from ..pycaffe.blob import Blob
from ..pycaffe.solver import Solver

COMMAND = "python -m ilgnet_repro.cli.names_page --write"
TABLES = ("pycaffe", "cv2.dnn")
DONE, DIFFERS, ABSENT = "done", "differs", "absent"


@dataclass(frozen=True)
class Group:
    """Names of one object: the object here, all of its names there, and what is to be said of some of them."""

    title: str
    object: Callable[[], Any]
    names: str
    notes: Mapping[str, str] = field(default_factory=dict)


@cache
def _built_net() -> Any:
    """A net of one layer: pycaffe's nets get their names when they are built."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.prototxt")
        path.write_text('layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 } } }')
        return pycaffe.Net(str(path), pycaffe.TEST)


_GPU = "accepted; nets of this interface compute on the CPU, and the first call says so"
_RANKS = "accepted; one process trains here, `ilgnet train` under torchrun several"
_NETS_OF_CODE = "layers come from the prototxt"
_TORCH = "accepted; torch computes the net"
_OWN_READER = "the installed `cv2.dnn`'s own, for its own nets"
_OPENVINO = f"{_OWN_READER}; absent from builds without OpenVINO"
_SELF = "returns the model, so that calls can follow each other"

PYCAFFE = (
    Group(
        "caffe",
        lambda: pycaffe,
        "Net Layer Classifier Detector NetSpec SGDSolver NesterovSolver AdaGradSolver RMSPropSolver AdaDeltaSolver "
        "AdamSolver get_solver NCCL Timer TRAIN TEST io layers params proto to_proto layer_type_list init_log log "
        "set_mode_cpu set_mode_gpu set_device set_random_seed solver_count set_solver_count solver_rank "
        "set_solver_rank set_multiprocess has_nccl __version__",
        {
            "NCCL": "refused by name; `ilgnet train` under torchrun trains with several processes",
            "set_mode_gpu": _GPU,
            "set_device": "accepted; no GPU is used, which `set_mode_gpu` says",
            "set_random_seed": "repeats the draws of this package, which are not those of Caffe's generator",
            "set_solver_count": _RANKS,
            "set_solver_rank": _RANKS,
            "set_multiprocess": _RANKS,
            "init_log": "accepted; the log goes to stderr",
            "__version__": "1.0.0, the Caffe whose interface this is; `ilgnet_repro.__version__` is this package's",
        },
    ),
    Group(
        "caffe.Net",
        _built_net,
        "blobs params inputs outputs top_names bottom_names layers layer_dict blob_loss_weights _layer_names "
        "_blob_names _inputs _outputs _blob_loss_weights forward backward forward_all forward_backward_all "
        "set_input_arrays copy_from share_with save load_hdf5 save_hdf5 reshape clear_param_diffs before_forward "
        "after_forward before_backward after_backward",
        {
            "copy_from": "layers that only the net or only the file has are named on stderr; reads HDF5 files too",
            "save_hdf5": "needs the extra `hdf5`",
            "load_hdf5": "needs the extra `hdf5`",
        },
    ),
    Group("caffe.Blob", lambda: Blob, "data diff shape num channels height width count reshape"),
    Group("caffe.Layer", lambda: _built_net().layers[0], "type blobs setup reshape"),
    Group(
        "caffe.SGDSolver and the other solvers",
        lambda: Solver,
        "net test_nets iter lr step solve restore snapshot add_callback apply_update param share_weights",
        {
            "test_nets": "share the weights of `net` from the start; Caffe shares them at the first test",
            "add_callback": "takes two functions; NCCL is refused by name",
        },
    ),
    Group(
        "caffe.io",
        lambda: pycaffe.io,
        "Transformer load_image resize_image oversample array_to_blobproto blobproto_to_array "
        "arraylist_to_blobprotovecor_str arraylist_to_blobprotovector_str blobprotovector_str_to_arraylist "
        "array_to_datum datum_to_array caffe_pb2",
        {
            "load_image": "decoded by OpenCV: of a JPEG, single values can differ by 1/255 from scikit-image's",
            "resize_image": "as with scikit-image before 0.15: no smoothing before an image is made smaller",
            "blobproto_to_array": "takes `double_data` and half precision of other Caffes too",
            "datum_to_array": "decodes an encoded image, as Caffe's data layers do",
            "arraylist_to_blobprotovector_str": "pycaffe has it under the name before this one only",
        },
    ),
    Group(
        "caffe.io.Transformer",
        lambda: pycaffe.io.Transformer({"data": (1, 3, 2, 2)}),
        "inputs transpose channel_swap raw_scale mean input_scale preprocess deprocess set_transpose set_channel_swap "
        "set_raw_scale set_mean set_input_scale",
        {
            "preprocess": "never changes the image that it is given",
            "set_mean": "a mean image of another size is resized, as in the last pycaffe; Caffe 1.0 refused it",
        },
    ),
    Group(
        "caffe.net_spec",
        lambda: net_spec,
        "Top Function NetSpec Layers Parameters layers params to_proto assign_proto param_name_dict",
        {
            "assign_proto": "takes tuples, NumPy values and messages too; errors name the layer and the field",
            "layers": "parameters also reach messages that are not called like the type (Deconvolution, LSTM, forks)",
        },
    ),
    Group(
        "caffe.coord_map",
        lambda: coord_map,
        "conv_params crop_params coord_map compose inverse coord_map_from_to crop PASS_THROUGH_LAYERS "
        "UndefinedMapException AxisMismatchException",
    ),
    Group(
        "caffe.draw",
        lambda: draw,
        "get_pydot_graph draw_net draw_net_to_file get_layer_label get_edge_label get_layer_lr_mult "
        "get_pooling_types_dict choose_color_by_layertype LAYER_STYLE_DEFAULT NEURON_LAYER_STYLE BLOB_STYLE",
        {
            "get_pydot_graph": "nodes are named by number and shown by label; nets of older generations are upgraded",
            "draw_net": "by Graphviz where `dot` or the extra `draw` is installed, otherwise plainer, by matplotlib",
        },
    ),
    Group("caffe.Classifier", lambda: pycaffe.Classifier, "predict"),
    Group("caffe.Detector", lambda: pycaffe.Detector,
          "detect_windows detect_selective_search crop configure_crop", {
        "detect_selective_search": "as in pycaffe needs the module `selective_search_ijcv_with_python`, and says so",
    }),
    Group(
        "caffe.proto.caffe_pb2",
        lambda: pycaffe.proto.caffe_pb2,
        "NetParameter LayerParameter V1LayerParameter V0LayerParameter SolverParameter SolverState BlobProto BlobShape "
        "BlobProtoVector Datum FillerParameter NetState NetStateRule ParamSpec TransformationParameter Phase TRAIN TEST",
        {"LayerParameter": "with the fields of forks, under numbers of its own; binary files keep Caffe's"},
    ),
)  # fmt: skip

CV2_DNN = (
    Group(
        "cv2.dnn",
        lambda: cvdnn,
        "readNetFromCaffe readNet Net Layer blobFromImage blobFromImages blobFromImageWithParams "
        "blobFromImagesWithParams Image2BlobParams imagesFromBlob NMSBoxes NMSBoxesBatched NMSBoxesRotated softNMSBoxes "
        "Model ClassificationModel DetectionModel SegmentationModel KeypointsModel TextDetectionModel "
        "TextDetectionModel_DB TextDetectionModel_EAST TextRecognitionModel DictValue getAvailableTargets "
        "getInferenceEngineBackendType getInferenceEngineCPUType getInferenceEngineVPUType readNetFromDarknet "
        "readNetFromModelOptimizer readNetFromONNX readNetFromTFLite readNetFromTensorflow readNetFromTorch "
        "readTensorFromONNX readTorchBlob releaseHDDLPlugin resetMyriadDevice setInferenceEngineBackendType "
        "shrinkCaffeModel writeTextGraph Net_readFromModelOptimizer "
        "DNN_BACKEND_* DNN_TARGET_* DNN_LAYOUT_* DNN_PMODE_* SOFT_NMSMETHOD_* SoftNMSMethod_*",
        {
            "readNetFromCaffe": "takes every text and weights file that `ilgnet_repro.load_net` takes",
            "readNet": "reads Caffe's files; others are passed on to the installed `cv2.dnn`",
            **dict.fromkeys(
                ("TextDetectionModel", "TextDetectionModel_DB", "TextDetectionModel_EAST", "TextRecognitionModel"),
                "its nets are ONNX and TensorFlow; use `cv2.dnn`'s own",
            ),
            "DictValue": _NETS_OF_CODE,
            "Net_readFromModelOptimizer": "OpenVINO's files are not Caffe's",
            **dict.fromkeys(
                ("readNetFromDarknet", "readNetFromModelOptimizer", "readNetFromONNX", "readNetFromTFLite",
                 "readNetFromTensorflow", "readNetFromTorch", "readTensorFromONNX", "readTorchBlob",
                 "writeTextGraph", "getAvailableTargets"), _OWN_READER,
            ),
            **dict.fromkeys(
                ("getInferenceEngineBackendType", "getInferenceEngineCPUType", "getInferenceEngineVPUType",
                 "releaseHDDLPlugin", "resetMyriadDevice", "setInferenceEngineBackendType"), _OPENVINO,
            ),
            "shrinkCaffeModel": "the installed `cv2.dnn`'s own; OpenCV 5 has none, `ilgnet convert` writes the same files",
        },
    ),
    Group(
        "cv2.dnn.Net",
        cvdnn.Net,
        "setInput forward forwardAndRetrieve forwardAsync empty getLayerNames getLayer getLayerId getLayerTypes "
        "getLayersCount getLayersShapes getUnconnectedOutLayers getUnconnectedOutLayersNames getParam setParam "
        "getMemoryConsumption getFLOPS getPerfProfile setPreferableBackend setPreferableTarget enableFusion "
        "enableWinograd setInputShape setInputsNames setHalideScheduler addLayer addLayerToPrev connect registerOutput "
        "dump dumpToFile dumpToPbtxt quantize getInputDetails getOutputDetails readFromModelOptimizer",
        {
            "forward": "finds blobs by their names too",
            "getFLOPS": "twice the multiply-adds; OpenCV counts by rules of its own for each layer type",
            "getPerfProfile": "the times of the layers are taken in a pass made for them",
            "getMemoryConsumption": "takes the shapes of several inputs too",
            "setPreferableBackend": _TORCH,
            "setPreferableTarget": "the CUDA targets move the net to a GPU where torch has one; others warn and use the CPU",
            "enableFusion": "accepted; results are the same",
            "enableWinograd": _TORCH,
            **dict.fromkeys(("addLayer", "addLayerToPrev", "connect", "registerOutput"), _NETS_OF_CODE),
            **dict.fromkeys(("dump", "dumpToFile", "dumpToPbtxt"), "`ilgnet audit` and `caffe.draw` show a net"),
            **dict.fromkeys(("quantize", "getInputDetails", "getOutputDetails"), "`ilgnet convert` quantizes nets"),
            "forwardAsync": "call `forward` in a thread",
            "readFromModelOptimizer": "OpenVINO's files are not Caffe's",
            "setHalideScheduler": "torch computes the net",
        },
    ),
    Group(
        "cv2.dnn.Layer",
        lambda: cvdnn.Layer("", "", (), ()),
        "name type blobs outputNameToIndex preferableTarget finalize run",
        {
            "blobs": "copies in Caffe's shapes; `Net.setParam` replaces them",
            "finalize": "layers are run by their net",
            "run": "layers are run by their net",
        },
    ),
    Group(
        "cv2.dnn.Model",
        lambda: cvdnn.Model,
        "predict setInputParams setInputSize setInputMean setInputScale setInputCrop setInputSwapRB setOutputNames "
        "setPreferableBackend setPreferableTarget enableWinograd",
        {"enableWinograd": _TORCH},
    ),
    Group(
        "cv2.dnn.ClassificationModel",
        lambda: cvdnn.ClassificationModel,
        "classify setEnableSoftmaxPostProcessing getEnableSoftmaxPostProcessing",
    ),
    Group(
        "cv2.dnn.DetectionModel",
        lambda: cvdnn.DetectionModel,
        "detect setNmsAcrossClasses getNmsAcrossClasses",
        {"detect": "nets that end in DetectionOutput, as all of Caffe's do; Darknet's Region is not Caffe's"},
    ),
    Group("cv2.dnn.SegmentationModel", lambda: cvdnn.SegmentationModel, "segment"),
    Group("cv2.dnn.KeypointsModel", lambda: cvdnn.KeypointsModel, "estimate"),
)  # fmt: skip

GROUPS = dict(zip(TABLES, (PYCAFFE, CV2_DNN), strict=True))


def is_there(group: Group, name: str) -> bool:
    """Whether the object here has the name, or names that begin so."""
    if name.endswith("*"):
        return any(one.startswith(name[:-1]) for one in dir(group.object()))
    return hasattr(group.object(), name)


def status(group: Group, name: str) -> tuple[str, str]:
    """Return whether a name is done, differs or is absent, and its note.  Raises IlgnetError for one without a reason."""
    note = group.notes.get(name, "")
    if is_there(group, name):
        return (DIFFERS if note else DONE), note
    if note.startswith(_OWN_READER) or name == "shrinkCaffeModel":  # which the installed OpenCV may lack
        return DIFFERS, note
    if not note:
        raise IlgnetError(f"{group.title}.{name}: is absent without a reason; give it a note")
    return ABSENT, note


def table(title: str) -> str:
    """Return the rows of one of the tables: names that share their status and note are in one row."""
    lines = ["| of | names | | how, or why not |", "|---|---|---|---|"]
    for group in GROUPS[title]:
        lines += _rows(group)
    return "\n".join(lines)


def _rows(group: Group) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for name in group.names.split():
        found.setdefault(status(group, name), []).append(name)
    for (kind, note), names in sorted(
        found.items(), key=lambda row: (DONE, DIFFERS, ABSENT).index(row[0][0])
    ):
        yield f"| `{group.title}` | {', '.join(f'`{name}`' for name in names)} | {kind} | {note} |"


def replaced(text: str, name: str) -> str:
    """Return a page's text with the tables between their markers.  Raises IlgnetError where markers are missing."""
    for title in TABLES:
        start, end = f"<!-- {title}:start -->", f"<!-- {title}:end -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise IlgnetError(f"{name}: holds no markers {start} and {end}; add them where the table belongs")
        text = f"{before}{start}\n<!-- Written by: {COMMAND} {name} -->\n{table(title)}\n{end}{after}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Print the tables or write them into a page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ilgnet_repro.cli.names_page", description=__doc__)
    parser.add_argument("--write", metavar="FILE", help="the page that holds the markers")
    options = parser.parse_args(arguments)
    if not options.write:
        print("\n\n".join(map(table, TABLES)))
        return 0
    try:
        text = replaced(Path(options.write).read_text(encoding="utf-8"), options.write)
        with atomic_file(options.write, "w") as file:
            file.write(text)
    except (IlgnetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
