"""ONNX graphs, converted by jax2onnx and run by onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxfuse.export.flat import flatten
from jaxfuse.export.program import REMEDY, ExportError, Run, Settings, function
from jaxfuse.infer.predict import Fuser

INPUTS = ("visible", "infrared")
OUTPUT = "fused"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # jax2onnx tells of each of its plugins for other libraries that does not suit this JAX.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def require() -> None:
    """Raises ExportError where what converts and runs graphs is not installed."""
    try:
        with _quiet():
            import jax2onnx
            import onnx
            import onnxruntime
    except ImportError as error:
        raise ExportError(f"{error.name} is missing: {REMEDY}") from error
    del jax2onnx, onnx, onnxruntime


def build(fuser: Fuser, settings: Settings, about: Mapping[str, str]) -> bytes:
    """The graph with weights inside, inputs "visible" and "infrared", output "fused".

    about: what the graph says of itself, as metadata.
    """
    image = settings.image()
    with _quiet():
        import jax2onnx
        import onnx

        # Traced before jax2onnx sees it: while it traces, it replaces functions of JAX by its own,
        # which do not take all that JAX's take.
        program = flatten(function(fuser, "onnx"), image, image)
        model = jax2onnx.to_onnx(
            program,
            [image, image],
            model_name=fuser.name,
            opset=settings.opset,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
        )
        # Runtimes find the shapes between by themselves.
        del model.graph.value_info[:]
        # A newer one than needed shuts out older runtimes.
        model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
        model.producer_name, model.producer_version = "jaxfuse", about["jaxfuse"]
        model.doc_string = about["call"]
        onnx.helper.set_model_props(model, dict(about))
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def runner(data: bytes) -> Run:
    """The graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait by spinning take the processor from whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])

    def run(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], dict(zip(INPUTS, (visible, infrared), strict=True)))[0]

    return run
