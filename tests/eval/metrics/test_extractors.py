"""Feature extractors and weights files: what loads, and what a damaged file says."""

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics import extractors
from ditaccel.eval.metrics.extractors import load_extractor
from ditaccel.eval.metrics.inception import Architecture, Inception
from ditaccel.eval.metrics.weights import load_weights
from ditaccel.eval.shapes.accuracy import accuracy, expected_objects
from ditaccel.eval.shapes.features import FeatureNet
from safetensors.torch import save_file
from torch import nn

from ditaccel.errors import UsageError


class MeanColour(nn.Module):
    """A user's own extractor: the mean of each channel, times a weight."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * self.scale


def frames(value: int, count: int = 2) -> np.ndarray:
    return np.full((count, 16, 16, 3), value, np.uint8)


def test_own_class_with_weights(tmp_path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"scale": torch.tensor([1.0, 2.0, 3.0])}, file)
    extractor = load_extractor(f"{__name__}:MeanColour={file}")
    assert extractor.dim == 3 and "w.safetensors" in extractor.name
    features = extractor([frames(255), frames(0), frames(51, 1)])
    assert features.tolist() == [[1, 2, 3], [0, 0, 0], pytest.approx([0.2, 0.4, 0.6])]


@pytest.fixture
def net_folder(tmp_path):
    torch.manual_seed(0)
    net = FeatureNet()
    net.save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_feature_net_folder(net_folder) -> None:
    extractor = load_extractor(str(net_folder))
    assert extractor.name == "net" and extractor.judge is not None
    assert extractor([frames(10), frames(200, 1)]).shape == (2, extractor.dim)
    scores = {"colour", "shape", "direction"}
    assert {metric.key for metric in extractor.judge.scores} == scores
    assert set(extractor.judge(frames(10), "a red circle moving left", None)) == scores
    assert set(extractor.judge(frames(10), "class three", 3)) == {"colour", "shape"}
    assert extractor.judge(frames(10), "a cat", None) == {}
    with pytest.raises(UsageError, match="no expected"):
        accuracy(FeatureNet(), frames(10), [])


def test_expected_objects_from_text_class_or_nothing() -> None:
    assert expected_objects("a red circle") == expected_objects("Red circle", 3)
    assert expected_objects("class seven", 7)
    assert expected_objects("a cat on a mat") is None
    assert expected_objects("a cat", 999) is None


def test_unusable_extractors_say_what_to_do(tmp_path, net_folder) -> None:
    (net_folder / "model.safetensors").write_bytes(b"broken")
    wrong = tmp_path / "wrong.safetensors"
    save_file({"other": torch.ones(2)}, wrong)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"PK\x03\x04 torn")
    for spec, words in (
        ("nowhere", "neither a folder"),
        (str(tmp_path), "holds no feature network"),
        (str(net_folder), "."),
        (f"{__name__}:Missing={wrong}", "cannot import"),
        ("no_such_module:Net=x", "cannot import"),
        (f"{__name__}:MeanColour={wrong}", "fit"),
        (f"{__name__}:MeanColour={tmp_path / 'none.pth'}", "no weights file"),
        (f"inception={wrong}", "not the FID Inception"),
        (f"inception={torn}", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            load_extractor(spec)
        assert "\n" not in str(caught.value)


def test_weights_files_run_no_code(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    file = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, file)
    with pytest.raises(UsageError, match="cannot be read"):
        load_weights(file)
    torch.save({"state_dict": {"a": torch.ones(1, dtype=torch.float16)}}, tmp_path / "good.pth")
    assert load_weights(tmp_path / "good.pth")["a"].dtype == torch.float32


def test_features_of_nothing_are_refused(net_folder) -> None:
    with pytest.raises(UsageError, match="no samples"):
        load_extractor(str(net_folder))([])
    odd = extractors.Extractor("odd", 5, lambda images: torch.zeros(2, 5))
    with pytest.raises(UsageError, match="odd"):
        odd([frames(1)])


def test_inception_is_the_published_architecture() -> None:
    torch.manual_seed(0)
    random = Architecture().state_dict()
    net = Inception(random)
    assert sum(p.numel() for p in net.parameters()) == 21_785_568
    sizes = {}
    for name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
        getattr(net, name).register_forward_hook(
            lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    with torch.inference_mode():
        assert net(torch.rand(1, 3, 64, 48)).shape == (1, 2048)
    assert sizes == {"Mixed_5d": (288, 35, 35), "Mixed_6e": (768, 17, 17), "Mixed_7c": (2048, 8, 8)}
    del random["Conv2d_1a_3x3.bn.num_batches_tracked"]
    Inception(random)
    with pytest.raises(UsageError, match="not the FID Inception"):
        Inception(random | {"Mixed_7c.branch1x1.conv.weight": torch.ones(1)})
