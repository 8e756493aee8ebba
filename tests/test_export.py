"""Exported networks: run without this package they give what it gives, at any size."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_segmenter
from jaxfuse import cli, distributed, export, models, weights
from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.data.sources import open_source
from jaxfuse.export import ExportError, Settings, files, graph
from jaxfuse.export.flat import flatten
from jaxfuse.infer import predict
from jaxfuse.infer.tiles import compiled
from jaxfuse.weights import WeightsError
from test_cli import complaint, write_pairs

onnx = pytest.importorskip("onnx", reason='needs the extra "export"')
ort = pytest.importorskip("onnxruntime", reason='needs the extra "export"')

SHAPES = ((1, 1, 1), (2, 9, 14))
"""(batch, height, width), those that `write` compares on itself: compiled once."""


@pytest.fixture(autouse=True)
def _there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder; the tests' compilation cache stays."""
    monkeypatch.setattr(distributed, "compilation_cache", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A weights file of the fusion network of that name: the packaged one, else random ones."""
    folder = tmp_path_factory.mktemp("weights")

    def make(name: str) -> Path:
        if name in weights.packaged():
            return weights.find_packaged(name)
        path = folder / f"{name}.safetensors"
        if not path.exists():
            weights.save_weights(path, name, models.create(name).init(jax.random.key(3)))
        return path

    return make


@pytest.fixture(scope="session")
def exported(
    weights_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], export.Written]:
    """The StableHLO file of the network of that name, made and compared once."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, export.Written] = {}

    def get(name: str) -> export.Written:
        if name not in made:
            made[name] = export.write(weights_of(name), folder / f"{name}.stablehlo")
        return made[name]

    return get


def program_of(done: export.Written) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(done.path.read_bytes()))


def images(shape: tuple[int, int, int], seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    visible, infrared = np.random.default_rng(seed).random((2, *shape, 1), dtype=np.float32)
    return visible, infrared


def expected(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """What `Model.apply` gives for `images(shape)`."""
    fuser = predict.load(path)
    return np.asarray(compiled(fuser.model)(fuser.params, *images(shape)))


# StableHLO.

NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == "crossfuse" else ())
    for name in sorted(models.MODELS)
]
"""Every network; compiling the large one takes half a minute."""
WITHOUT_JAXFUSE = """
import sys
sys.modules["jaxfuse"] = None
import jax, jax.export
import numpy as np
with open(sys.argv[1], "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
given = np.load(sys.argv[2])
call = jax.jit(network.call)
found = {key: call(*value) for key, value in given.items()}
np.savez(sys.argv[3], **found)
"""


@pytest.mark.parametrize("name", NAMES)
def test_stablehlo_runs_without_this_package(
    name, exported, weights_of, fresh_python, tmp_path
) -> None:
    """One file; two sizes, batch 1 and 2, one of a single pixel and one odd, in another process."""
    done = exported(name)
    assert [one.shape for one in done.compared] == list(SHAPES)
    assert max(one.difference for one in done.compared) <= 1e-5
    np.savez(tmp_path / "in.npz", **{str(i): images(shape) for i, shape in enumerate(SHAPES)})
    result = fresh_python("-c", WITHOUT_JAXFUSE, str(done.path), "in.npz", "out.npz")
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "out.npz") as found:
        for i, shape in enumerate(SHAPES):
            assert found[str(i)].dtype == np.float32
            np.testing.assert_allclose(
                found[str(i)], expected(weights_of(name), shape), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("name", NAMES)
def test_open_sizes_make_no_gathers(name, exported, repo) -> None:
    """Indexing (`x[:, 1:]`) makes one where sizes are symbolic, and moves every pixel one by one.

    A network slices with `layers.window`, `lax.slice_in_dim` or `jnp.split` instead.
    """
    program = program_of(exported(name))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(side) for side in program.in_avals[0].shape] == ["batch", "height", "width", "1"]
    text = program.mlir_module()
    assert "stablehlo.convolution" in text
    assert "gather" not in text


def test_the_file_beside_says_what_it_is(exported, repo) -> None:
    """And neither tells where it was made."""
    path = exported("lite").path
    about = json.loads(path.with_name("lite.stablehlo.json").read_text(encoding="utf8"))
    assert (about["model"], about["weights"]) == ("lite", "lite.safetensors")
    assert (about["jax"], about["platforms"]) == (jax.__version__, "cpu, cuda, tpu")
    assert about["weights.experiment"] == "packaged_lite_contrast"
    assert str(repo).encode() not in path.read_bytes()
    assert "deserialize" in about["call"] and "(batch, height, width, 1)" in about["inputs"]


@pytest.mark.slow
def test_one_kind_of_device_gets_its_formulation(exported, weights_of, tmp_path) -> None:
    """Grouped convolutions on a GPU only; what runs elsewhere is not run here, and that is said."""
    gpu = export.write(
        weights_of("crossfuse"), tmp_path / "n.stablehlo", Settings(platforms=("cuda",))
    )
    assert gpu.unchecked == "made for cuda, and this machine has cpu"
    assert gpu.lines()[1] == f"not compared: {gpu.unchecked}"
    groups = [
        set(re.findall(r"feature_group_count = (\d+)", program_of(done).mlir_module()))
        for done in (gpu, exported("crossfuse"))
    ]
    assert groups == [{"1", "64", "128", "256"}, {"1"}]


def test_bfloat16_inside(weights_of, tmp_path) -> None:
    done = export.write(weights_of("lite"), tmp_path / "n.stablehlo", Settings(dtype="bfloat16"))
    program = program_of(done)
    assert "bf16" in program.mlir_module()
    assert program.out_avals[0].dtype == jnp.float32
    assert max(one.difference for one in done.compared) <= done.limit == 0.02


# ONNX.


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        *(("lite", opset) for opset in (18, 23)),
        *(pytest.param("lite", opset, marks=pytest.mark.slow) for opset in range(19, 23)),
        pytest.param("crossfuse", 18, marks=pytest.mark.slow),
    ],
)
def test_onnx_in_onnxruntime(name, opset, weights_of, tmp_path) -> None:
    done = export.write(weights_of(name), tmp_path / "n.onnx", Settings(opset=opset))
    assert [one.shape for one in done.compared] == list(SHAPES)
    model = onnx.load(done.path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [opset]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["model"], about["weights"]) == (name, weights_of(name).name)
    session = ort.InferenceSession(str(done.path))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert [x.name for x in (*inputs, *outputs)] == ["visible", "infrared", "fused"]
    assert all(x.shape[3] == 1 and x.type == "tensor(float)" for x in inputs)
    assert [x.shape[:3] for x in inputs] == [["batch", "height", "width"]] * 2
    for shape in (*SHAPES, (1, 2, 1)) if name == "lite" else SHAPES:
        given = dict(zip(("visible", "infrared"), images(shape), strict=True))
        (found,) = session.run(None, given)
        np.testing.assert_allclose(found, expected(weights_of(name), shape), rtol=0, atol=1e-4)


def test_sizes_that_are_given_are_fixed(weights_of, tmp_path) -> None:
    settings = Settings(batch=2, height=5)
    for kind in ("onnx", "stablehlo"):
        done = export.write(weights_of("lite"), tmp_path / f"n.{kind}", settings)
        assert [one.shape for one in done.compared] == [(2, 5, 1), (2, 5, 14)]
        assert done.lines()[0].endswith("batch 2, height 5, width any")
    session = ort.InferenceSession(str(tmp_path / "n.onnx"))
    assert session.get_inputs()[0].shape == [2, 5, "width", 1]
    visible, infrared = images((2, 6, 4))
    with pytest.raises(Exception, match="Got: 6 Expected: 5"):
        session.run(None, {"visible": visible, "infrared": infrared})
    program = program_of(done)
    with pytest.raises(ValueError, match=r"5.*6|6.*5"):
        program.call(visible, infrared)


@pytest.mark.parametrize("wrong", [2e-4, np.nan])
def test_a_file_that_differs_is_not_written(wrong, weights_of, tmp_path, monkeypatch) -> None:
    runner = graph.runner

    def off(data: bytes) -> export.program.Run:
        run = runner(data)
        return lambda visible, infrared: run(visible, infrared) + np.float32(wrong)

    monkeypatch.setattr(graph, "runner", off)
    path = tmp_path / "n.onnx"
    with pytest.raises(ExportError, match=r"n\.onnx: differs from lite by .*not written"):
        export.write(weights_of("lite"), path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match="differs"):
        export.write(weights_of("lite"), path, overwrite=True)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_flat_programs() -> None:
    """Calls and derivative rules are gone, what weights alone make is computed; values stay."""

    @jax.custom_vjp
    def scaled(x: jax.Array) -> jax.Array:
        return jax.nn.leaky_relu(x, 0.3) * 2.0

    scaled.defvjp(lambda x: (scaled(x), x), lambda x, g: (g,))
    w = jnp.arange(6.0).reshape(2, 3)

    def function(x: jax.Array) -> jax.Array:
        folded = jnp.stack([jnp.sin(w), jnp.cos(w)]).sum(0)  # of weights alone
        y = jax.checkpoint(lambda x: scaled(x @ folded))(x)
        y = jnp.stack([y, jax.jit(jnp.tanh)(y)], axis=1)
        return jax.lax.scan(lambda c, row: (c + row, row), jnp.zeros(3), y.reshape(-1, 3))[0]

    abstract = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 2"), jnp.float32)
    flat = flatten(function, abstract)
    inside = [e.primitive.name for e in jax.make_jaxpr(flat)(abstract).jaxpr.eqns]
    assert {"dot_general", "scan", "concatenate"} <= set(inside)
    assert not {"custom_vjp_call", "pjit", "jit", "checkpoint", "stack", "sin", "cos"} & set(inside)
    abstract = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    np.testing.assert_allclose(flatten(function, abstract)(x), function(x), rtol=1e-6)


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("lite --out n.tflite", 1, ["n.tflite: unknown kind '.tflite': name it .stablehlo or"]),
        ("lite --out n", 1, ["n: unknown kind ''"]),
        ("lite --out there.onnx", 1, ["there.onnx: exists already: add --overwrite"]),
        ("lite --out there.stablehlo", 1, ["there.stablehlo.json: exists already"]),
        ("lite --out n.onnx --dtype bfloat16", 1, ["n.onnx: ", "bfloat16: use float32"]),
        (
            "lite --out n.onnx --platforms cpu",
            1,
            ["n.onnx: platforms = 'cpu' is for .stablehlo: leave it out"],
        ),
        ("lite --out n.stablehlo --opset 20", 1, ["n.stablehlo: opset = 20 is for .onnx: leave"]),
        ("lite --out there.onnx/n.onnx", 1, ["there.onnx: is a file, but results are to lie"]),
        ("lite --out folder.onnx --overwrite", 1, ["folder.onnx: is a folder: name another file"]),
        ("absent.npz --out n.onnx", 1, ["absent.npz: no such file"]),
        ("nothing --out n.onnx", 1, ["nothing: no such weights in the package"]),
        ("seg.npz --out n.onnx", 1, ["seg.npz: holds segformer_tiny, a segmentation network"]),
        ("lite --out n.onnx --batch 0", 2, ["batch = 0: give a number from 1 to"]),
        ("lite --out n.onnx --height -3", 2, ["height = -3"]),
        ("lite --out n.onnx --width 99999", 2, ["width = 99999"]),
        ("lite --out n.onnx --opset 9", 2, ["opset = 9: use 18 to 23"]),
        ("lite --out n.stablehlo --platforms metal", 2, ["platforms = 'metal': choose among cpu"]),
        ("lite --out n.stablehlo --platforms ,", 2, ["platforms = ''"]),
        ("lite --out n.onnx --split s.txt", 2, ["--split s.txt: give --root DIR too"]),
        ("lite --out n.onnx --root p --no-check", 2, ["--root p: leave --no-check out"]),
        ("lite --out n.onnx --root p --limit -1", 2, ["--limit -1: use 1 or more, or 0"]),
        ("lite --out n.onnx --root absent", 1, ["absent: no such folder"]),
        ("lite --out n.onnx --root pairs --height 31", 1, ["1 pair to compare on", "height 31"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(
    arguments, code, words, weights_of, monkeypatch, capsys, tmp_path
) -> None:
    monkeypatch.setitem(models.SEGMENTERS, tiny_segmenter.NAME, tiny_segmenter.create)
    made = tiny_segmenter.create(3, models.Compute()).init(jax.random.key(0))
    weights.save_weights("seg.npz", tiny_segmenter.NAME, made)
    for name in ("there.onnx", "there.stablehlo.json"):
        Path(name).write_bytes(b"before")
    Path("folder.onnx").mkdir()
    write_pairs(tmp_path / "pairs", "a", "a")
    before = sorted(tmp_path.rglob("*"))
    given = arguments.split()
    if given[0] == "lite":
        given[0] = str(weights_of("lite"))
    if "--root" not in given:
        monkeypatch.setattr(files, "_about", None)  # nothing may be built first
    said = complaint(capsys, "export", *given, code=code)
    assert all(word in said for word in words), said
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("there.onnx").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("missing", "kind"),
    [("jax2onnx", "onnx"), ("onnxruntime", "onnx"), ("flatbuffers", "stablehlo")],
)
def test_a_missing_package_is_named(missing, kind, weights_of, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExportError, match=rf'{missing}.*pip install "jaxfuse\[export\]"'):
        export.write(weights_of("lite"), tmp_path / f"n.{kind}")
    assert list(tmp_path.iterdir()) == []


def test_settings_and_weights_raise_their_own_errors(tmp_path) -> None:
    with pytest.raises(ConfigError, match="dtype = 'float16'"):
        Settings(dtype="float16")
    with pytest.raises(WeightsError, match="no such file"):
        export.write(tmp_path / "absent.npz", tmp_path / "n.stablehlo")


# The command, and what the guide says.


def test_the_command_compares_on_pairs(weights_of, capsys, tmp_path) -> None:
    write_pairs(tmp_path / "pairs", "abcd", "abcd")
    given = ["export", str(weights_of("lite")), "--out", "n.onnx"]
    assert cli.main([*given, "--root", "pairs", "--limit", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"n\.onnx: lite, 0\.\d MB, float32, opset 18, batch any, height any, width any", out[0]
    )
    assert re.fullmatch(
        r"run in onnxruntime on 4 pairs, 2 of them real; largest difference \S+ \(.*\), "
        r"0\.0001 is allowed",
        out[1],
    )
    assert cli.main([*given, "--overwrite", "--no-check"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "not compared: not asked for"


def test_code_of_the_guide_runs(repo, weights_of, fresh_python, tmp_path) -> None:
    """Every Python block of docs/guides/deployment.md, in order, without this package."""
    text = (repo / "docs" / "guides" / "deployment.md").read_text(encoding="utf8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for kind in ("stablehlo", "onnx"):
        export.write(weights_of("lite"), tmp_path / f"fused.{kind}", check=False)
    write_pairs(tmp_path / "pairs", "a", "a")
    for name, folder in (("infrared", "ir"), ("visible", "vi")):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "pairs" / folder / "a.png").read_bytes())
    code = "import sys\nsys.modules['jaxfuse'] = None\n" + "\n".join(blocks)
    code += "\nprint(fused.shape, fused.dtype, float(fused.min()), float(fused.max()))\n"
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("(1, 32, 48, 1) float32 ")


# Real pairs.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
@pytest.mark.parametrize("name", ["lite", "crossfuse"])
def test_real_pairs(name, kind, weights_of, shared, tmp_path) -> None:
    """Pairs of two sets, of different sizes; the smallest ones for a network that takes long."""
    stems = {"tno": ["05"], "roadscene": ["FLIR_08999"]}
    if name == "lite":
        stems = {"tno": ["05", "09", "10", "15"], "roadscene": ["FLIR_08999", "FLIR_00006"]}
    for set_name, chosen in stems.items():
        for folder in ("ir", "vi"):
            (tmp_path / folder).mkdir(exist_ok=True)
            for stem in chosen:
                (file,) = (shared / "data" / set_name / folder).glob(f"{stem}.*")
                (tmp_path / folder / file.name).symlink_to(file)
    pairs = open_source(SourceConfig("folders", root=str(tmp_path)))
    done = export.write(weights_of(name), tmp_path / f"n.{kind}", pairs=pairs)
    real = [one for one in done.compared if one.name != files.MADE_UP_NAME]
    assert {one.name for one in real} == {stem for chosen in stems.values() for stem in chosen}
    assert len({one.shape for one in real}) == len(real)
    assert max(one.difference for one in real) <= (1e-4 if kind == "onnx" else 1e-5)
