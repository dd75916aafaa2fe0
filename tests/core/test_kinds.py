"""What is asked of an ordinary pipeline and of a modular one, and what each gives."""

from __future__ import annotations

import logging
import threading

import pytest
from modular import PIPELINES
from tiny import FAMILIES, tiny_dit

from ditaccel.core import kinds
from ditaccel.errors import UnsupportedError
from ditaccel.io.schedulers import put_scheduler


@pytest.fixture(scope="module")
def flux3():
    if "flux3" not in FAMILIES:
        pytest.skip("this diffusers has no Flux 3")
    return PIPELINES["flux3"]()[0]


def test_arguments_of_an_ordinary_pipeline():
    pipe, _ = tiny_dit()
    found = kinds.arguments(pipe)
    assert found == kinds.arguments(type(pipe)) and not kinds.takes_any(pipe)
    assert found["class_labels"] is kinds.NEEDED and found["num_inference_steps"] == 50
    assert kinds.decoded(pipe) == {"output_type": "np"}
    assert kinds.denoised(pipe) == {"output_type": "latent"}


def test_arguments_of_a_modular_pipeline(flux3):
    found = kinds.arguments(flux3)
    assert [name for name, value in found.items() if value is kinds.NEEDED] == ["prompt"]
    assert (found["num_inference_steps"], found["output_type"]) == (50, "pil")
    assert not {"state", "output", "timestep"} & set(found)
    assert kinds.decoded(flux3) == {"output_type": "np", "output": "images"}


def test_a_class_of_modular_pipelines_has_blocks_by_default(flux3):
    found = kinds.arguments(type(flux3))
    assert found["prompt"] is kinds.NEEDED and {"image", "height"} <= set(found)
    assert kinds.class_of_part(type(flux3), "transformer") == "Flux3Transformer2DModel"
    assert kinds.class_of_part(type(flux3), "prior") == ""


def test_classes():
    import diffusers

    assert kinds.is_pipeline(diffusers.DiTPipeline) and not kinds.is_modular(diffusers.DiTPipeline)
    assert not kinds.is_pipeline(diffusers.DiffusionPipeline)
    assert not kinds.is_pipeline(diffusers.AutoencoderKL)
    if hasattr(diffusers, "FluxModularPipeline"):
        kind = diffusers.FluxModularPipeline
        assert kinds.is_pipeline(kind) and kinds.is_modular(kind)
        assert not kinds.is_pipeline(diffusers.ModularPipeline)


def test_errors_are_logged_in_other_threads_only(caplog):
    log = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    log.addHandler(caplog.handler)
    try:
        with kinds.unlogged():
            log.error("here")
            thread = threading.Thread(target=lambda: log.error("there"))
            thread.start()
            thread.join()
        log.error("behind")
    finally:
        log.removeHandler(caplog.handler)
    assert {"there", "behind"} == {record.message for record in caplog.records}


def test_another_scheduler(flux3):
    pipe, call = PIPELINES["flux3"]()
    put_scheduler(pipe, "unipc")
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    pipe(prompt="a", num_inference_steps=3, **call, **kinds.decoded(pipe))


@pytest.mark.skipif("minimax_h3" not in FAMILIES, reason="this diffusers has no MiniMax-H3")
def test_schedulers_that_step_together():
    pipe, _ = PIPELINES["minimax_h3"]()
    with pytest.raises(UnsupportedError, match=r"2 schedulers together .*audio_scheduler"):
        put_scheduler(pipe, "euler")
