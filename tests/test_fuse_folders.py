"""Fusing files and folders: what is written where, and what a bad pair does to the others."""

from __future__ import annotations

from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import jaxfuse
import tiny_network
from jaxfuse.config import SourceConfig
from jaxfuse.data import images
from jaxfuse.data.folders import FolderPairs
from jaxfuse.data.pairs import DataError
from jaxfuse.infer.folders import fuse_paths
from jaxfuse.infer.predict import Fuser, fuse
from jaxfuse.models import Compute

SIZE = (9, 11)
STEMS = ("a", "b.night", "c d")


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    model = tiny_network.create(Compute())
    return Fuser(tiny_network.NAME, model.init(jax.random.key(0)), {}, model)


def make_pair(root: Path, stem: str, ending: str = ".png", size: tuple[int, int] = SIZE) -> None:
    rng = np.random.default_rng(sum(stem.encode()))
    for folder, shape in (("vi", (*size, 3)), ("ir", size)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        image = 0.3 + 0.4 * rng.random(shape, np.float32)
        images.write(root / folder / f"{stem}{ending if folder == 'vi' else '.png'}", image)


@pytest.fixture
def root(tmp_path) -> Path:
    for stem in STEMS:
        make_pair(tmp_path, stem)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def expected(root: Path, stem: str, fuser: Fuser, **options) -> np.ndarray:
    visible = images.read_visible(root / "vi" / f"{stem}.png")
    return fuse(visible, images.read_infrared(root / "ir" / f"{stem}.png"), fuser, **options)


# Files


def test_one_pair_into_a_file(root, fuser):
    out = root / "new" / "folder" / "fused.png"
    summary = fuse_paths(root / "ir" / "a.png", str(root / "vi" / "a.png"), out, fuser)
    assert summary.written == [out] and summary.failed == []
    assert names(out.parent) == ["fused.png"]
    found = images.read_visible(out)
    assert found.shape == (*SIZE, 3)
    assert np.abs(found - expected(root, "a", fuser)).max() <= 0.5 / 255 + 1e-6


def test_one_pair_into_a_folder(root, fuser):
    out = root / "out"
    out.mkdir()
    summary = fuse_paths(root / "ir" / "c d.png", root / "vi" / "b.night.png", out, fuser)
    assert summary.written == [out / "b.night.png"]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg", "x.bmp", "x.webp"])
def test_kinds_of_files(root, fuser, name):
    fuse_paths(root / "ir" / "a.png", root / "vi" / "a.png", root / name, fuser)
    assert images.size(root / name) == SIZE


def test_sixteen_bits(root, fuser):
    out = root / "fused.png"
    fuse_paths(root / "ir" / "a.png", root / "vi" / "a.png", out, fuser, bits=16)
    raw = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert raw.dtype == np.uint16
    found = raw[..., ::-1] / 65535
    assert np.abs(found - expected(root, "a", fuser)).max() <= 0.51 / 65535


def test_options_reach_the_network(root, fuser):
    out = root / "fused.tif"
    fuse_paths(
        root / "ir" / "a.png", root / "vi" / "a.png", out, fuser, stretch="minmax", method="tiles"
    )
    wanted = expected(root, "a", fuser, stretch="minmax", method="tiles")
    assert np.abs(images.read_visible(out) - wanted).max() <= 0.5 / 255 + 1e-6
    dim = root / "dim.png"
    images.write(dim, images.read_infrared(root / "ir" / "a.png") / 100, bits=16)
    for name, stretch in (("plain.png", "none"), ("spread.png", "minmax")):
        fuse_paths(dim, root / "vi" / "a.png", root / name, fuser, infrared_stretch=stretch)
    plain, spread = (images.read_visible(root / n) for n in ("plain.png", "spread.png"))
    assert np.abs(plain - spread).max() > 0.05


# Folders


def test_folders(root, fuser):
    told = []
    summary = fuse_paths(
        root / "ir", root / "vi", root / "out", fuser, progress=lambda *args: told.append(args)
    )
    assert names(root / "out") == [f"{stem}.png" for stem in STEMS]
    assert summary.written == [root / "out" / f"{stem}.png" for stem in STEMS]
    assert summary.failed == []
    assert told == [(i + 1, len(STEMS), f"{stem}.png") for i, stem in enumerate(STEMS)]
    for stem in STEMS:
        found = images.read_visible(root / "out" / f"{stem}.png")
        assert np.abs(found - expected(root, stem, fuser)).max() <= 0.5 / 255 + 1e-6


def test_another_ending(root, fuser):
    fuse_paths(root / "ir", root / "vi", root / "out", fuser, suffix=".tif", bits=16)
    assert names(root / "out") == [f"{stem}.tif" for stem in STEMS]
    assert images.decode(root / "out" / "a.tif").bits == 16


def test_a_bad_pair_does_not_stop_the_others(root, fuser):
    bad = {"b0": "truncated", "b1": "9 x 12", "b2": "pseudo-colour"}
    for stem in bad:
        make_pair(root, stem)
    data = (root / "vi" / "b0.png").read_bytes()
    (root / "vi" / "b0.png").write_bytes(data[: len(data) // 2])
    images.write(root / "ir" / "b1.png", np.full((9, 12), 0.5, np.float32))
    (root / "ir" / "b2.png").write_bytes((root / "vi" / "a.png").read_bytes())
    summary = fuse_paths(root / "ir", root / "vi", root / "out", fuser)
    assert names(root / "out") == [f"{stem}.png" for stem in STEMS]
    assert [path.name for path in summary.written] == names(root / "out")
    assert [path for path, _ in summary.failed] == [root / "out" / f"{stem}.png" for stem in bad]
    for (_, message), (stem, why) in zip(summary.failed, bad.items(), strict=True):
        assert why in message and f"{stem}.png" in message and "\n" not in message


def test_a_bad_single_pair_is_an_error(root, fuser):
    (root / "ir" / "a.png").write_bytes(b"")
    out = root / "fused.png"
    with pytest.raises(DataError, match=r"ir/a\.png: an empty file"):
        fuse_paths(root / "ir" / "a.png", root / "vi" / "a.png", out, fuser)
    assert not out.exists()


def test_what_was_there_stays_when_a_pair_is_bad(root, fuser):
    out = root / "out"
    fuse_paths(root / "ir", root / "vi", out, fuser)
    before = (out / "a.png").read_bytes()
    (root / "ir" / "a.png").write_bytes(b"")
    summary = fuse_paths(root / "ir", root / "vi", out, fuser, overwrite=True)
    assert len(summary.failed) == 1 and len(summary.written) == 2
    assert (out / "a.png").read_bytes() == before


# What is refused before anything is computed


@pytest.fixture
def untouched(root, monkeypatch) -> Path:
    """The root; fusing anything would fail."""

    def never(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr("jaxfuse.infer.folders.fuse", never)
    return root


def assert_refused(message: str, *args, **options) -> None:
    with pytest.raises(DataError, match=message) as error:
        fuse_paths(*args, **options)
    assert "\n" not in str(error.value)


def test_results_that_exist(untouched, fuser):
    root, out = untouched, untouched / "out"
    out.mkdir()
    for stem in STEMS[1:]:
        (out / f"{stem}.png").write_bytes(b"mine")
    message = r"b\.night\.png: exists already, as 2 of 3 results do: add --overwrite"
    assert_refused(message, root / "ir", root / "vi", out, fuser)
    pair = root / "ir" / "a.png", root / "vi" / "a.png"
    assert_refused(r"as 1 of 1 results do", *pair, out / "c d.png", fuser)
    assert {path.read_bytes() for path in out.iterdir()} == {b"mine"}


def test_overwriting_is_asked_for(root, fuser):
    out = root / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    summary = fuse_paths(root / "ir", root / "vi", out, fuser, overwrite=True)
    assert len(summary.written) == 3
    assert images.size(out / "a.png") == SIZE


@pytest.mark.parametrize("folder", ["ir", "vi", "vi/../ir"])
def test_inputs_are_never_replaced(untouched, fuser, folder):
    root = untouched
    message = r"a\.png: is one of the images to fuse: name another place"
    assert_refused(message, root / "ir", root / "vi", root / folder, fuser, overwrite=True)
    pair = root / "ir" / "a.png", root / "vi" / "a.png"
    assert_refused(message, *pair, root / folder / "a.png", fuser, overwrite=True)


def test_stems_without_a_partner(untouched, fuser):
    root = untouched
    (root / "vi" / "a.png").unlink()
    assert_refused(
        r"1 file without a partner: .*ir/a\.png", root / "ir", root / "vi", root / "o", fuser
    )
    assert not (root / "o").exists()


def test_places_that_cannot_be(untouched, fuser):
    root = untouched
    pair = root / "ir" / "a.png", root / "vi" / "a.png"
    assert_refused(
        r"nowhere: no such file or folder", root / "nowhere", pair[1], root / "o.png", fuser
    )
    assert_refused(
        r"ir: is a folder, but .*a\.png a file", root / "ir", pair[1], root / "o.png", fuser
    )
    assert_refused(r"o\.gif: ending '\.gif': use one of \.bmp", *pair, root / "o.gif", fuser)
    assert_refused(r"o\.jpg: bits = 16: use \.png", *pair, root / "o.jpg", fuser, bits=16)
    assert_refused(
        r"a\.webp: bits = 16",
        *(root / n for n in ("ir", "vi", "o")),
        fuser,
        bits=16,
        suffix=".webp",
    )
    assert_refused(r"a\.png: is a file, but folders", root / "ir", root / "vi", pair[0], fuser)
    assert_refused(r"a\.png: is a file, but results are to lie", *pair, pair[0] / "o.png", fuser)
    assert not (root / "o").exists()


def test_an_all_black_picture_is_named(tmp_path, fuser):
    """It does not stop the others of its folder."""
    for stem in STEMS:
        make_pair(tmp_path, stem)
    black = np.zeros((*SIZE, 1), np.float32)
    images.write(tmp_path / "ir" / "a.png", black)
    summary = fuse_paths(tmp_path / "ir", tmp_path / "vi", tmp_path / "out", fuser)
    ((target, words),) = summary.failed
    assert target.name == "a.png" and not target.exists()
    assert "ir/a.png: all black (no value above 0): record it again" in words
    assert len(summary.written) == len(STEMS) - 1
    with pytest.raises(DataError, match=r"a\.png: all black"):
        FolderPairs.open(SourceConfig(kind="folders", root=str(tmp_path)))[0]
    assert images.read_infrared(tmp_path / "ir" / "a.png").max() == 0


def test_what_has_no_ending_of_a_picture_is_not_left_out_in_silence(tmp_path, fuser):
    make_pair(tmp_path, "a")
    make_pair(tmp_path, "b")
    (tmp_path / "ir" / "b.png").rename(tmp_path / "ir" / "b.txt")
    (tmp_path / "vi" / "b.png").rename(tmp_path / "vi" / "b.txt")
    (tmp_path / "vi" / "Thumbs.db").touch()
    summary = fuse_paths(tmp_path / "ir", tmp_path / "vi", tmp_path / "out", fuser)
    assert [path.name for path in summary.written] == ["a.png"]
    of_infrared, of_visible = summary.doubts
    assert of_infrared.startswith(f"{tmp_path / 'ir' / 'b.txt'}: left out, with all 1 of its fol")
    assert of_visible.startswith(f"{tmp_path / 'vi' / 'b.txt'}: left out")
    pair = (tmp_path / "ir" / "b.txt", tmp_path / "vi" / "b.txt")
    assert fuse_paths(*pair, tmp_path / "b.png", fuser).doubts == []


def test_a_fuser_tells_what_it_is_without_its_arrays(fuser):
    assert (
        repr(jaxfuse.load("lite"))
        == "Fuser(lite, 137,480 parameters, experiment packaged_lite_contrast, step 2000)"
    )


def test_a_dark_16_bit_infrared_is_remarked(tmp_path, fuser):
    make_pair(tmp_path, "a")
    heat = images.read_infrared(tmp_path / "ir" / "a.png")
    (tmp_path / "ir" / "a.png").unlink()
    images.write(tmp_path / "ir" / "a.png", heat / 50, bits=16)
    pair = (tmp_path / "ir" / "a.png", tmp_path / "vi" / "a.png")
    (said,) = fuse_paths(*pair, tmp_path / "x.png", fuser).doubts
    assert "a.png: its 16-bit values reach from 0.0" in said and "--infrared-stretch" in said
    assert fuse_paths(*pair, tmp_path / "y.png", fuser, infrared_stretch="minmax").doubts == []
    images.write(pair[0], heat / 50)  # 8 bits: dark, but that is what the file says
    assert fuse_paths(*pair, tmp_path / "z.png", fuser).doubts == []


def test_a_bad_pair_leaves_no_folder(tmp_path, fuser):
    make_pair(tmp_path, "a")
    path = tmp_path / "ir" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError):
        fuse_paths(path, tmp_path / "vi" / "a.png", tmp_path / "new" / "out" / "x.png", fuser)
    assert not (tmp_path / "new").exists()
