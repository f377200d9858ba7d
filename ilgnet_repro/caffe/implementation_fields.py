"""Fields of forks that choose an implementation, or have no effect in a phase: left out, with a note."""

from __future__ import annotations

import re
from collections import Counter

from ..errors import excerpt
from ..schema import caffe_pb2 as pb
from .fork_fields import without_indices

# Of a layer, with the fork that has it.
_OF_A_LAYER = re.compile(
    r"(\w+_param\.)?engine"  # Intel's and NVIDIA's: in any message, with any value
    r"|(forward|backward)_(type|math)|debug"  # NVIDIA's: types that the GPU stores and computes in, and log lines
    r"|(\w+_param\.)?(conv_algos_override|cudnn_\w+|\w+_math_override)"
    r"|data_param\.(threads|parser_threads|cache|cache_images)|transform_param\.use_gpu_transform"
    r"|batch_norm_param\.filler(\..*)?"  # Intel's: of the scale that its layers have while they are trained
)
_OF_A_NET = re.compile(
    r"engine|compile_net_state(\..*)?"  # Intel's
    # NVIDIA's
    r"|default_(forward|backward)_(type|math)|default_(conv_algos|cudnn_math)_override"
    r"|global_grad_scale(_adaptive)?|reduce_buckets|eval_precision"
)
# Intel's int8, with the names that only its Caffe gives them (source: intel/caffe,
# src/caffe/layers/mkldnn_convolution_layer.cpp: a layer quantizes in phase TEST only).
_IN_TEST_ONLY = re.compile(
    r"quantization_param\.(bw_(layer_in|layer_out|params)|scale_(in|out|params)|force_u8_input|is_negative_input)"
)
_INTEL_FILLER = "batch_norm_param.filler"


def drop_implementation_fields(net: pb.NetParameter, notes: list[str]) -> pb.NetParameter:
    """Return the net (modern form) without such fields; ``notes`` lists them, with the number of layers."""
    out = pb.NetParameter()
    out.CopyFrom(net)
    found = Counter(dict.fromkeys(_take(out, _OF_A_NET), 1))
    for layer in out.layer:
        names = _take(layer, _OF_A_LAYER)
        if _INTEL_FILLER in names:
            layer.batch_norm_param.ClearField("bias_filler")  # Intel's too; without `filler` it is NVIDIA's
        found.update(names)
    if found:
        named = ", ".join(
            name + (f" ({count} layers)" if count > 1 else "") for name, count in sorted(found.items())
        )
        notes.append(f"ignored, since it chooses an implementation in a fork of Caffe: {excerpt(named, 300)}")
    return out


def drop_test_fields(net: pb.NetParameter, phase: str, notes: list[str] | None = None) -> pb.NetParameter:
    """Return the net (modern form), for phase TRAIN without the fields that have an effect in phase TEST only."""
    if phase != "TRAIN":
        return net
    out = pb.NetParameter()
    out.CopyFrom(net)
    layers = sum(bool(_take(layer, _IN_TEST_ONLY)) for layer in out.layer)
    if layers and notes is not None:
        of = f" ({layers} layers)" if layers > 1 else ""
        notes.append(
            f"ignored in phase TRAIN, since Intel's Caffe reads it in phase TEST only: quantization_param{of}"
        )
    return out if layers else net


def _take(keeper: pb.NetParameter | pb.LayerParameter, pattern: re.Pattern[str]) -> set[str]:
    """Remove the unknown fields that match, and return their names."""
    names: set[str] = set()
    kept = []
    for field in keeper.fork_field:
        path = without_indices(field.path)
        if match := pattern.fullmatch(path):
            inside = next((group for group in match.groups() if group and group.startswith(".")), "")
            names.add(path.removesuffix(inside))
        else:
            kept.append(pb.ForkField.FromString(field.SerializeToString()))
    del keeper.fork_field[:]
    keeper.fork_field.extend(kept)
    return names
