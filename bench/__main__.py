"""`python -m bench`: measures, prints, and writes one JSON file per subject."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import machine, published, record
from bench.sides import BenchError

SUBJECTS = {
    "fuse": "one 480x640 pair, whole and in strips",
    "realtime": "one 480x640 pair with lite",
    "video": "two videos of 480x640 into one, with lite",
    "start": "import jaxfuse, jaxfuse --help, one picture from the command line",
    "step": "a training step of stage II",
    "gamma": "gamma of 1000 patches",
    "topk": "the 1000 closest of a million patches",
    "depthwise": "depthwise convolution, ways of writing it",
    "precision": "bfloat16 against float32, both networks",
    "windowed": "parts of CrossFuse on a window, ways of writing them",
    "dense": "kernel gradient of a dense 3x3, in bands and derived",
    "large": "one 3000x4000 pair (takes several minutes)",
    "windows": "fusing in strips, by size of window",
    "synthetic": "made-up scenes a second",
    "loader": "batches a second",
    "scaling": "the training step on more devices and processes, weak",
    "metrics": "all metrics of a triple, by convention",
    "plan": "training on TPU pods, planned (needs the extra tpu; about an hour on two cores)",
}
ON_ACCELERATOR = "fuse", "realtime", "step", "depthwise", "precision"


def parser() -> argparse.ArgumentParser:
    told = "".join(f"\n  {name:<12} {text}" for name, text in SUBJECTS.items())
    parse = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measures time and memory. Subjects (all, unless some are named):{told}\n"
        f"  {'accelerator':<12} {', '.join(ON_ACCELERATOR)} on JAX's first GPU or TPU",
        epilog="Programs of their own: python -m bench.faults, what runs of several processes lose "
        "when something dies; python -m bench.ssvif, what SSVIF gains for segmentation; python -m "
        "bench.pretrain, the packaged weights again, with their scores; python -m bench.rivals, "
        "pictures of published networks to score beside them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parse.add_argument("names", nargs="*", metavar="SUBJECT")
    parse.add_argument(
        "--reference", type=Path, metavar="DIR", help="checkout of the published PyTorch code"
    )
    parse.add_argument(
        "--zoo", type=Path, metavar="DIR", help="checkout of IVIF_ZOO, for the subject metrics"
    )
    parse.add_argument(
        "--rivals",
        type=Path,
        metavar="DIR",
        help="checkouts for the subject realtime: bench/rivals.py",
    )
    default = machine.ROOT / "bench" / "results"
    parse.add_argument("--out", type=Path, default=default, help="folder for JSON files")
    parse.add_argument("--repeat", type=int, metavar="N", help="runs of each side")
    parse.add_argument(
        "--tiny", action="store_true", help="shapes that take seconds: checks that everything runs"
    )
    return parse


def command(arguments: argparse.Namespace) -> str:
    """The command to repeat this, without the folders of this machine."""
    words = ["python -m bench", *arguments.names]
    words += ["--reference DIR"] if arguments.reference else []
    words += ["--zoo DIR"] if arguments.zoo else []
    words += ["--rivals DIR"] if arguments.rivals else []
    words += [f"--repeat {arguments.repeat}"] if arguments.repeat else []
    words += ["--tiny"] if arguments.tiny else []
    return " ".join(words)


def chosen(names: Sequence[str]) -> tuple[list[str], bool]:
    """(subjects, whether on the accelerator). A wrong name raises with the list of right ones."""
    for name in names:
        if name not in SUBJECTS and name != "accelerator":
            raise BenchError(
                f"no subject {name!r}: choose among {', '.join(SUBJECTS)}, or accelerator"
            )
    if "accelerator" not in names:
        return list(dict.fromkeys(names)) or list(SUBJECTS), False
    others = [name for name in dict.fromkeys(names) if name != "accelerator"]
    wrong = [name for name in others if name not in ON_ACCELERATOR]
    if wrong:
        raise BenchError(
            f"{wrong[0]!r} is not measured on an accelerator: only {', '.join(ON_ACCELERATOR)}"
        )
    return others or list(ON_ACCELERATOR), True


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    try:
        names, accelerator = chosen(arguments.names)
        if arguments.repeat is not None and arguments.repeat < 1:
            raise BenchError(f"--repeat {arguments.repeat}: run everything at least once")
        if arguments.reference is not None:
            published.check(arguments.reference)
        with tempfile.TemporaryDirectory(prefix="jaxfuse-bench-") as scratch:
            run = record.Run(
                command(arguments),
                arguments.out,
                Path(scratch),
                arguments.reference and arguments.reference.resolve(),
                arguments.repeat,
                arguments.tiny,
                accelerator,
                arguments.zoo and arguments.zoo.resolve(),
                arguments.rivals and arguments.rivals.resolve(),
            )
            # One process at a time holds the accelerator, so its speed is measured once.
            rates = run.rates() if accelerator else None
            if rates and rates["platform"] == "cpu" and not run.tiny:
                raise BenchError("no accelerator: JAX sees only a CPU (with --tiny it will do)")
            for name in names:
                began = time.monotonic()
                for result in importlib.import_module(f"bench.{name}").measure(run, rates):
                    path = record.write(result, run.out)
                    print("\n".join(record.lines(result)))
                print(f"  {path} ({time.monotonic() - began:.0f} s)", flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; results so far are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
