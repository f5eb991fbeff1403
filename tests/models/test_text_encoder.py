"""The text encoder: which token it reads, what it loads, and what it refuses to load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mstar.errors import WeightsError
from mstar.models.first_token import compute_first_token_only, mask_for_all
from mstar.models.text_encoder import (
    TextEncoder,
    TextEncoderConfig,
    empty_text_encoder,
    pretrained_text_encoder,
)
from support.tiny_bert import write_tiny_bert


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"), ["tumour", "margin", "free"])


def load(folder: Path, **fields: object) -> TextEncoder:
    torch.manual_seed(0)
    return pretrained_text_encoder(TextEncoderConfig(name=str(folder), **fields))  # type: ignore[arg-type]


def reports(lengths: tuple[int, ...] = (9, 5)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(5, 60, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~mask, 0), mask


def test_output_is_the_projected_first_hidden_state(bert_folder: Path) -> None:
    from transformers import BertModel

    model = load(bert_folder).eval()
    tokens, mask = reports()
    reference = BertModel.from_pretrained(bert_folder).eval()
    hidden = reference(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    expected = hidden[:, 0] @ model.proj_text.weight.T + model.proj_text.bias
    found = model(tokens, mask)
    assert found.shape == (2, 512)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_last_layer_computes_the_first_token_alone(tmp_path: Path, layers: int) -> None:
    """With the gradients of a layer that computes all of them, also for masked tokens."""
    from transformers import BertModel

    folder = write_tiny_bert(tmp_path, ["a"], layers=layers)
    whole, part = (BertModel.from_pretrained(folder, add_pooling_layer=False) for _ in range(2))
    whole.eval(), part.eval()
    assert compute_first_token_only(part)
    tokens, mask = reports((9, 5, 1))
    found = part(input_ids=tokens, attention_mask=mask_for_all(mask)).last_hidden_state
    expected = whole(input_ids=tokens, attention_mask=mask.long()).last_hidden_state[:, :1]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for result in (found, expected):
        result.square().sum().backward()
    gradients = [{n: p.grad for n, p in m.named_parameters()} for m in (part, whole)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert part.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("kind", ["distilbert", "eager"])
def test_other_models_are_left_as_they_are(tmp_path: Path, kind: str) -> None:
    from transformers import BertModel, DistilBertConfig, DistilBertModel

    if kind == "eager":
        folder = write_tiny_bert(tmp_path, ["a"])
        bert = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    else:
        bert = DistilBertModel(DistilBertConfig(vocab_size=70, dim=64, n_heads=2)).eval()
    tokens, mask = reports()
    expected = bert(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    model = TextEncoder(TextEncoderConfig(), bert).eval()
    torch.testing.assert_close(model(tokens, mask), model.proj_text(expected[:, 0]))


def test_padding_changes_nothing(bert_folder: Path) -> None:
    model = load(bert_folder).eval()
    tokens, mask = reports()
    alone = model(tokens[1:, :5], mask[1:, :5])
    torch.testing.assert_close(model(tokens, mask)[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens[1:], torch.ones_like(mask[1:])), alone, atol=1e-4)


def test_there_is_no_pooler_and_the_hidden_size_is_free(tmp_path: Path) -> None:
    model = load(write_tiny_bert(tmp_path, ["a"], hidden=32), output_dim=24)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert model.proj_text.weight.shape == (24, 32)


def test_published_size() -> None:
    """BioBERT's: 107.72 M without a pooler, and the projection. On the meta device: no memory."""
    base = {"model_type": "bert", "vocab_size": 28996, "hidden_size": 768}
    with torch.device("meta"):
        model = empty_text_encoder(TextEncoderConfig(), base)
    bert = sum(p.numel() for p in model.bert.parameters())
    assert round(bert / 1e6, 2) == 107.72
    assert sum(p.numel() for p in model.proj_text.parameters()) == 768 * 512 + 512


def test_checkpointing_changes_no_gradient(bert_folder: Path) -> None:
    gradients = []
    for on in (False, True):
        model = load(bert_folder, gradient_checkpointing=on).train()
        assert model.bert.is_gradient_checkpointing is on
        torch.manual_seed(5)  # the same dropout
        model(*reports()).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_weights_are_float32_whatever_the_file_holds(bert_folder: Path, tmp_path: Path) -> None:
    halved = {k: v.half() for k, v in load_file(bert_folder / "model.safetensors").items()}
    copy_folder(bert_folder, tmp_path, halved)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_masked_language_model_checkpoints_load(bert_folder: Path, tmp_path: Path) -> None:
    """As BioBERT is published: tensors under `bert.`, and a head that is not wanted."""
    tensors = load_file(bert_folder / "model.safetensors")
    prefixed = {f"bert.{k}": v for k, v in tensors.items()}
    prefixed["cls.predictions.bias"] = torch.ones(9)
    copy_folder(bert_folder, tmp_path, prefixed)
    tokens, mask = reports()
    expected, found = load(bert_folder).eval(), load(tmp_path).eval()
    found.proj_text.load_state_dict(expected.proj_text.state_dict())
    torch.testing.assert_close(found(tokens, mask), expected(tokens, mask))


def test_missing_tensors_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    """The library would draw them at random and go on."""
    tensors = load_file(bert_folder / "model.safetensors")
    dropped = {k: v for k, v in tensors.items() if "layer.1.attention.self.query" not in k}
    copy_folder(bert_folder, tmp_path, dropped)
    with pytest.raises(WeightsError, match=r"2 tensors are not in its weights, such as .*query"):
        load(tmp_path)


def test_absent_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"nowhere: cannot be loaded .* local folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load(tmp_path)


def copy_folder(source: Path, target: Path, tensors: dict[str, Tensor]) -> None:
    (target / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
