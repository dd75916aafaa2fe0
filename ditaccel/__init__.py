"""ditaccel makes the diffusion transformers of Hugging Face diffusers faster.

```python
import ditaccel

ditaccel.accelerate(pipe)            # the family's "balanced" preset
print(ditaccel.report(pipe))
ditaccel.restore(pipe)
```
"""

from .api import (
    accelerate,
    accelerated,
    families,
    is_accelerated,
    presets,
    report,
    reset,
    restore,
)
from .attention.lite_attention import LiteAttentionConfig
from .attention.sla import SLAConfig
from .attention.svg2 import SVG2Config
from .caching.adaptive_taylor import AdaptiveTaylorConfig
from .caching.confidence_gated_taylor import ConfidenceGatedTaylorConfig
from .caching.first_block_residual import FirstBlockResidualConfig
from .caching.reuse import ReuseConfig
from .caching.step_mask import StepMaskConfig
from .caching.taylorseer import TaylorSeerConfig
from .config import AccelerationConfig, methods
from .diagnosis import Diagnosis, doctor
from .errors import ConfigError, DitaccelError, UnsupportedError, UsageError
from .finetuning import finetune
from .pipelines import AttentionContract, BlockContract, FamilyAdapter, register_family
from .reports.report import Report
from .tuning import Target, tune

__version__ = "0.1.0"

__all__ = [
    "AccelerationConfig",
    "AdaptiveTaylorConfig",
    "AttentionContract",
    "BlockContract",
    "ConfidenceGatedTaylorConfig",
    "ConfigError",
    "Diagnosis",
    "DitaccelError",
    "FamilyAdapter",
    "FirstBlockResidualConfig",
    "LiteAttentionConfig",
    "Report",
    "ReuseConfig",
    "SLAConfig",
    "SVG2Config",
    "StepMaskConfig",
    "Target",
    "TaylorSeerConfig",
    "UnsupportedError",
    "UsageError",
    "accelerate",
    "accelerated",
    "doctor",
    "families",
    "finetune",
    "is_accelerated",
    "methods",
    "presets",
    "register_family",
    "report",
    "reset",
    "restore",
    "tune",
]
