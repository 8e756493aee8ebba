"""Made-up scenes: reproducible, registered, labelled, and unlike by night and by sensor."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest

from jaxfuse.config import SourceConfig
from jaxfuse.data.pairs import DataError, Pair
from jaxfuse.data.scenes import world
from jaxfuse.data.synthetic import CLASSES, SENSORS, SMALLEST_BOX, VARIED, SyntheticPairs

HEIGHT, WIDTH, SCENES = 120, 160, 12
CAR, PERSON, BICYCLE = (CLASSES.index(name) for name in ("car", "person", "bicycle"))


def _pairs(sensor: str = "clear", night_share: float = 0.5, seed: int = 3) -> SyntheticPairs:
    return SyntheticPairs(SCENES, HEIGHT, WIDTH, seed, sensor, night_share)


@pytest.fixture(scope="module")
def night() -> list[Pair]:
    pairs = _pairs(night_share=1.0)
    return [pairs[k] for k in range(SCENES)]


@pytest.fixture(scope="module")
def day() -> list[Pair]:
    pairs = _pairs(night_share=0.0)
    return [pairs[k] for k in range(SCENES)]


def _same(one: Pair, other: Pair) -> bool:
    arrays = zip(one[1:], other[1:], strict=True)
    return one.stem == other.stem and all(np.array_equal(a, b) for a, b in arrays)


def _gray(pair: Pair) -> np.ndarray:
    return pair.visible @ np.array((0.299, 0.587, 0.114), np.float32)


def _contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Distance of the mean inside a mask from the mean of its surroundings, in grey levels of 1."""
    around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~mask
    return abs(float(image[mask].mean()) - float(image[around].mean()))


def test_a_scene_is_bitwise_the_same_in_any_order() -> None:
    pairs = _pairs()
    forward = [pairs[k] for k in range(4)]
    backward = [_pairs()[k] for k in reversed(range(4))][::-1]
    assert all(_same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not np.array_equal(forward[0].visible, forward[1].visible)
    assert not np.array_equal(forward[0].labels, _pairs(seed=4)[0].labels)


def test_a_scene_does_not_depend_on_how_many_scenes_there_are() -> None:
    assert _same(SyntheticPairs(1, 64, 64, 5)[0], SyntheticPairs(900, 64, 64, 5)[0])


def test_another_process_draws_the_same_scene(
    fresh_python: Callable[..., CompletedProcess[str]],
) -> None:
    code = (
        "import hashlib, sys\n"
        "from jaxfuse.data.synthetic import SyntheticPairs\n"
        "pair = SyntheticPairs(3, 64, 64, 9)[2]\n"
        "print(hashlib.sha256(b''.join(part.tobytes() for part in pair[1:])).hexdigest())\n"
        "assert 'jax' not in sys.modules, 'data must not import jax'\n"
    )
    first = fresh_python("-c", code)
    assert first.returncode == 0, first.stderr
    pair = SyntheticPairs(3, 64, 64, 9)[2]
    here = hashlib.sha256(b"".join(part.tobytes() for part in pair[1:])).hexdigest()
    assert first.stdout.strip() == here


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (97, 60), (240, 320)])
@pytest.mark.parametrize("sensor", sorted((*SENSORS, VARIED)))
def test_shapes_types_and_ranges(height: int, width: int, sensor: str) -> None:
    pairs = SyntheticPairs(2, height, width, 1, sensor)
    for index in range(2):
        pair = pairs[index]
        assert pairs.size(index) == (height, width)
        assert pair.visible.shape == (height, width, 3)
        assert pair.infrared.shape == (height, width, 1)
        for image in (pair.visible, pair.infrared):
            assert image.dtype == np.float32
            assert image.min() >= 0 and image.max() <= 1
            assert image.std() > 0.01
            np.testing.assert_allclose(image * 255, np.rint(image * 255), atol=1e-3)
        assert pair.labels is not None and pair.boxes is not None
        assert pair.labels.shape == (height, width) and pair.labels.dtype == np.int32
        assert pair.boxes.ndim == 2 and pair.boxes.shape[1] == 5
        assert pair.boxes.dtype == np.float32


def test_size_only_scales_the_scene() -> None:
    small = SyntheticPairs(1, 90, 120, 2)[0].labels
    large = SyntheticPairs(1, 180, 240, 2)[0].labels
    assert np.mean(small == large[1::2, 1::2]) > 0.93


def test_labels_are_known_classes_and_all_of_them_occur(night: list[Pair], day: list[Pair]) -> None:
    found = set()
    for pair in night + day:
        found |= set(np.unique(pair.labels).tolist())
    assert found == set(range(len(CLASSES)))


def test_boxes_fit_the_labels_exactly(night: list[Pair], day: list[Pair]) -> None:
    seen = {CAR: 0, PERSON: 0, BICYCLE: 0}
    for pair in night + day:
        for x0, y0, x1, y1, label in pair.boxes.astype(int):
            assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
            inside = pair.labels[y0:y1, x0:x1] == label
            assert inside.sum() >= SMALLEST_BOX
            # The outermost rows and columns of a tight box hold some of its thing.
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            seen[label] += 1
    assert min(seen.values()) > 0


def test_every_visible_thing_has_its_box_and_no_other(night: list[Pair]) -> None:
    for index in range(4):
        layers = world(3, index, HEIGHT, WIDTH, 1.0).layers
        np.testing.assert_array_equal(layers.labels, night[index].labels)
        things = np.isin(layers.labels, (CAR, PERSON, BICYCLE))
        np.testing.assert_array_equal(things, layers.instances > 0)
        expected = []
        for number in sorted(set(layers.instances[things].tolist())):
            places = np.argwhere(layers.instances == number)
            (label,) = {int(layers.labels[y, x]) for y, x in places}
            if len(places) >= 12:
                (y0, x0), (y1, x1) = places.min(0), places.max(0) + 1
                expected.append((x0, y0, x1, y1, label))
        np.testing.assert_array_equal(night[index].boxes, np.array(expected, np.float32))
        assert len(expected) > 0


def test_stems_are_unique_and_tell_night_from_day() -> None:
    pairs = _pairs()
    stems = [pairs.stem(k) for k in range(SCENES)]
    assert len(set(stems)) == len(pairs) == SCENES
    assert stems[7][:6] == "000007"
    assert {stem[-1] for stem in stems} == {"N", "D"}
    assert all(pairs[k].stem == stems[k] for k in range(3))
    assert {_pairs(night_share=1.0).stem(k)[-1] for k in range(SCENES)} == {"N"}
    assert {_pairs(night_share=0.0).stem(k)[-1] for k in range(SCENES)} == {"D"}


def test_night_is_darker_than_day(night: list[Pair], day: list[Pair]) -> None:
    dark = [float(_gray(pair).mean()) for pair in night]
    bright = [float(_gray(pair).mean()) for pair in day]
    assert np.mean(dark) < 0.6 * np.mean(bright)
    assert max(dark) < np.mean(bright)


def test_people_stand_out_in_infrared_at_night(night: list[Pair]) -> None:
    visible, infrared = [], []
    for pair in night:
        mask = pair.labels == PERSON
        if mask.sum() > 30:
            visible.append(_contrast(_gray(pair), mask))
            infrared.append(_contrast(pair.infrared[..., 0], mask))
    assert len(infrared) >= 5
    assert np.mean(infrared) > 3 * np.mean(visible)


def test_infrared_shows_cold_sky_and_less_texture(night: list[Pair], day: list[Pair]) -> None:
    sky, road = CLASSES.index("sky"), CLASSES.index("road")
    for pair in night + day:
        heat = pair.infrared[..., 0]
        if (pair.labels == sky).mean() > 0.02:
            assert heat[pair.labels == sky].mean() < heat[pair.labels == road].mean()
    building = CLASSES.index("building")

    def detail(image: np.ndarray, mask: np.ndarray) -> float:
        calm = cv2.GaussianBlur(image, (0, 0), 0.8)
        return float(np.abs(cv2.Laplacian(calm, cv2.CV_32F))[mask].mean())

    pairs = [(pair, pair.labels == building) for pair in day]
    pairs = [(pair, mask) for pair, mask in pairs if mask.sum() > 500]
    visible = np.mean([detail(_gray(pair), mask) for pair, mask in pairs])
    infrared = np.mean([detail(pair.infrared[..., 0], mask) for pair, mask in pairs])
    assert visible > 1.1 * infrared


@pytest.mark.parametrize("light", ["visible", "infrared"])
def test_labels_and_images_are_registered(light: str, night: list[Pair], day: list[Pair]) -> None:
    """Edges of the image under the outlines of the labels are strongest without any shift."""
    score = np.zeros((7, 7))
    for pair in day if light == "visible" else night:
        image = _gray(pair) if light == "visible" else pair.infrared[..., 0]
        steep = np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))
        mask = (pair.labels == (CAR if light == "visible" else PERSON)).astype(np.uint8)
        outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
        outline[:4] = outline[-4:] = outline[:, :4] = outline[:, -4:] = False
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                moved = np.roll(steep, (dy, dx), (0, 1))
                score[dy + 3, dx + 3] += moved[outline].sum()
    best = np.unravel_index(score.argmax(), score.shape)
    assert tuple(int(k) - 3 for k in best) == (0, 0)
    assert score[3, 3] > 1.1 * max(score[0, 3], score[6, 3], score[3, 0], score[3, 6])


def test_sensors_see_the_same_world_differently() -> None:
    means = {}
    for sensor in SENSORS:
        pairs = [_pairs(sensor)[k] for k in range(6)]
        means[sensor] = np.mean([pair.visible.mean((0, 1)) for pair in pairs], 0)
        for pair, reference in zip(pairs, (_pairs()[k] for k in range(6)), strict=True):
            assert pair.stem == reference.stem
            np.testing.assert_array_equal(pair.labels, reference.labels)
            np.testing.assert_array_equal(pair.boxes, reference.boxes)
    names = list(SENSORS)
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            assert np.abs(means[name] - means[other]).min() > 0.03
    assert np.all(means["dim"] < means["clear"]) and np.all(means["clear"] < means["haze"])


def test_varied_sensors_change_with_the_scene_and_leave_the_world_alone() -> None:
    varied, clear = _pairs(VARIED), _pairs()
    ratios = []
    for k in range(8):
        pair = varied[k]
        np.testing.assert_array_equal(pair.visible, varied[k].visible)
        np.testing.assert_array_equal(pair.labels, clear[k].labels)
        ratios.append(pair.visible.mean() / clear[k].visible.mean())
    # One camera for all would keep the scenes' brightness to each other.
    assert max(ratios) > 1.3 * min(ratios)


@pytest.mark.parametrize("sensor", sorted(SENSORS))
def test_patches_span_a_wide_range_of_brightness(sensor: str) -> None:
    pairs = _pairs(sensor)
    patches = [pairs[k].visible.reshape(3, 40, 4, 40, 3).mean((1, 3)) for k in range(SCENES)]
    levels = np.stack(patches).reshape(-1, 3).mean(-1)
    low, high = np.percentile(levels, (5, 95))
    assert high - low > 0.25


def test_pickled_pairs_draw_the_same() -> None:
    pairs = _pairs("dim")
    assert _same(pickle.loads(pickle.dumps(pairs))[1], pairs[1])


def test_open_follows_the_config() -> None:
    source = SourceConfig("synthetic", scenes=5, height=48, width=80, seed=11, sensor="haze")
    pairs = SyntheticPairs.open(source)
    assert len(pairs) == 5 and pairs.size(4) == (48, 80)
    assert _same(pairs[2], SyntheticPairs(5, 48, 80, 11, "haze")[2])


def test_a_wrong_sensor_lists_the_right_ones() -> None:
    with pytest.raises(DataError, match=r"'thermal'.*clear, dim, haze"):
        SyntheticPairs(1, 64, 64, sensor="thermal")


@pytest.mark.parametrize(
    ("field", "value"),
    [("scenes", 0), ("height", 31), ("width", 8), ("seed", -1), ("night_share", 1.5)],
)
def test_bad_settings_name_the_field_and_the_value(field: str, value: float) -> None:
    with pytest.raises(DataError, match=rf"{field} = {value}.*use"):
        SyntheticPairs(**{"scenes": 1, "height": 64, "width": 64, field: value})


def test_an_index_outside_the_set_is_an_error() -> None:
    pairs = SyntheticPairs(2, 64, 64)
    for read in (pairs.stem, pairs.size, pairs.__getitem__):
        for index in (-1, 2):
            with pytest.raises(IndexError, match=f"{index}.*0 to 1"):
                read(index)
    assert len(list(pairs)) == 2
