"""Exports of stage 1: loadable alone, whole, and never changed in silence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mstar.errors import ConfigError, WeightsError
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.exports import read_export
from mstar.models.gene_encoder import GeneEncoder, GeneEncoderConfig
from mstar.models.stage1_files import (
    load_aggregator,
    load_gene_encoder,
    load_text_encoder,
    save_aggregator,
    save_gene_encoder,
    save_text_encoder,
)
from mstar.models.text_encoder import TextEncoder, TextEncoderConfig, pretrained_text_encoder
from support.s3 import make_bucket
from support.tiny_bert import write_tiny_bert

GENES = tuple(f"GENE{i}" for i in range(30))


def make_aggregator(**fields: object) -> Aggregator:
    torch.manual_seed(0)
    sizes = {"input_dim": 24, "dim": 32, "heads": 4, "landmarks": 8}
    return Aggregator(AggregatorConfig(**{**sizes, **fields})).eval()  # type: ignore[arg-type]


def make_gene_encoder() -> GeneEncoder:
    torch.manual_seed(0)
    config = GeneEncoderConfig(
        num_genes=30, dim=40, heads=4, head_dim=16, random_features=44, redraw_every=10
    )
    encoder = GeneEncoder(config, torch.randn(30, 40)).train()
    encoder.redraw(20)
    return encoder.eval()


@pytest.fixture
def text_encoder(tmp_path: Path) -> TextEncoder:
    folder = write_tiny_bert(tmp_path / "bert", ["a"], hidden=32)
    config = TextEncoderConfig(name=str(folder), gradient_checkpointing=False)
    return pretrained_text_encoder(config).eval()


@pytest.mark.parametrize("mode", ["public", "masked"])
@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_aggregators_come_back_as_they_were(tmp_path: Path, mode: str, attention: str) -> None:
    model = make_aggregator(mode=mode, attention=attention, num_classes=2)
    uri = save_aggregator(str(tmp_path), model, provenance={"step": 12})
    bag = torch.randn(1, 40, 24)
    for where in (str(tmp_path), uri):
        loaded = load_aggregator(where)
        assert loaded.config == model.config
        assert not loaded.training
        assert torch.equal(loaded(bag).slide, model(bag).slide)
    record = json.loads((tmp_path / "aggregator.json").read_text())
    assert record["config"]["mode"] == mode
    assert record["config"]["attention"] == attention
    assert record["provenance"] == {"step": 12}
    assert read_export(uri, "aggregator").record == record


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "masked"}, "mode: trained with 'public', asked 'masked'"),
        ({"attention": "exact"}, "attention: trained with 'nystrom', asked 'exact'"),
    ],
)
def test_another_mode_or_attention_has_to_be_allowed(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    save_aggregator(str(tmp_path), make_aggregator())
    with pytest.raises(WeightsError, match=told):
        load_aggregator(str(tmp_path), **change)  # type: ignore[arg-type]
    changed = load_aggregator(str(tmp_path), allow_change=True, **change)  # type: ignore[arg-type]
    assert {name: getattr(changed.config, name) for name in change} == change
    same = load_aggregator(str(tmp_path), mode="public", attention="nystrom")
    assert same.config.mode == "public"


def test_an_edited_json_is_refused_unless_allowed(tmp_path: Path) -> None:
    save_aggregator(str(tmp_path), make_aggregator())
    path = tmp_path / "aggregator.json"
    path.write_text(path.read_text().replace('"public"', '"masked"'))
    with pytest.raises(WeightsError, match=r"aggregator\.json: .*mode: trained with 'public'"):
        load_aggregator(str(tmp_path))
    assert load_aggregator(str(tmp_path), allow_change=True).config.mode == "masked"
    path.unlink()
    assert load_aggregator(str(tmp_path)).config.mode == "public"  # the weights know it too
    path.write_text("{")
    with pytest.raises(WeightsError, match="expected JSON"):
        load_aggregator(str(tmp_path))


@pytest.mark.parametrize("form", ["plain", "module", "stage1", "classifier"])
def test_published_aggregators_load(tmp_path: Path, form: str) -> None:
    """Sizes are read off the tensors; the mode is the public module's."""
    fields = {"dim": 64, "landmarks": 32, "num_classes": 3 if form == "classifier" else 0}
    model = make_aggregator(**fields)
    state = model.state_dict()
    content: dict[str, object] = dict(state)
    if form == "module":
        content = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    if form == "stage1":
        parts = {f"module.vision_encoder.{k}": v for k, v in state.items()}
        content = {"model_state_dict": {**parts, "module.proj_text.weight": torch.ones(2, 2)}}
    path = tmp_path / "published.pth"
    torch.save(content, path)
    loaded = load_aggregator(str(path))
    assert loaded.config == model.config
    bag = torch.randn(1, 40, 24)
    assert torch.equal(loaded(bag).slide, model(bag).slide)
    with pytest.raises(WeightsError, match="trained with 'public', asked 'masked'"):
        load_aggregator(str(path), mode="masked")


def test_text_encoders_come_back_without_their_source(
    tmp_path: Path, text_encoder: TextEncoder
) -> None:
    """Neither the hub nor the folder they came from is needed again."""
    save_text_encoder(str(tmp_path / "out"), text_encoder)
    for path in (tmp_path / "bert").iterdir():
        path.unlink()
    loaded = load_text_encoder(str(tmp_path / "out"))
    tokens, mask = torch.randint(5, 60, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(loaded(tokens, mask), text_encoder(tokens, mask))
    assert loaded.config == text_encoder.config


def test_gene_encoders_come_back_with_their_genes_and_projections(tmp_path: Path) -> None:
    model = make_gene_encoder()
    save_gene_encoder(str(tmp_path), model, GENES)
    loaded, genes = load_gene_encoder(str(tmp_path))
    assert genes == GENES
    assert torch.equal(loaded.projections, model.projections)
    assert not torch.equal(
        loaded.projections, GeneEncoder(model.config, torch.zeros(30, 40)).projections
    )
    ids = torch.randint(0, 6, (2, 30))
    assert torch.equal(loaded(ids), model(ids))
    assert not loaded.train().redraw(20)  # it knows its redraw
    with pytest.raises(ConfigError, match="names of its 30 genes, got 29"):
        save_gene_encoder(str(tmp_path), model, GENES[:29])


def test_exports_live_in_object_stores(s3_server: str) -> None:
    folder = f"{make_bucket('exports')}/run/best"
    model = make_aggregator()
    uri = save_aggregator(folder, model)
    bag = torch.randn(1, 40, 24)
    for where in (folder, uri):
        assert torch.equal(load_aggregator(where)(bag).slide, model(bag).slide)
    with pytest.raises(WeightsError, match="there is no such file"):
        load_gene_encoder(folder)


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    save_aggregator(str(tmp_path), make_aggregator())
    save_gene_encoder(str(tmp_path), make_gene_encoder(), GENES)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_aggregator(str(tmp_path))
    load_gene_encoder(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_exports_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_aggregator(str(tmp_path / folder), make_aggregator())
    for name in ("aggregator.safetensors", "aggregator.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(WeightsError, match=r"aggregator\.safetensors: there is no such file"):
        load_aggregator(folder)
    genes = save_gene_encoder(folder, make_gene_encoder(), GENES)
    with pytest.raises(WeightsError, match="expected an aggregator, got a gene encoder"):
        load_aggregator(genes)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    with pytest.raises(WeightsError, match=r"expected the tensors of a TransMIL .* got weight"):
        load_aggregator(str(other))
    with pytest.raises(WeightsError, match="it is no export of a gene encoder"):
        load_gene_encoder(str(other))


def test_missing_tensors_and_newer_files_are_refused(tmp_path: Path) -> None:
    uri = Path(save_aggregator(str(tmp_path), make_aggregator()))
    tensors: dict[str, Tensor] = load_file(uri)
    record = json.loads((tmp_path / "aggregator.json").read_text())

    def write(state: dict[str, Tensor], said: dict[str, object]) -> None:
        save_file(state, uri, metadata={"mstar": json.dumps(said)})

    write({k: v for k, v in tensors.items() if k != "norm.bias"}, record)
    with pytest.raises(WeightsError, match=r"1 missing: norm\.bias"):
        load_aggregator(str(uri))
    write(tensors, record | {"schema_version": 99})
    with pytest.raises(WeightsError, match="written in format 99"):
        load_aggregator(str(uri))
    write(tensors, record | {"config": {**record["config"], "rotary": True}})
    with pytest.raises(WeightsError, match="fields that are not known here: rotary"):
        load_aggregator(str(uri))
