"""Training of the report generator by the platform's one loop: what differs from a head.

The loop gives packed bags and takes steps; a `ReportFit` reads the true text of each bag's case
beside it. On validation it is judged by measures of each case: the likelihood of the true text, and
of a greedy text its BLEU, unless the loss alone chooses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mstar.data.report_vocabulary import ReportVocabulary
from mstar.downstream.config import TrialConfig
from mstar.downstream.fold_views import FoldView
from mstar.downstream.objectives import Objective
from mstar.downstream.report_generation.measures import text_measures
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.downstream.report_generation.texts import IGNORED, TokenTable, tokenise
from mstar.downstream.report_generation.writing import BAGS_AT_ONCE, cut_batch, token_nll
from mstar.downstream.statistics.generation import column
from mstar.downstream.stream import BagSource, Batch
from mstar.downstream.trainer import Fit
from mstar.models.histgen import DecodingConfig, HistGen, greedy
from mstar.training.seeds import reseed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportTask:
    """What a fit needs besides bags: texts of all samples of the task, and how to train on them."""

    options: HistGenOptions
    vocabulary: ReportVocabulary
    texts: tuple[str, ...]

    def make_fit(
        self, view: FoldView, source: BagSource, config: TrialConfig, seed: int
    ) -> "ReportFit":
        """As `train_population` asks for it."""
        return ReportFit(self, view, source, config, seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextToken:
    """Teacher forcing: the mean negative log-likelihood of the tokens of some reports."""

    tokens: TokenTable
    num_outputs: int
    scores: str = "measures"

    def labels(self, rows: Int64[Tensor, " bag"]) -> Int64[Tensor, "bag token"]:
        """The tokens that are read."""
        return self.tokens.of(rows)[0]

    def loss(
        self, logits: Float[Tensor, "bag token word"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """The mean over all tokens of the reports."""
        predicted = self.tokens.of(rows)[1]
        return cross_entropy(
            logits.flatten(0, 1).float(), predicted.flatten(), ignore_index=IGNORED
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """The selecting part: its loss is in the measures already."""

    num_outputs: int
    scores: str = "measures"

    def labels(self, rows: Int64[Tensor, " bag"]) -> None:
        """None: nothing is trained on it."""

    def loss(
        self, logits: Float[Tensor, "bag measure"], rows: Int64[Tensor, " bag"]
    ) -> Float[Tensor, ""]:
        """Negative log-likelihood a token."""
        return logits[:, column("nll")].sum() / logits[:, column("tokens")].sum()


class ReportFit(Fit):
    """One report generator while it trains on one fold with one seed."""

    def __init__(
        self, task: ReportTask, view: FoldView, source: BagSource, config: TrialConfig, seed: int
    ) -> None:
        """Draw the weights by (seed, fold)."""
        self._task, self._options = task, task.options
        self._val_texts = [task.texts[at] for at in view.select.places.tolist()]
        self._val_tokens = self._tokens(self._val_texts).to(source.device)
        self._train_tokens = self._tokens([task.texts[at] for at in view.train.places.tolist()]).to(
            source.device
        )
        super().__init__(view, source, config, seed)
        self._optimizer = torch.optim.Adam(
            self.head.parameters(),
            config.lr,
            weight_decay=config.weight_decay,
            amsgrad=self._options.amsgrad,
            fused=True,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate of the epoch."""
        super().begin_epoch(epoch)
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] *= self._options.lr_factor**epoch

    def logits(self, batch: Batch) -> Float[Tensor, "bag measure"]:
        """Measures of each bag of the selecting part, as the model is now."""
        parts = [self._measured(part) for part in cut_batch(batch, BAGS_AT_ONCE)]
        return torch.cat(parts)

    def _measured(self, batch: Batch) -> Float[Tensor, "bag measure"]:
        model, rows = self.head.eval(), batch.rows.to(self._source.device)
        assert isinstance(model, HistGen)
        with torch.no_grad(), self.precision():
            nll, lengths = token_nll(model, batch, self._val_tokens, rows)
            texts = self._greedy_texts(model, batch)
        references = [self._val_texts[at] for at in batch.rows.tolist()]
        measures = text_measures(texts, references, overlap=False)
        measures[:, column("nll")] = nll.cpu().numpy()
        measures[:, column("tokens")] = lengths.cpu().numpy()
        return torch.from_numpy(measures).to(self._source.device)

    def _greedy_texts(self, model: HistGen, batch: Batch) -> list[str]:
        """Texts by which the epoch is chosen; none where the loss chooses."""
        if self._options.select == "loss":
            return [""] * len(batch.rows)
        words = self._task.vocabulary
        config = DecodingConfig(
            beam=1,
            max_new_tokens=self._options.decoding.max_new_tokens,
            block_ngrams=self._options.block_ngrams,
        )
        found = greedy(
            model, batch.x, batch.offsets, begin=words.begin, end=words.end, config=config
        )
        return [words.decode(one.tokens) for one in found]

    def _objectives(self) -> tuple[Objective, Objective]:
        size = len(self._task.vocabulary)
        train = NextToken(tokens=self._train_tokens, num_outputs=size)
        return train, Measured(num_outputs=size)

    def _make_head(self) -> nn.Module:
        reseed("weights", self.seed, self._view.fold)
        size = self._objective.num_outputs
        return HistGen(self._options.model, self._source.dim, size).to(self._source.device)

    def _is_trained(self) -> bool:
        return True

    def _score(self, scores: Float[np.ndarray, "sample score"]) -> float:
        if self._options.select == "loss":
            return -float(scores[:, column("nll")].sum() / scores[:, column("tokens")].sum())
        return super()._score(scores)

    def _update(self) -> None:
        if self._options.clip:
            bound = self._options.clip * self._pending  # gradients are sums of the pending steps
            nn.utils.clip_grad_value_(self.head.parameters(), bound)
        super()._update()

    def _tokens(self, texts: list[str]) -> TokenTable:
        return tokenise(self._task.vocabulary, texts, self._options.max_tokens)
