"""Caffe's phases, as numbers."""

from __future__ import annotations

from ..schema import caffe_pb2 as pb

TRAIN = pb.TRAIN
TEST = pb.TEST
