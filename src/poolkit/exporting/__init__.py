"""`poolkit.export_onnx`: models with poolkit's poolings as ONNX files of standard operators."""

from . import regions as _regions  # noqa: F401 - enters expressions
from .exporter import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]
