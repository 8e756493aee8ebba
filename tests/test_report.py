"""The report page: one file, no network, every view in step; looked at by a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxfuse import config
from jaxfuse.data import images
from jaxfuse.data.images import FileError
from jaxfuse.evaluate import results
from jaxfuse.evaluate.plan import BASELINES
from jaxfuse.evaluate.results import Evaluation, MethodRow, ResultsError, Scores
from jaxfuse.metrics import Row
from jaxfuse.report import page, thumbnails, training
from jaxfuse.report.page import ReportError
from jaxfuse.report.training import RunError

METHODS = ("ours", "theirs")
METRICS = (("EN", "higher", 0.0, 8.0), ("MSE", "lower", 0.0, None), ("TE", "unclear", None, None))


def picture(seed: int, size: tuple[int, int], channels: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.random((6, 8, channels), np.float32)
    rows = np.arange(size[0]) * 6 // size[0]
    columns = np.arange(size[1]) * 8 // size[1]
    fine = rng.random((*size, channels), np.float32)
    return 0.2 + 0.6 * small[rows][:, columns] + 0.2 * fine


def evaluation(
    folder: Path, pairs: int, size: tuple[int, int], names: tuple[str, ...] = ("first", "second")
) -> Evaluation:
    """Made-up scores of real files; the second image of "theirs" has no TE, one PSNR-like inf."""
    rng = np.random.default_rng(3)
    rows = (*METHODS, *BASELINES)
    datasets = []
    for number, name in enumerate(names):
        files: dict[str, tuple[str, ...]] = {}
        stems = tuple(f"{number}{i:03}" for i in range(pairs))
        for row in ("visible", "infrared", *METHODS):
            (folder / name / row).mkdir(parents=True)
            channels = 1 if row == "infrared" else 3
            for i, stem in enumerate(stems):
                path = folder / name / row / f"{stem}.png"
                images.write(path, picture(100 * number + i + len(row), size, channels))
            files[row] = tuple(f"{name}/{row}/{stem}.png" for stem in stems)
        values = {
            row: {metric: 1 + k + rng.random(pairs) for metric, *_ in METRICS}
            for k, row in enumerate(rows)
        }
        values["theirs"]["TE"][1] = np.nan
        values["theirs"]["EN"][0] = np.inf
        role = "in" if number == 0 else "out"
        datasets.append(Scores(name, role, stems, (size,) * pairs, files, values))
    found = Evaluation(
        tuple(
            Row(name, f"{name} in full", "zoo", "Y", direction, "bits", low, high, 1)
            for name, direction, low, high in METRICS
        ),
        (
            MethodRow("ours", "weights", "crossfuse"),
            MethodRow("theirs", "pictures", "a </script><b>folder"),
            *(MethodRow(name, "baseline", name) for name in BASELINES),
        ),
        "ours",
        tuple(datasets),
        {"jax": "1.2.3"},
        {"convention": "zoo", "dtype": "float32"},
        "2030-01-02T03:04:05+00:00",
    )
    results.save(found, folder, {})
    return found


def run_folder(folder: Path) -> Path:
    """What training leaves, as far as the page reads it."""
    folder.mkdir()
    experiment = config.Experiment(name="tried", seed=4)
    (folder / "run.json").write_text('{"format": 2, "jaxfuse": "0.0.9"}')
    (folder / "config.json").write_text(config.to_json(experiment))
    with (folder / "log.jsonl").open("w") as log:
        for step in range(10, 1310, 10):
            record = {"step": step, "stage": "fusion" if step > 400 else "reconstruction"}
            record |= {"time": 0.0, "loss": 1 / step if step != 50 else None, "grad_norm": 2.0}
            if step % 100 == 0:
                record["validation_loss"] = 2 / step
            log.write(json.dumps(record) + "\n")
    patches = [{"stem": f"p{i}", "y": i, "x": 2 * i, "distance": float(i)} for i in range(5)]
    told = {"target_means": [1, 2, 3], "means_before": [4, 5, 6], "means_after": [1, 2, 3]}
    told |= {"gamma": [1, 1, 1], "kept": 5, "candidates": 9, "error": 0.5, "patches": patches}
    (folder / "selection.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluation(folder, 5, (48, 64))
    run = run_folder(tmp_path_factory.mktemp("runs") / "run")
    return page.write(folder / "report.html", folder, run, "A </title> of & tests")


def embedded(path: Path, name: str) -> Any:
    text = path.read_text(encoding="utf8")
    pattern = rf'<script type="application/json" id="{name}">(.*?)</script>'
    found = re.findall(pattern, text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_the_page_holds_what_the_evaluation_found(written: Path) -> None:
    data, pictures = embedded(written, "data"), embedded(written, "pictures")
    found = results.load(written.parent)
    for scores, entry in zip(found.datasets, data["datasets"], strict=True):
        for method, row in scores.values.items():
            for metric, values in row.items():
                shown = [np.nan if x is None else float(x) for x in entry["values"][method][metric]]
                np.testing.assert_allclose(shown, values, rtol=1e-5)
        assert set(entry["pictures"]) == {"visible", "infrared", *METHODS}
        assert all(0 <= i < len(pictures) for row in entry["pictures"].values() for i in row)
    assert data["datasets"][0]["summary"]["theirs"]["TE"]["undefined"] == 1
    assert data["datasets"][0]["ranked_on"] == ["EN", "MSE"]
    assert data["methods"][1]["source"] == "a </script><b>folder"
    text = written.read_text(encoding="utf8")
    assert text.count("<title>A &lt;/title> of &amp; tests</title>") == 1
    assert not re.search(r'(src|href)="https?:', text) and "NaN" not in json.dumps(data)


def test_pictures_shrink_until_they_fit(tmp_path: Path) -> None:
    found = evaluation(tmp_path, 6, (120, 160), ("only",))
    whole = thumbnails.encode(found, tmp_path, 10**8)
    assert "in full size" in whole.note
    total = sum(map(len, whole.pictures))
    for share in (0.5, 0.25):
        small = thumbnails.encode(found, tmp_path, int(share * total))
        assert sum(map(len, small.pictures)) <= share * total
        assert len(small.pictures) == len(whole.pictures)
    tight = int(sum(map(len, thumbnails.encode(found, tmp_path, 1).pictures) or [0]) or 3000)
    few = thumbnails.encode(found, tmp_path, tight)
    assert sum(map(len, few.pictures)) <= tight
    assert f"Only {len(few.pictures)} of 24 pictures" in few.note
    shown = few.of["only"]
    # Whole pairs stay together, and numbers point into what is there.
    assert all(len({row[i] < 0 for row in shown.values()}) == 1 for i in range(6))
    assert max(i for row in shown.values() for i in row) == len(few.pictures) - 1


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda d: page.write(d / "r.pdf", d), ReportError, r"r\.pdf: a report is a web page"),
        (lambda d: page.write(d / "r.html"), ReportError, "nothing to report"),
        (lambda d: page.write(d / "r.html", d / "no"), ResultsError, r"no.*: cannot be read"),
        (lambda d: page.write(d / "r.html", None, d), RunError, "not a run: give a folder that"),
    ],
)
def test_what_cannot_be_reported_is_said(make: Any, kind: type, words: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_gone_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    evaluation(tmp_path, 2, (24, 32), ("only",))
    file = tmp_path / "only" / "ours" / "0001.png"
    file.unlink()
    data = embedded(page.write(tmp_path / "r.html", tmp_path), "data")
    assert data["datasets"][0]["pictures"]["ours"][1] == -1
    assert "Gone: 1 picture, such as" in data["sets_note"] and "0001.png" in data["sets_note"]
    file.write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"0001\.png: "):
        page.write(tmp_path / "s.html", tmp_path)
    assert not (tmp_path / "s.html").exists()


# In a browser


def start_browser(width: int, height: int) -> Any:
    binary, helper = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or helper is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
        f"--window-size={width},{height}"
    ).split():
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(helper)
    return webdriver.Chrome(options=options, service=service)


def wait_for(browser: Any, script: str, seconds: float = 20.0) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda b: b.execute_script("return " + script))


def open_page(browser: Any, path: Path) -> None:
    browser.get(path.as_uri())
    wait_for(browser, "document.documentElement.dataset.ready === 'yes'")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = start_browser(1200, 900)
    yield found
    found.quit()


def complaints(browser: Any) -> list[Any]:
    """What the console says, but for a hint at these tests' own way of reading canvases."""
    log = browser.get_log("browser")
    return [e for e in log if e["level"] != "INFO" and "getImageData" not in e["message"]]


PAINTED = """[...document.querySelectorAll('#views canvas')].map(c => {
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let h = 0; for (let i = 0; i < d.length; i += 41) h = (h * 31 + d[i]) | 0; return h; })"""


@pytest.fixture
def opened(browser: Any, written: Path) -> Iterator[Any]:
    open_page(browser, written)
    browser.execute_script("document.getElementById('images').scrollIntoView()")
    wait_for(browser, f"{PAINTED}.filter(h => h).length === 5")
    yield browser
    assert complaints(browser) == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def names(browser: Any, table: str) -> list[str]:
    return browser.execute_script(
        f"return [...document.querySelectorAll('#{table} tbody th[scope=row]')]"
        ".map(td => td.textContent)"
    )


def test_every_section_is_there(opened: Any) -> None:
    shown = opened.execute_script(
        "return [...document.querySelectorAll('main > section')].filter(s => !s.hidden)"
        ".map(s => s.id)"
    )
    assert shown == [
        "ranking",
        "scores",
        "drop",
        "spread",
        "images",
        "extremes",
        "training",
        "selection",
        "configuration",
    ]
    links = opened.execute_script("return document.querySelectorAll('nav a').length")
    assert links == len(shown)


def test_columns_sort_by_click_and_by_key(opened: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    assert names(opened, "scores-table") == [*METHODS, *BASELINES]
    heads = opened.find_elements(By.CSS_SELECTOR, "#scores-table thead button")
    heads[1].click()  # EN, higher is better: the largest first; infinite values are in no mean
    expected = ["maximum", "average", "infrared", "visible", "theirs", "ours"]
    assert names(opened, "scores-table") == expected
    assert heads[1].find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    heads[2].send_keys(Keys.ENTER)  # MSE, lower is better
    assert names(opened, "scores-table") == [*METHODS, *BASELINES]
    heads[2].send_keys(Keys.ENTER)
    assert names(opened, "scores-table") == [*METHODS, *BASELINES][::-1]
    heads[0].click()
    assert names(opened, "scores-table") == sorted([*METHODS, *BASELINES])


def test_the_wipe_follows_slider_drag_and_keys(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def clip() -> float:
        style = opened.execute_script(
            "return document.querySelectorAll('#wipe canvas')[1].style.clipPath"
        )
        return float(re.findall(r"([\d.]+)%", style)[-1])

    wipe, slider = (opened.find_element(By.ID, i) for i in ("wipe", "wipe-at"))
    assert clip() == 50
    ActionChains(opened).drag_and_drop_by_offset(wipe, wipe.size["width"] // 4, 0).perform()
    assert clip() == pytest.approx(75, abs=2)
    slider.send_keys(Keys.HOME)
    assert clip() == 0
    wipe.send_keys(Keys.ARROW_RIGHT)
    assert clip() == 2


def test_all_views_zoom_and_move_together(opened: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    level = opened.find_element(By.ID, "zoom-level")
    start = opened.execute_script("return " + PAINTED)
    assert len(set(start)) == 5
    opened.find_element(By.ID, "zoom-in").click()
    assert level.text == "150 %"
    zoomed = opened.execute_script("return " + PAINTED)
    assert all(a != b for a, b in zip(start, zoomed, strict=True))
    wipe = opened.find_element(By.ID, "wipe")
    wipe.send_keys(Keys.ARROW_DOWN)
    moved = opened.execute_script("return " + PAINTED)
    assert all(a != b for a, b in zip(zoomed, moved, strict=True))
    opened.execute_script(
        "document.querySelector('#views .view').dispatchEvent(new WheelEvent('wheel',"
        "{deltaY: -300, clientX: 5, clientY: 5, cancelable: true}))"
    )
    assert int(level.text.split()[0]) == pytest.approx(150 * np.e, abs=2)
    opened.find_element(By.ID, "zoom-reset").click()
    assert level.text == "100 %" and opened.execute_script("return " + PAINTED) == start


def test_keys_change_the_pair_and_thumbnails_open_it(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    pair = opened.find_element(By.ID, "images-pair")
    wipe = opened.find_element(By.ID, "wipe")
    before = opened.execute_script("return " + PAINTED)
    wipe.send_keys("]")
    assert pair.get_attribute("value") == "1"
    wait_for(
        opened, f"JSON.stringify({PAINTED}) !== {json.dumps(json.dumps(before).replace(' ', ''))}"
    )
    wipe.send_keys("[")
    wipe.send_keys("[")
    assert pair.get_attribute("value") == "4"
    thumb = opened.find_element(By.CSS_SELECTOR, "#extremes .thumbs button")
    stem = thumb.text.split(":")[0]
    opened.execute_script("arguments[0].scrollIntoView()", thumb)
    wait_for(opened, "document.querySelector('#extremes img').naturalWidth > 0")
    thumb.click()
    assert pair.get_attribute("value") == str(int(stem[1:]))


def test_it_fits_a_phone_and_paper(written: Path) -> None:
    browser = start_browser(500, 800)
    try:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
        )
        open_page(browser, written)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        hidden = browser.execute_script(
            "return ['nav', '.controls', '.slider'].map(s => "
            "getComputedStyle(document.querySelector(s)).display)"
        )
        assert hidden == ["none"] * 3
        assert complaints(browser) == []
    finally:
        browser.quit()


@pytest.mark.slow
def test_four_hundred_pairs_are_small_and_quick(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = evaluation(tmp_path, 4, (480, 640), ("only",))
    scores = found.datasets[0]
    for row, files in scores.files.items():  # noise, which compresses worst
        for name in files:
            channels = 1 if row == "infrared" else 3
            noise = rng.normal(0.5, 0.15, (480, 640, channels)).clip(0, 1).astype(np.float32)
            images.write(tmp_path / name, noise)
    many = Scores(
        "only",
        "in",
        tuple(f"{i:03}" for i in range(400)),
        scores.sizes * 100,
        {row: files * 100 for row, files in scores.files.items()},
        {m: {k: np.tile(v, 100) for k, v in row.items()} for m, row in scores.values.items()},
    )
    import dataclasses

    results.save(dataclasses.replace(found, datasets=(many,)), tmp_path, {})
    path = page.write(tmp_path / "report.html", tmp_path)
    assert path.stat().st_size < 30e6
    browser = start_browser(1200, 900)
    try:
        open_page(browser, path)
        ready = browser.execute_script(
            "return performance.getEntriesByType('navigation')[0].domComplete"
        )
        assert ready < 5000  # milliseconds; about 500 where measured
        assert complaints(browser) == []
    finally:
        browser.quit()


# Downstream evaluations


def downstream_folder(folder: Path, times: tuple[str, ...] = ("day", "night") * 3) -> Path:
    """Made-up confusions of two methods, one far better by day, with panels of two images."""
    from jaxfuse.data.builders.classes import plain_list
    from jaxfuse.evaluate import downstream_summary
    from jaxfuse.evaluate.downstream import Judged

    rng = np.random.default_rng(5)
    rows = ("plain </script>", "better", "visible")
    counts = {}
    for number, row in enumerate(rows):
        counts[row] = rng.integers(0, 9, (3, len(times), 3, 3)).astype(np.int64)
        counts[row][..., range(3), range(3)] += 20 + (60 if number == 1 else 0)
        counts[row][..., 2, :] = counts[row][..., :, 2] = 0  # a class that is nowhere
    found = Judged(
        plain_list("mine", ("road", "car & cart", "tram")),
        tuple(MethodRow(r, "baseline" if r == "visible" else "pictures", r) for r in rows),
        rows[0],
        (0, 1, 2),
        tuple(f"image{i}" for i in range(len(times))),
        times,  # type: ignore[arg-type]
        {"retrained": counts, "frozen": counts},
        {},
        {},
        {"segmenter": "segformer_tiny", "steps": 9},
        ("one remark",),
        {"jax": "1.2.3"},
        "2030-01-02T03:04:05+00:00",
    )
    downstream_summary.save(found, downstream_summary.summarise(found, resamples=200), folder)
    (folder / "panels").mkdir()
    for stem in ("image1", "image4"):
        images.write(folder / "panels" / f"{stem}.png", picture(len(stem), (90, 700), 3))
    return folder


@pytest.fixture(scope="module")
def downstream_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = downstream_folder(tmp_path_factory.mktemp("downstream"))
    return page.write(folder / "report.html", folder)


def test_a_downstream_folder_has_a_page(downstream_page: Path) -> None:
    data, pictures = embedded(downstream_page, "data"), embedded(downstream_page, "pictures")
    told = data["segmentation"]
    tree = json.loads((downstream_page.parent / "downstream.json").read_text(encoding="utf8"))
    assert told["times"] == ["all", "day", "night"] and told["remarks"] == ["one remark"]
    for time, cells in tree["summary"]["retrained"].items():
        for row, cell in cells.items():
            shown = told["summary"]["retrained"][time][row]
            assert shown["miou"]["value"] == pytest.approx(cell["miou"]["value"], rel=1e-5)
            assert (shown["p"] is None) == ("p_holm" not in cell)
            assert shown["p"] is None or shown["p"] == pytest.approx(cell["p_holm"], rel=1e-5)
    assert [p["stem"] for p in told["panels"]] == ["image1", "image4"] and len(pictures) == 2
    assert "in full size" in told["panels_note"]
    by_file = page.write(
        downstream_page.with_name("again.html"), downstream_page.parent / "downstream.json"
    )
    assert embedded(by_file, "data")["segmentation"] == told


def test_panels_shrink_or_stay_away_until_they_fit(tmp_path: Path) -> None:
    folder = downstream_folder(tmp_path / "out")
    whole = sum(map(len, embedded(page.write(tmp_path / "a.html", folder), "pictures")))
    told = embedded(page.write(tmp_path / "b.html", folder, limit_bytes=100_000), "data")
    assert told["segmentation"]["panels"] == []
    assert "Only 0 of 2 panels" in told["segmentation"]["panels_note"]
    base = len((tmp_path / "b.html").read_text(encoding="utf8"))
    limit = 100_000 + len(json.dumps(told)) + whole // 2
    path = page.write(tmp_path / "c.html", folder, limit_bytes=limit)
    few = embedded(path, "data")["segmentation"]
    assert 0 < len(path.read_text(encoding="utf8")) - base < 0.6 * whole
    assert few["panels"] and ("reduced to at most" in few["panels_note"] or "Only 1" in str(few))
    shutil.rmtree(folder / "panels")
    told = embedded(page.write(tmp_path / "d.html", folder), "data")["segmentation"]
    assert told["panels"] == [] and "There are no panels in" in told["panels_note"]


def test_a_downstream_folder_that_is_not_whole_is_said(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").write_text("{}", encoding="utf8")
    with pytest.raises(ReportError, match="a downstream evaluation that has not ended: run the"):
        page.write(tmp_path / "r.html", tmp_path)
    for text, words in (
        ("{", r"downstream\.json: not JSON"),
        ('{"format": 0}', r"downstream\.json: format 0, this version reads 1"),
        ('{"format": 1, "settings": {}}', r"downstream\.json: incomplete \(KeyError"),
    ):
        (tmp_path / "downstream.json").write_text(text, encoding="utf8")
        with pytest.raises(ResultsError, match=words):
            page.write(tmp_path / "r.html", tmp_path)
    assert not (tmp_path / "r.html").exists()


def test_a_browser_shows_what_networks_learned(browser: Any, downstream_page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    open_page(browser, downstream_page)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('main > section')].filter(s => !s.hidden)"
        ".map(s => s.id)"
    )
    assert shown == ["segmentation", "panels", "configuration"]
    tables = browser.find_elements(By.CSS_SELECTOR, "#segmentation table")
    assert len(tables) == 4
    tree = json.loads((downstream_page.parent / "downstream.json").read_text(encoding="utf8"))
    cells = tree["summary"]["retrained"]["all"]
    for row, cell in cells.items():
        line = next(x for x in tables[0].text.split("\n") if x.startswith(row))
        assert f"{100 * cell['miou']['value']:.1f}" in line
    better = tables[0].find_element(By.XPATH, ".//tr[th[text()='better']]")
    assert "*" in better.text and "best" in better.find_element(By.TAG_NAME, "td").get_attribute(
        "class"
    )
    assert "reference" in tables[0].text and "undefined" in tables[1].text  # tram is nowhere
    assert len(tables[1].find_elements(By.CSS_SELECTOR, ".swatch")) == 3
    before = tables[1].text
    Select(browser.find_element(By.ID, "segmentation-time")).select_by_value("night")
    tables = browser.find_elements(By.CSS_SELECTOR, "#segmentation table")
    assert tables[1].text != before
    panel = browser.find_element(By.CSS_SELECTOR, ".panel")
    browser.execute_script("arguments[0].scrollIntoView()", panel)
    wait_for(browser, "document.querySelector('.panel img').naturalWidth === 700")
    panel.click()
    assert "full" in panel.get_attribute("class")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == []


def test_the_page_of_a_collapsed_run_says_so(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    experiment = config.Experiment(name="tried", method=config.SSVIFConfig(anchor="none"))
    (folder / "config.json").write_text(config.to_json(experiment))
    (folder / "selection.json").unlink()
    with (folder / "log.jsonl").open("a") as log:
        record = {"step": 1310, "stage": "guided", "loss": 0.1, "classes_in_use": 1.0}
        log.write(json.dumps(record) + "\n")
    note = training.read_run(folder).training["note"]
    assert "The segmentations have collapsed: 1.00 of 16 classes in use" in note
    assert "method.anchor = 'balanced' or 'pretrained'" in note
