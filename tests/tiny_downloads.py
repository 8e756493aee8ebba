"""Small folders that look like the downloads of the public sets: names, nesting, bits, channels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = (24, 32)
"""Height and width of the pictures, where the published size does not matter."""


def picture(
    seed: int, channels: int = 3, size: tuple[int, int] = SIZE, bits: int = 8
) -> np.ndarray:
    """Smooth levels, red first: (h, w) or (h, w, channels)."""
    rng = np.random.default_rng(seed)
    shape = (*size, channels) if channels > 1 else size
    full = 255 if bits == 8 else 65535
    noise = cv2.GaussianBlur(rng.random(shape, np.float32), (0, 0), 2)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return np.rint(noise * full).astype(np.uint8 if bits == 8 else np.uint16)


def label_map(seed: int, values: int, first: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (h, w), blocks of values first .. first + values - 1; all of them occur."""
    rng = np.random.default_rng(seed)
    order = np.resize(rng.permutation(values), (size[0] // 4) * (size[1] // 4))
    blocks = order.reshape(size[0] // 4, size[1] // 4)
    return (np.kron(blocks, np.ones((4, 4), int)) + first).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Writes pixels (red first) in the format that the ending names; returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {2: pixels}.get(pixels.ndim)
    if order is None:
        code = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        order = cv2.cvtColor(pixels, code)
    assert cv2.imwrite(str(path), order)
    return pixels


def voc(path: Path, boxes: list[tuple[str, int, int, int, int]], size=SIZE) -> None:
    """An XML annotation as labelling programs write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    things = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    text = f"<annotation><filename>{path.stem}.png</filename>{shape}{things}</annotation>"
    path.write_text(text, encoding="utf8")


def msrs(root: Path, train: int = 4, test: int = 3, size: tuple[int, int] = SIZE) -> Path:
    """MSRS as its repository unpacks."""
    start = root / "MSRS-main"
    for split, count, shift in (("train", train, 0), ("test", test, 100)):
        for i in range(count):
            stem = f"{shift + i:05d}{'DN'[i % 2]}.png"
            save(start / split / "vi" / stem, picture(shift + i, 3, size))
            save(start / split / "ir" / stem, picture(shift + i + 1000, 1, size))
            labels = label_map(shift + i, 9, 0, size)
            save(start / split / "Segmentation_labels" / stem, labels)
    (start / "README.md").write_text("MSRS\n", encoding="utf8")
    return start


def msrs_detection(root: Path, count: int = 3) -> Path:
    """The pairs with boxes that lie beside MSRS' parts; one has none."""
    for i in range(count):
        save(root / "detection" / "vi" / f"{i + 1}.png", picture(i))
        save(root / "detection" / "ir" / f"{i + 1}.png", picture(i + 50, 1))
        text = "" if i == 0 else f"0 0.5 0.5 0.25 0.5\n{i % 3} 0.25  0.5 0.5 0.25\n"
        path = root / "detection" / "labels" / f"{i + 1}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return root


def mfnet(root: Path) -> Path:
    """MFNet: four channels in one PNG, lists beside the folders, mirrored copies in train.txt."""
    start = root / "ir_seg_dataset"
    parts = {
        "train": ["00001D", "00003N"],
        "val": ["00006N"],
        "test": ["00004D", "00005N", "00008D"],
    }
    for stem in [stem for part in parts.values() for stem in part]:
        number = int(stem[:5])
        save(start / "images" / f"{stem}.png", picture(number, 4))
        save(start / "labels" / f"{stem}.png", label_map(number, 9))
    flips = [f"{stem}_flip" for stem in parts["train"]]
    lists = parts | {
        "train": parts["train"] + flips,
        "test_day": ["00004D", "00008D"],
        "test_night": ["00005N"],
    }
    for name, stems in lists.items():
        (start / f"{name}.txt").write_text("".join(f"{s}\n" for s in stems), encoding="utf8")
    (start / "make_flip.py").write_text("", encoding="utf8")
    return start


def fmb(root: Path, train: int = 3, test: int = 2) -> Path:
    """FMB: values 0 (unlabelled) to 14."""
    for split, count, shift in (("train", train, 0), ("test", test, 50)):
        for i in range(count):
            name = f"{shift + i:05d}.png"
            save(root / split / "Visible" / name, picture(shift + i))
            save(root / split / "Infrared" / name, picture(shift + i + 500, 1))
            save(root / split / "Label" / name, label_map(shift + i, 15))
    return root


def m3fd(root: Path, numbers: list[int]) -> Path:
    """M3FD's part for detection; infrared has three equal channels."""
    start = root / "M3FD_Detection"
    for number in numbers:
        save(start / "Vis" / f"{number:05d}.png", picture(number))
        gray = picture(number + 9000, 1)
        save(start / "Ir" / f"{number:05d}.png", np.repeat(gray[..., None], 3, axis=2))
        boxes = [("People", 2, 3, 10, 20), ("Truck", 0, 0, 32, 24)][: number % 3]
        voc(start / "Annotation" / f"{number:05d}.xml", boxes)
    return root


def m3fd_fusion(root: Path, count: int = 2) -> Path:
    """M3FD's part for fusion."""
    for i in range(count):
        save(root / "M3FD_Fusion" / "Vis" / f"{i:05d}.png", picture(i))
        save(root / "M3FD_Fusion" / "Ir" / f"{i:05d}.png", picture(i + 70, 1))
    return root


def roadscene(root: Path, count: int = 3) -> Path:
    """RoadScene: JPEG, each pair of its own size, a second visible folder of another size."""
    for i in range(count):
        size = (SIZE[0] + 2 * i, SIZE[1] + i)
        name = f"FLIR_{i * 37:05d}.jpg"
        save(root / "crop_LR_visible" / name, picture(i, 3, size))
        save(root / "crop_HR_visible" / name, picture(i, 3, (2 * size[0], 2 * size[1])))
        save(root / "cropinfrared" / name, picture(i + 30, 1, size))
    return root


def tno(root: Path) -> Path:
    """TNO's published tree: a folder a scene, gray BMP, bands told by name, at times a third."""
    start = root / "TNO_Image_Fusion_Dataset"
    scenes = {
        "Athena_images/lake": ("IR_lake_g.bmp", "VIS_lake_r.bmp"),
        "Athena_images/heather": ("IR_hei_vis_g.bmp", "VIS_hei_vis_r.bmp"),
        "Athena_images/bunker": ("IR_bunker_g.bmp", "bunker_r.bmp"),
        "Triclobs_images/Farm": ("Farm_IR.bmp", "Farm_Vis.bmp", "Farm_II.bmp"),
        "Triclobs_images/Kaptein_01": ("IR01.bmp", "Vis01.bmp", "NIR01.bmp"),
        "DHV_images/house": ("1_house.bmp", "2_house.bmp"),
    }
    for number, (folder, names) in enumerate(scenes.items()):
        for i, name in enumerate(names):
            save(start / folder / name, picture(10 * number + i, 1))
    (start / "README.txt").write_text("TNO\n", encoding="utf8")
    return start


def llvip(root: Path, train: int = 3, test: int = 2) -> Path:
    """LLVIP: JPEG, annotations of both parts in one folder."""
    start = root / "LLVIP"
    for split, count, shift in (("train", train, 10001), ("test", test, 190001)):
        for i in range(count):
            name = f"{shift + i:06d}"
            save(start / "visible" / split / f"{name}.jpg", picture(shift + i))
            save(start / "infrared" / split / f"{name}.jpg", picture(shift + i + 7, 1))
            voc(start / "Annotations" / f"{name}.xml", [("person", 1, 2, 9, 20)])
    return start


def folders(root: Path, count: int = 3, bits: int = 16) -> Path:
    """Pairs of one's own, with labels of four classes and boxes."""
    for i in range(count):
        save(root / "vi" / f"a{i}.png", picture(i))
        save(root / "ir" / f"a{i}.png", picture(i + 5, 1, bits=bits if i else 8))
        save(root / "labels" / f"a{i}.png", label_map(i, 4))
        (root / "boxes").mkdir(exist_ok=True)
        (root / "boxes" / f"a{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf8")
    return root


def make(name: str, root: Path) -> Path:
    """The download of a set by name; the folder to give as its root."""
    makers = {
        "msrs": msrs,
        "msrs_detection": msrs_detection,
        "mfnet": mfnet,
        "fmb": fmb,
        "m3fd": lambda where: m3fd(where, [0, 1, 150, 195, 205, 250, 305]),
        "m3fd_fusion": m3fd_fusion,
        "roadscene": roadscene,
        "tno": tno,
        "llvip": llvip,
        "folders": folders,
    }
    makers[name](root)
    return root
