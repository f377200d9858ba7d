"""Caffe's messages under the name by which scripts import them, `caffe.proto.caffe_pb2`."""

from . import caffe_pb2

__all__ = ["caffe_pb2"]
