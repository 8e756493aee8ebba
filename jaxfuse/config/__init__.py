"""Everything that defines a training run: frozen dataclasses, their checks, JSON in and out.

A config holds numbers, strings and tuples only, never arrays or functions: a `Literal` name picks
from a table. It is saved beside every run and is enough, with the commit, to run it again.
"""

from jaxfuse.config.counts import counted
from jaxfuse.config.data import DataConfig, ExternalConfig, SourceConfig
from jaxfuse.config.errors import ConfigError, UserError
from jaxfuse.config.experiment import (
    FREE_FIELDS,
    Experiment,
    ModelConfig,
    TrainConfig,
    changed_fields,
    flatten,
    from_dict,
    load_json,
    to_dict,
    to_json,
)
from jaxfuse.config.methods import (
    METHOD_CONFIGS,
    CrossFuseConfig,
    SegmentationConfig,
    SSVIFConfig,
)

__all__ = [
    "FREE_FIELDS",
    "METHOD_CONFIGS",
    "ConfigError",
    "CrossFuseConfig",
    "DataConfig",
    "Experiment",
    "ExternalConfig",
    "ModelConfig",
    "SSVIFConfig",
    "SegmentationConfig",
    "SourceConfig",
    "TrainConfig",
    "UserError",
    "changed_fields",
    "counted",
    "flatten",
    "from_dict",
    "load_json",
    "to_dict",
    "to_json",
]
