"""TFDS builders of the public sets, which prepare and read without TensorFlow.

    builder = create("msrs", root="downloads/MSRS", data_dir="prepared")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]["visible"]    # uint8 (480, 640, 3)

TFDS needs TensorFlow to write TFRecord and to encode arrays; ArrayRecord, and pictures handed over
as encoded bytes, need none. Importing this module imports TFDS: import it where it is used.
`jaxfuse data prepare` writes the same files, in parallel and so that it can be continued, which
TFDS' own writer is not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxfuse.data.builders.base import TIMES, Dataset, Entry, require_whole
from jaxfuse.data.builders.classes import Coding
from jaxfuse.data.builders.examples import Form, make_example
from jaxfuse.data.builders.layouts import named
from jaxfuse.data.builders.prepare import UnsoundError
from jaxfuse.data.builders.soundness import check_download, form_of

VERSION = "1.0.0"
"""Of what a record holds; raised when records are no longer read by what read them before."""

_PICTURES = ("visible", "infrared", "labels")


def features(form: Form) -> tfds.features.FeaturesDict:
    """What TFDS is told of a record."""
    visible, infrared = (
        np.uint8 if bits == 8 else np.uint16 for bits in (form.visible_bits, form.infrared_bits)
    )
    parts: dict[str, Any] = {
        "visible": tfds.features.Image(
            shape=(None, None, 3), dtype=visible, encoding_format=_format(form.visible_bits)
        ),
        "infrared": tfds.features.Image(
            shape=(None, None, 1), dtype=infrared, encoding_format=_format(form.infrared_bits)
        ),
        "stem": tfds.features.Text(),
        "time": tfds.features.ClassLabel(names=list(TIMES)),
    }
    if form.labels:
        parts["labels"] = tfds.features.Image(
            shape=(None, None, 1), encoding_format="png", use_colormap=True
        )
    if form.boxes:
        parts["boxes"] = tfds.features.Tensor(shape=(None, 5), dtype=np.float32)
    return tfds.features.FeaturesDict(parts)


def _format(bits: int) -> str | None:
    return "png" if bits == 16 else None  # 8-bit pictures may be JPEG.


def for_tfds(values: dict[str, Any]) -> dict[str, Any]:
    """The example as TFDS takes it: encoded pictures as files in memory."""
    return {key: io.BytesIO(value) if key in _PICTURES else value for key, value in values.items()}


def serialize(form: Form) -> Callable[[dict[str, Any]], bytes]:
    """A function from an example's values to the bytes of a record, equal in every process."""
    description = features(form)
    serializer = tfds.core.example_serializer.ExampleSerializer(description.get_serialized_info())

    def to_bytes(values: dict[str, Any]) -> bytes:
        message = serializer.get_tf_example(description.encode_example(for_tfds(values)))
        return message.SerializeToString(deterministic=True)  # Else maps go in any order.

    return to_bytes


def facts(dataset: Dataset) -> dict[str, Any]:
    """What TFDS stores of a set beside its features."""
    return {
        "description": f"{dataset.title}. Licence: {dataset.licence}.",
        "homepage": dataset.source,
        "citation": dataset.source,
        "disable_shuffling": True,
    }


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds one public set from the folder of its download, in the order of stems."""

    VERSION = tfds.core.Version(VERSION)
    # TFDS 4.9.10 finds this out through importlib_resources, which nothing installs any more.
    code_path = Path(__file__)

    def __init__(
        self,
        *,
        root: str | Path,
        coding: Coding = "index",
        allow_incomplete: bool = False,
        **more: Any,
    ) -> None:
        """root: where the download was unpacked. coding: what its label files hold."""
        self._root, self._coding, self._allow_incomplete = Path(root), coding, allow_incomplete
        self._dataset = named(self.name)
        self._found = self._dataset.find(self._root)
        require_whole(self._found, str(root))
        self._form = form_of(self._dataset, self._found, coding)
        more.setdefault("file_format", "array_record")
        super().__init__(**more)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=features(self._form), **facts(self._dataset)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # Nothing is downloaded: most of these sets may only be fetched by hand.
        checked = check_download(self._dataset, self._root, coding=self._coding)
        if checked.errors or (checked.incomplete and not self._allow_incomplete):
            raise UnsoundError(checked)
        return {name: self._generate_examples(e) for name, e in self._found.splits.items() if e}

    def _generate_examples(self, entries: tuple[Entry, ...]) -> Iterator[tuple[int, Any]]:
        for number, entry in enumerate(entries):
            yield number, for_tfds(make_example(entry, self._dataset, self._form).values)


class Msrs(PairBuilder, skip_registration=True):
    """MSRS, PIAFusion 2022."""

    name = "msrs"


class MsrsDetection(PairBuilder, skip_registration=True):
    """MSRS' pairs with boxes."""

    name = "msrs_detection"


class Mfnet(PairBuilder, skip_registration=True):
    """MFNet, IROS 2017."""

    name = "mfnet"


class Fmb(PairBuilder, skip_registration=True):
    """FMB, SegMiF, ICCV 2023."""

    name = "fmb"


class M3fd(PairBuilder, skip_registration=True):
    """M3FD with boxes, TarDAL, CVPR 2022."""

    name = "m3fd"


class M3fdFusion(PairBuilder, skip_registration=True):
    """M3FD's pairs for fusion."""

    name = "m3fd_fusion"


class Roadscene(PairBuilder, skip_registration=True):
    """RoadScene, U2Fusion, TPAMI 2020."""

    name = "roadscene"


class Tno(PairBuilder, skip_registration=True):
    """TNO Image Fusion Dataset, 2014."""

    name = "tno"


class Llvip(PairBuilder, skip_registration=True):
    """LLVIP, ICCV workshops 2021."""

    name = "llvip"


class Folders(PairBuilder, skip_registration=True):
    """Any pairs."""

    name = "folders"


BUILDERS: dict[str, type[PairBuilder]] = {
    builder.name: builder
    for builder in (
        Msrs,
        MsrsDetection,
        Mfnet,
        Fmb,
        M3fd,
        M3fdFusion,
        Roadscene,
        Tno,
        Llvip,
        Folders,
    )
}


def create(name: str, root: str | Path, **more: Any) -> PairBuilder:
    """A TFDS builder of a set by name; more goes to TFDS, above all data_dir.

    Raises ConfigError for an unknown name, FileError for a download that is not this set's.
    """
    named(name)
    return BUILDERS[name](root=root, **more)
