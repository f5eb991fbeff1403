"""The aggregator against the public module, and against itself with and without padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nystrom_attention import NystromAttention as PackageAttention
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.ppeg import PositionGrid

PUBLIC_KEYS = {
    "_fc1.0.weight",
    "_fc1.0.bias",
    "cls_token",
    "norm.weight",
    "norm.bias",
    *(f"pos_layer.{p}.{w}" for p in ("proj", "proj1", "proj2") for w in ("weight", "bias")),
    *(
        f"layer{i}.{name}"
        for i in (1, 2)
        for name in (
            "norm.weight",
            "norm.bias",
            "attn.to_qkv.weight",
            "attn.to_out.0.weight",
            "attn.to_out.0.bias",
            "attn.res_conv.weight",
        )
    ),
}
SMALL = {"input_dim": 24, "dim": 32, "heads": 4, "landmarks": 8}


class PublicLayer(nn.Module):
    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attn = PackageAttention(
            dim=config.dim,
            dim_head=config.dim // config.heads,
            heads=config.heads,
            num_landmarks=config.landmarks,
            pinv_iterations=6,
            residual=True,
            dropout=0.1,
        )

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attn(self.norm(x))
        return x + attended


class PublicGrid(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, size in (("proj", 7), ("proj1", 5), ("proj2", 3)):
            self.add_module(name, nn.Conv2d(dim, dim, size, 1, size // 2, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        grid = x.transpose(1, 2).reshape(len(x), -1, side, side)
        grid = self.proj(grid) + grid + self.proj1(grid) + self.proj2(grid)
        return grid.flatten(2).transpose(1, 2)


class PublicTransMIL(nn.Module):
    """What the method says of the public module, put together from the package's attention."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__()
        self._fc1 = nn.Sequential(nn.Linear(config.input_dim, config.dim), nn.ReLU())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.layer1, self.layer2 = PublicLayer(config), PublicLayer(config)
        self.pos_layer = PublicGrid(config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, bags: Tensor) -> Tensor:
        h = self._fc1(bags)
        side = math.ceil(math.sqrt(h.shape[1]))
        h = torch.cat([h, h[:, : side * side - h.shape[1]]], dim=1)
        h = self.layer1(torch.cat([self.cls_token.expand(len(h), -1, -1), h], dim=1))
        h = self.layer2(torch.cat([h[:, :1], self.pos_layer(h[:, 1:])], dim=1))
        normed: Tensor = self.norm(h)[:, : bags.shape[1] + 1]
        return normed


def make(seed: int = 0, **fields: object) -> Aggregator:
    torch.manual_seed(seed)
    model = Aggregator(AggregatorConfig(**{**SMALL, **fields}))  # type: ignore[arg-type]
    nn.init.normal_(model.cls_token)
    return model.eval()


def reference_of(model: Aggregator) -> PublicTransMIL:
    reference = PublicTransMIL(model.config)
    reference.load_state_dict(model.state_dict(), strict=True)
    return reference.eval()


def tokens_of(model: Aggregator, bags: Tensor, mask: Tensor | None = None) -> Tensor:
    output = model(bags, mask)
    return torch.cat([output.slide[:, None], output.patches], dim=1)


def test_parameters_are_as_many_as_published() -> None:
    model = Aggregator(AggregatorConfig())
    assert sum(p.numel() for p in model.parameters()) == 2_671_120


def test_names_are_the_public_ones() -> None:
    assert set(Aggregator(AggregatorConfig()).state_dict()) == PUBLIC_KEYS
    with_head = Aggregator(AggregatorConfig(num_classes=3))
    assert set(with_head.state_dict()) == PUBLIC_KEYS | {"_fc2.weight", "_fc2.bias"}


@settings(max_examples=15, deadline=None)
@given(patches=st.integers(1, 90), seed=st.integers(0, 9))
def test_public_mode_equals_the_public_module(patches: int, seed: int) -> None:
    model = make(seed)
    bag = torch.randn(1, patches, 24)
    torch.testing.assert_close(
        tokens_of(model, bag), reference_of(model)(bag), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("patches", [300, 1100])
def test_public_mode_equals_the_public_module_at_its_own_size(patches: int) -> None:
    torch.manual_seed(1)
    model = Aggregator(AggregatorConfig()).eval()
    reference = reference_of(model)
    bag = torch.randn(1, patches, 1024)
    ours, theirs = model(bag).slide, reference(bag)[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_the_public_module() -> None:
    model = make()
    reference = reference_of(model)
    bag = torch.randn(1, 40, 24)
    weights = torch.randn(1, 41, 32)
    (tokens_of(model, bag) * weights).sum().backward()
    (reference(bag) * weights).sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4)


def test_public_scale_over_the_tensor_is_the_public_modules_on_batches() -> None:
    """And it ties bags together, which is why it is not the default."""
    model = make(inverse_scale="tensor", inverse_iterations=2)
    reference = reference_of(model)
    for layer in (reference.layer1, reference.layer2):
        layer.attn.pinv_iterations = 2
    bags = torch.randn(3, 50, 24) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    torch.testing.assert_close(tokens_of(model, bags), reference(bags), rtol=1e-5, atol=1e-5)
    alone = torch.cat([tokens_of(model, bag[None]) for bag in bags])
    assert not torch.allclose(tokens_of(model, bags), alone, atol=1e-4)


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
@pytest.mark.parametrize("mode", ["public", "masked"])
def test_a_bag_does_not_depend_on_its_batch(mode: str, attention: str) -> None:
    model = make(mode=mode, attention=attention)
    bags = torch.randn(3, 50, 24) * torch.tensor([0.1, 1.0, 5.0])[:, None, None]
    alone = torch.cat([tokens_of(model, bag[None]) for bag in bags])
    torch.testing.assert_close(tokens_of(model, bags), alone, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    extra=st.integers(0, 20),
    attention=st.sampled_from(["nystrom", "exact"]),
)
def test_masked_mode_is_blind_to_padding(lengths: list[int], extra: int, attention: str) -> None:
    model = make(mode="masked", attention=attention)
    longest = max(lengths) + extra
    bags = torch.randn(len(lengths), longest, 24)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    output = model(bags.masked_fill(~mask[:, :, None], torch.nan), mask)
    for row, length in enumerate(lengths):
        alone = model(bags[row : row + 1, :length])
        torch.testing.assert_close(output.slide[row], alone.slide[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            output.patches[row, :length], alone.patches[0], rtol=1e-4, atol=1e-5
        )
        assert (output.patches[row, length:] == 0).all()


def test_masked_mode_trains_on_bags_with_rubbish_in_their_padding() -> None:
    model = make(mode="masked")
    bags = torch.randn(2, 30, 24)
    mask = torch.arange(30) < torch.tensor([[30], [7]])
    output = model(bags.masked_fill(~mask[:, :, None], torch.nan), mask)
    (output.slide.sum() + output.patches.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_public_padding_is_the_mean_of_the_bag_and_counts() -> None:
    model = make()
    bags = torch.randn(2, 30, 24)
    mask = torch.arange(30) < torch.tensor([[30], [12]])
    padded = bags.clone()
    padded[1, 12:] = bags[1, :12].mean(0)
    torch.testing.assert_close(
        tokens_of(model, bags.masked_fill(~mask[:, :, None], torch.nan), mask),
        tokens_of(model, padded),
        rtol=1e-5,
        atol=1e-5,
    )
    assert not torch.allclose(model(bags, mask).slide[1], model(bags[1:, :12]).slide[0], atol=1e-3)


@pytest.mark.parametrize("mode", ["public", "masked"])
def test_patch_tokens_come_in_the_order_of_the_input(mode: str) -> None:
    """The token of a patch reacts most to that patch."""
    model = make(mode=mode)
    bag = torch.randn(1, 45, 24)
    before = model(bag).patches
    for place in (0, 13, 44):
        changed = bag.clone()
        changed[0, place] += 3
        moved = (model(changed).patches - before).norm(dim=2)[0]
        assert moved.shape == (45,)
        assert int(moved.argmax()) == place


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_each_bag_has_its_own_grid(lengths: list[int]) -> None:
    """Against the three convolutions on a grid of its own, written out."""
    torch.manual_seed(0)
    grid, reference = PositionGrid(6), PublicGrid(6)
    reference.load_state_dict(grid.state_dict())
    tokens = torch.randn(len(lengths), max(lengths), 6)
    mixed = grid(tokens, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        side = math.ceil(math.sqrt(length))
        alone = torch.zeros(1, side * side, 6)
        alone[0, :length] = tokens[row, :length]
        expected = reference(alone)[0, :length]
        torch.testing.assert_close(mixed[row, :length], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["public", "masked"])
def test_dropout_acts_in_training_only(mode: str) -> None:
    model = make(mode=mode)
    bag = torch.randn(1, 20, 24)
    assert torch.equal(model(bag).slide, model(bag).slide)
    model.train()
    assert not torch.equal(model(bag).slide, model(bag).slide)


@pytest.mark.parametrize("attention", ["nystrom", "exact"])
@pytest.mark.parametrize("mode", ["public", "masked"])
def test_trains_under_autocast(mode: str, attention: str) -> None:
    model = make(mode=mode, attention=attention)
    bags = torch.randn(2, 50, 24)
    mask = torch.arange(50) < torch.tensor([[50], [30]])
    expected = model(bags, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(bags, mask)
        (found.slide.float().square().sum() + found.patches.float().sum()).backward()
    torch.testing.assert_close(found.slide.float(), expected.slide, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.patches.float(), expected.patches, rtol=0.1, atol=0.2)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_classifier_reads_the_slide_vector() -> None:
    model = make(num_classes=3)
    output = model(torch.randn(2, 20, 24))
    torch.testing.assert_close(output.logits, model._fc2(output.slide))
    assert make()(torch.randn(2, 20, 24)).logits is None


def test_bad_bags_are_named() -> None:
    model = make()
    bags, mask = torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(FeatureError, match=r"bags \[1\] of the batch have no patches"):
        model(bags, mask)
    mask[1, 2:] = True
    with pytest.raises(FeatureError, match="padded before its end"):
        model(bags, mask)
    with pytest.raises(FeatureError, match="expects features of 24 numbers, got 23"):
        model(bags[:, :, 1:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "padded"}, "mode: expected public or masked, got 'padded'"),
        ({"attention": "flash"}, "attention: expected nystrom or exact"),
        ({"mode": "masked", "inverse_scale": "tensor"}, "Use inverse_scale bag"),
        ({"heads": 5}, "cannot be divided among 5 heads"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, object], message: str) -> None:
    config = make().config
    for name, value in fields.items():  # past the annotations, as a JSON or a flag might
        object.__setattr__(config, name, value)
    with pytest.raises(ConfigError, match=message):
        Aggregator(config)
