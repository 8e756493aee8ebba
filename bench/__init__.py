"""What jaxfuse costs in time and memory, measured: `python -m bench --help`.

One file per subject. Results, with the machine and the versions they hold for, are in `results/`.
"""
