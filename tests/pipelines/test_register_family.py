"""A family from outside counts from its registration on; what clashes is one clear line."""

import pytest
import torch
from ditaccel.pipelines import FamilyAdapter, adapter_for, adapters, register_family
from tiny import generate, tiny_flux

import ditaccel
from ditaccel import pipelines
from ditaccel.errors import ConfigError


@pytest.fixture(autouse=True)
def families_as_they_were(monkeypatch):
    monkeypatch.setattr(pipelines, "_REGISTERED", dict(pipelines._REGISTERED))


def of_flux(**changes):
    """Flux's contracts under another name."""
    flux = adapters()["flux"]
    given = {"name": "outside", "transformers": ("OutsideModel",), "blocks": flux.blocks}
    return FamilyAdapter(**(given | {"presets": flux.presets} | changes))


def test_a_family_counts_after_the_first_look_up():
    assert adapter_for("OutsideModel") is None
    made = register_family(of_flux())
    assert adapter_for("OutsideModel") is made is adapters()["outside"]
    again = register_family(of_flux(text="front"))
    assert adapter_for("OutsideModel") is again


def test_its_transformers_are_accelerated():
    pipe, call = tiny_flux()
    dense = generate(pipe, call)
    kind = type(pipe.transformer)
    pipe.transformer.__class__ = type("OutsideModel", (kind,), {})
    register_family(of_flux())
    assert ditaccel.doctor(pipe).family == "outside"
    with ditaccel.accelerated(pipe, cache=ditaccel.ReuseConfig(interval=2)):
        generate(pipe, call)
        assert ditaccel.report(pipe).forecasts > 0
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (3, "takes a FamilyAdapter, not a value of type int"),
        ({"name": "flux"}, "taken by ditaccel.pipelines.flux; choose another name"),
        ({"transformers": "OutsideModel"}, "give a tuple of class names"),
        ({"transformers": ()}, "give a tuple of class names"),
        (
            {"transformers": ("OutsideModel", "WanTransformer3DModel")},
            "WanTransformer3DModel belongs to the family 'wan'; to use this adapter in its place",
        ),
    ],
)
def test_what_clashes_is_refused_in_one_line(adapter, message):
    before = adapters()
    with pytest.raises(ConfigError) as error:
        register_family(of_flux(**adapter) if isinstance(adapter, dict) else adapter)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert adapters() == before


def test_two_modules_cannot_share_a_name_or_a_transformer():
    elsewhere = {"__name__": "elsewhere", "register_family": register_family}
    exec("def add(adapter): return register_family(adapter)", elsewhere)
    register_family(of_flux())
    with pytest.raises(ConfigError, match=r"taken by .*test_register_family; choose another name"):
        elsewhere["add"](of_flux(transformers=("OtherModel",)))
    with pytest.raises(ConfigError, match="OutsideModel belongs to the family 'outside'"):
        elsewhere["add"](of_flux(name="other"))
