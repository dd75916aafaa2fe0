"""ditaccel makes the diffusion transformers of Hugging Face diffusers faster.

```python
import ditaccel

ditaccel.accelerate(pipe)            # the family's "balanced" preset
print(ditaccel.report(pipe))
ditaccel.restore(pipe)
```
"""

import importlib
from typing import TYPE_CHECKING, Any

from .api import accelerate, accelerated, families, is_accelerated, presets, report, reset, restore
from .attention.adaspa import AdaSpaConfig
from .attention.attention_tile import AttentionTileConfig
from .attention.clear import CLEARConfig
from .attention.ditfastattn import DiTFastAttnConfig
from .attention.draft_attention import DraftAttentionConfig
from .attention.head_wise import HeadWiseConfig
from .attention.lite_attention import LiteAttentionConfig
from .attention.nabla import NABLAConfig
from .attention.neighborhood import NeighborhoodConfig
from .attention.pbs import PBSConfig
from .attention.radial import RadialConfig
from .attention.rainfusion import RainFusionConfig
from .attention.sla import SLAConfig
from .attention.sol import SolConfig
from .attention.sparge import SpargeConfig
from .attention.sparse_vdit import SparseVDiTConfig
from .attention.sta import STAConfig
from .attention.svg1 import SVG1Config
from .attention.svg2 import SVG2Config
from .attention.vmoba import VMoBAConfig
from .attention.xattention import XAttentionConfig
from .caching.adaptive_taylor import AdaptiveTaylorConfig
from .caching.confidence_gated_taylor import ConfidenceGatedTaylorConfig
from .caching.dbcache import DBCacheConfig
from .caching.dicache import DiCacheConfig
from .caching.easycache import EasyCacheConfig
from .caching.first_block_residual import FirstBlockResidualConfig
from .caching.fora import FORAConfig
from .caching.harmonica import HarmoniCaConfig
from .caching.magcache import MagCacheConfig
from .caching.meancache import MeanCacheConfig
from .caching.module_schedule import ModuleScheduleConfig
from .caching.pab import PABConfig
from .caching.racer import RACERConfig
from .caching.reuse import ReuseConfig
from .caching.seacache import SeaCacheConfig
from .caching.step_mask import StepMaskConfig
from .caching.tafc import TAFCConfig
from .caching.taylorseer import TaylorSeerConfig
from .caching.teacache import TeaCacheConfig
from .calls.condition_cache import ConditionCacheConfig
from .calls.parallel_denoising import ParallelDenoisingConfig
from .calls.token_merging import TokenMergingConfig
from .config import AccelerationConfig, methods
from .diagnosis import Diagnosis, doctor
from .errors import ConfigError, DitaccelError, UnsupportedError, UsageError
from .finetuning import finetune
from .pipelines import AttentionContract, BlockContract, FamilyAdapter, register_family
from .reports.report import Report
from .tuning import AuditReport, Refine, Space, Target, audit, fit, tune

if TYPE_CHECKING:
    from .batch.generate import Generated, generate
    from .eval.evaluation import Evaluation, evaluate

__version__ = "0.1.0"

# Loaded when they are first asked for: they bring what a plain `accelerate` does not need.
_LATER = {
    "Evaluation": "ditaccel.eval.evaluation",
    "Generated": "ditaccel.batch.generate",
    "evaluate": "ditaccel.eval.evaluation",
    "generate": "ditaccel.batch.generate",
}

__all__ = [
    "AccelerationConfig",
    "AdaSpaConfig",
    "AdaptiveTaylorConfig",
    "AttentionContract",
    "AttentionTileConfig",
    "AuditReport",
    "BlockContract",
    "CLEARConfig",
    "ConditionCacheConfig",
    "ConfidenceGatedTaylorConfig",
    "ConfigError",
    "DBCacheConfig",
    "DiCacheConfig",
    "DiTFastAttnConfig",
    "Diagnosis",
    "DitaccelError",
    "DraftAttentionConfig",
    "EasyCacheConfig",
    "Evaluation",
    "FORAConfig",
    "FamilyAdapter",
    "FirstBlockResidualConfig",
    "Generated",
    "HarmoniCaConfig",
    "HeadWiseConfig",
    "LiteAttentionConfig",
    "MagCacheConfig",
    "MeanCacheConfig",
    "ModuleScheduleConfig",
    "NABLAConfig",
    "NeighborhoodConfig",
    "PABConfig",
    "PBSConfig",
    "ParallelDenoisingConfig",
    "RACERConfig",
    "RadialConfig",
    "RainFusionConfig",
    "Refine",
    "Report",
    "ReuseConfig",
    "SLAConfig",
    "STAConfig",
    "SVG1Config",
    "SVG2Config",
    "SeaCacheConfig",
    "SolConfig",
    "Space",
    "SpargeConfig",
    "SparseVDiTConfig",
    "StepMaskConfig",
    "TAFCConfig",
    "Target",
    "TaylorSeerConfig",
    "TeaCacheConfig",
    "TokenMergingConfig",
    "UnsupportedError",
    "UsageError",
    "VMoBAConfig",
    "XAttentionConfig",
    "accelerate",
    "accelerated",
    "audit",
    "doctor",
    "evaluate",
    "families",
    "finetune",
    "fit",
    "generate",
    "is_accelerated",
    "methods",
    "presets",
    "register_family",
    "report",
    "reset",
    "restore",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
