"""A trained report generator: kept on disk, loaded, and asked for the texts of bags."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from mstar.config import to_dict
from mstar.data.report_vocabulary import ReportVocabulary
from mstar.downstream.model_files import SUFFIX, load_fit, save_fit
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.downstream.report_generation.texts import IGNORED, TokenTable, tokenise
from mstar.downstream.stream import BagSource, Batch, evaluation_batches
from mstar.downstream.trainer import FitResult
from mstar.errors import FeatureError, WeightsError
from mstar.models.histgen import DecodingConfig, Generated, HistGen, generate
from mstar.storage import objects

BAGS_AT_ONCE = 16  # of small bags, so that scores of all words at all places stay small


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A model that writes reports.

    fit: what training gave. options, vocabulary: as it was trained.
    facts: whatever was noted beside them.
    """

    fit: FitResult
    options: HistGenOptions
    vocabulary: ReportVocabulary
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The report of one bag.

    ended: False where it was cut at the longest length.
    """

    text: str
    tokens: int
    log_probability: float
    ended: bool


def save_writer(uri: str, writer: Writer) -> None:
    """Write the model whole: weights, sizes, vocabulary."""
    facts = {
        **writer.facts,
        "options": to_dict(writer.options),
        "vocabulary": writer.vocabulary.state,
    }
    save_fit(uri, writer.fit, facts)


def load_writer(uri: str) -> Writer:
    """Read a model.

    Raises:
        WeightsError: there is none, or it is a head.
    """
    saved = load_fit(uri)
    try:
        options = HistGenOptions(**saved.facts["options"])
        vocabulary = ReportVocabulary(saved.facts["vocabulary"])
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{uri}: expected a report generator, got a head of {saved.fit.config.head}. Give a "
            "model of a report_generation study."
        ) from error
    return Writer(fit=saved.fit, options=options, vocabulary=vocabulary, facts=saved.facts)


def find_writers(folder: str) -> list[Writer]:
    """The models of a finished study, one a fold and seed, in the order of their names.

    Raises:
        WeightsError: there are none.
    """
    models = objects.join(folder, "models")
    uris = sorted(info.uri for info in objects.list_files(models, suffix=SUFFIX))
    if not uris:
        raise WeightsError(f"{folder}: expected models of a finished study, got none.")
    return [load_writer(uri) for uri in uris]


def build_writer(writer: Writer, device: torch.device | str) -> HistGen:
    """The model with its weights, ready to write."""
    fit = writer.fit
    model = HistGen(writer.options.model, fit.input_dim, fit.num_outputs)
    model.load_state_dict(fit.best_state)
    return model.to(device).eval()


def write_reports(
    writer: Writer,
    source: BagSource,
    places: Int64[np.ndarray, " sample"],
    decoding: DecodingConfig | None = None,
) -> list[Written]:
    """The reports of the bags at some positions, in their order.

    Args:
        writer: a trained model.
        source: of bags.
        places: which of them.
        decoding: of the search; the model's own when not given.

    Raises:
        FeatureError: the features are of another length.
    """
    if source.dim != writer.fit.input_dim:
        raise FeatureError(
            f"report generator: expected features of {writer.fit.input_dim} numbers, got "
            f"{source.dim}. Use the features of the encoder it was trained on."
        )
    model, words = build_writer(writer, source.device), writer.vocabulary
    on = writer.options.precision == "bfloat16"
    found: list[Generated] = []
    with torch.autocast(source.device.type, torch.bfloat16, enabled=on):
        for batch in source.batches(places, evaluation_batches(source.sizes(places))):
            for part in cut_batch(batch, BAGS_AT_ONCE):
                found += generate(
                    model,
                    part.x,
                    part.offsets,
                    begin=words.begin,
                    end=words.end,
                    config=decoding or writer.options.decoding,
                )
    return _texts(words, found)


def reference_nll(
    writer: Writer,
    source: BagSource,
    places: Int64[np.ndarray, " sample"],
    references: Sequence[str],
) -> tuple[Float32[np.ndarray, " sample"], Int64[np.ndarray, " sample"]]:
    """Negative log-likelihood of true texts, as far as they are trained on, and their tokens."""
    model = build_writer(writer, source.device)
    tokens = tokenise(writer.vocabulary, references, writer.options.max_tokens).to(source.device)
    on = writer.options.precision == "bfloat16"
    found = []
    with torch.no_grad(), torch.autocast(source.device.type, torch.bfloat16, enabled=on):
        for batch in source.batches(places, evaluation_batches(source.sizes(places))):
            for part in cut_batch(batch, BAGS_AT_ONCE):
                rows = part.rows.to(source.device)
                found.append(token_nll(model, part, tokens, rows)[0].float().cpu())
    return torch.cat(found).numpy(), tokens.lengths.cpu().numpy()


def token_nll(
    model: HistGen, batch: Batch, tokens: TokenTable, rows: Int64[Tensor, " bag"]
) -> tuple[Float[Tensor, " bag"], Int64[Tensor, " bag"]]:
    """Negative log-likelihood of each bag's true text, and of how many tokens it is."""
    read, predicted = tokens.of(rows)
    logits = model(batch.x, batch.offsets, read).logits.float()
    every = cross_entropy(logits.transpose(1, 2), predicted, ignore_index=IGNORED, reduction="none")
    return every.sum(1), tokens.lengths[rows]


def cut_batch(batch: Batch, bags: int) -> Iterator[Batch]:
    """The bags of a batch, a few at a time."""
    for start in range(0, len(batch.rows), bags):
        edges = batch.offsets[start : start + bags + 1]
        yield Batch(
            step=batch.step,
            rows=batch.rows[start : start + bags],
            x=batch.x[int(edges[0]) : int(edges[-1])],
            offsets=edges - edges[0],
        )


def _texts(vocabulary: ReportVocabulary, found: Sequence[Generated]) -> list[Written]:
    return [
        Written(
            text=vocabulary.decode(one.tokens),
            tokens=len(one.tokens),
            log_probability=one.log_probability,
            ended=one.ended,
        )
        for one in found
    ]
