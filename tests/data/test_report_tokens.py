"""Report tokens: windows that depend on nothing but seed, epoch and case; offline; cased."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data import tokenizer_files
from mstar.data.report_tokens import ReportTokenConfig, ReportTokenizer, Tokens, Window, case_seed
from mstar.errors import ConfigError, WeightsError
from support.tiny_bert import SPECIAL, write_tiny_bert, write_tokenizer

WORDS = ["Carcinoma", "carcinoma", "grade", "Grade", "left", "breast", "tumour", "of", "the"]
BODY = 30  # max_tokens of the tests, without [CLS] and [SEP]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ReportTokenizer:
    return ReportTokenizer(folder, max_tokens=BODY + 2)


def body(tokens: Tokens) -> list[int]:
    return [int(i) for i in tokens.input_ids[tokens.attention_mask][1:-1]]


def report(num_tokens: int, first: int = 0) -> str:
    """A report whose tokens can be told apart by their place."""
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(num_tokens))


REPORTS = st.lists(st.integers(0, 3 * BODY).map(report), max_size=6)


# --- the window ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * BODY), st.integers(0, 5), st.sampled_from(["first", "random"]))
def test_a_window_is_a_piece_of_the_report_between_cls_and_sep(
    tokenizer: ReportTokenizer, num_tokens: int, epoch: int, window: Window
) -> None:
    text = report(num_tokens)
    tokens = tokenizer.encode(text, window=window, seed=case_seed(0, epoch, "a"))
    everything = tokenizer.token_ids([text])[0].tolist()
    kept = min(num_tokens, BODY)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (BODY + 2,)
    assert tokens.num_tokens == len(everything) == num_tokens
    assert tokens.input_ids[0] == tokenizer.cls_id
    assert tokens.input_ids[kept + 1] == tokenizer.sep_id
    assert (tokens.input_ids[kept + 2 :] == tokenizer.pad_id).all()
    assert tokens.attention_mask.tolist() == [True] * (kept + 2) + [False] * (BODY - kept)
    assert body(tokens) == everything[tokens.start : tokens.start + kept]
    assert window == "random" or tokens.start == 0


def test_same_as_transformers_own_truncation_and_padding(folder: Path) -> None:
    """An independent reference, at the paper's length."""
    from transformers import AutoTokenizer

    texts = [report(700), report(510), report(511), report(3), "Xylem (µm) [SEP]?", ""]
    ours = ReportTokenizer(folder).encode_batch(texts)
    theirs = AutoTokenizer.from_pretrained(folder)(
        texts,
        truncation=True,
        max_length=512,
        padding="max_length",
        split_special_tokens=True,
        return_tensors="np",
    )
    np.testing.assert_array_equal(ours.input_ids, theirs["input_ids"])
    np.testing.assert_array_equal(ours.attention_mask, theirs["attention_mask"].astype(bool))
    assert ours.input_ids.dtype == np.int64
    assert ours.input_ids.shape == (6, 512)


def test_random_windows_reach_every_place_equally(tokenizer: ReportTokenizer) -> None:
    ids = tokenizer.token_ids([report(BODY + 4)])[0]
    starts = [
        tokenizer.cut(ids, window="random", seed=case_seed(0, epoch, "a")).start
        for epoch in range(1000)
    ]
    counts = np.bincount(starts, minlength=5)
    assert len(counts) == 5
    assert abs(counts - 200).max() < 60  # 4.7 standard deviations


@pytest.mark.parametrize("other", [(1, 3, "a"), (0, 4, "a"), (0, 3, "b")])
def test_seed_epoch_and_case_each_move_the_window(
    tokenizer: ReportTokenizer, other: tuple[int, int, str]
) -> None:
    ids = np.arange(100_000)
    start = tokenizer.cut(ids, window="random", seed=case_seed(0, 3, "a")).start
    assert tokenizer.cut(ids, window="random", seed=case_seed(*other)).start != start


@settings(max_examples=25, deadline=None)
@given(REPORTS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_windows_do_not_depend_on_workers_batches_or_order(
    tokenizer: ReportTokenizer, texts: list[str], workers: int, random: object
) -> None:
    seeds = [case_seed(7, 2, f"case-{i}") for i in range(len(texts))]
    whole = tokenizer.encode_batch(texts, window="random", seeds=seeds).input_ids
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for worker in range(workers):
        mine = order[worker::workers]
        part = tokenizer.encode_batch(
            [texts[i] for i in mine], window="random", seeds=[seeds[i] for i in mine]
        )
        np.testing.assert_array_equal(part.input_ids, whole[mine])


def test_windows_are_the_same_in_every_process(tokenizer: ReportTokenizer) -> None:
    """Frozen numbers: a hash that Python salts, or another generator, would change them."""
    ids = np.arange(100_000)
    starts = [
        tokenizer.cut(ids, window="random", seed=case_seed(0, epoch, "TCGA-A2-A0T2")).start
        for epoch in range(3)
    ]
    assert starts == FROZEN_STARTS
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(report(50)).input_ids.tolist() == (
        tokenizer.encode(report(50)).input_ids.tolist()
    )
    assert again.digest == tokenizer.digest


FROZEN_STARTS = [50129, 97653, 62990]


# --- batches ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(REPORTS)
def test_a_batch_is_its_reports(tokenizer: ReportTokenizer, texts: list[str]) -> None:
    batch = tokenizer.encode_batch(texts)
    single = [tokenizer.encode(text) for text in texts]
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(texts), BODY + 2)
    for row, tokens in enumerate(single):
        np.testing.assert_array_equal(batch.input_ids[row], tokens.input_ids)
        np.testing.assert_array_equal(batch.attention_mask[row], tokens.attention_mask)
    assert batch.num_tokens.tolist() == [tokens.num_tokens for tokens in single]


@settings(max_examples=25, deadline=None)
@given(REPORTS)
def test_trimming_takes_padding_only(tokenizer: ReportTokenizer, texts: list[str]) -> None:
    full, short = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, trim=True)
    width = max((len(body(tokenizer.encode(text))) + 2 for text in texts), default=0)
    assert short.input_ids.shape == (len(texts), width)
    np.testing.assert_array_equal(short.input_ids, full.input_ids[:, :width])
    np.testing.assert_array_equal(short.attention_mask, full.attention_mask[:, :width])
    assert not full.attention_mask[:, width:].any()


def test_reports_of_zero_tokens_are_seen(tokenizer: ReportTokenizer) -> None:
    batch = tokenizer.encode_batch(["", "grade", " \n\t ", "\u200b"])
    assert batch.is_empty.tolist() == [True, False, True, True]
    assert tokenizer.encode("").is_empty
    assert batch.input_ids[0, :3].tolist() == [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]


def test_special_tokens_in_a_text_are_plain_text(tokenizer: ReportTokenizer) -> None:
    """An OCR'd `[PAD]` must not end a report."""
    ids = tokenizer.token_ids([" ".join(SPECIAL)])[0]
    assert not set(ids) & {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}


@pytest.mark.parametrize("seeds", [(), [(0, 0, 1)]])
def test_a_random_window_without_its_seed_is_refused(
    tokenizer: ReportTokenizer, seeds: Sequence[Sequence[int]]
) -> None:
    with pytest.raises(ConfigError, match="seed"):
        tokenizer.encode_batch([report(99), report(99)], window="random", seeds=seeds)
    with pytest.raises(ConfigError, match="needs case_seed"):
        tokenizer.encode(report(99), window="random")


def test_the_text_encoder_takes_the_batch(folder: Path, tokenizer: ReportTokenizer) -> None:
    """Padding changes nothing for the model, so the mask is the right one."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    texts = [report(5), report(40)]
    with torch.inference_mode():
        vectors = [
            model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
            ).last_hidden_state[0, 0]
            for batch in (
                tokenizer.encode_batch(texts),
                tokenizer.encode_batch(texts[:1], trim=True),
            )
        ]
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)


# --- casing -------------------------------------------------------------------------------------


def test_a_cased_vocabulary_keeps_capitals(tmp_path: Path) -> None:
    """BioBERT's folder states no casing; transformers then lowers what its vocabulary has cased."""
    vocabulary = write_tokenizer(tmp_path, WORDS)
    (tmp_path / "tokenizer_config.json").unlink()
    kept = ReportTokenizer(tmp_path).token_ids(["Carcinoma"])[0]
    lowered = ReportTokenizer(tmp_path, casing="files").token_ids(["Carcinoma"])[0]
    assert [vocabulary[i] for i in kept] == ["Carcinoma"]
    assert [vocabulary[i] for i in lowered] == ["carcinoma"]


def test_a_lower_case_vocabulary_lowers_the_text(tmp_path: Path) -> None:
    vocabulary = [*SPECIAL, "carcinoma"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = ReportTokenizer(tmp_path)
    assert [vocabulary[i] for i in tokenizer.token_ids(["Carcinoma"])[0]] == ["carcinoma"]


def test_digest_knows_vocabulary_and_casing(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", WORDS)
    write_tokenizer(tmp_path / "b", [*WORDS, "another"])
    write_tokenizer(tmp_path / "c", WORDS, cased=False)
    digests = [ReportTokenizer(tmp_path / n, casing="files").digest for n in "aabc"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# --- where it comes from ------------------------------------------------------------------------


def test_hub_id_without_hub_or_cache_says_how_to_bring_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"biobert-base-cased.*hf download dmis-lab/biobert"):
        ReportTokenizer()


def test_cached_tokenizer_is_used_without_asking_the_hub(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def snapshot(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only
        assert repo == "org/name"
        return str(folder)

    monkeypatch.setattr(tokenizer_files, "snapshot_download", snapshot)
    assert len(ReportTokenizer("org/name").token_ids(["grade left"])[0]) == 2


def test_cache_that_holds_weights_alone_is_completed_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """Without its vocabulary, transformers would make up one of five tokens."""
    asked = []

    def snapshot(
        repo: str, *, revision: str | None, local_files_only: bool = False, **rest: object
    ) -> str:
        asked.append((repo, revision, local_files_only))
        return str(tmp_path if local_files_only else folder)

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setattr(tokenizer_files, "snapshot_download", snapshot)
    assert len(ReportTokenizer("org/name@v2").token_ids(["grade left"])[0]) == 2
    assert asked == [("org/name", "v2", True), ("org/name", "v2", False)]


def test_unreachable_hub_is_a_weights_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repo: str, **rest: object) -> str:
        raise LocalEntryNotFoundError("no") if "local_files_only" in rest else ConnectionError("no")

    monkeypatch.setattr(tokenizer_files, "snapshot_download", snapshot)
    with pytest.raises(WeightsError, match=r"ConnectionError.*copy FOLDER here"):
        ReportTokenizer("org/name")


@pytest.mark.parametrize("name", ["/nowhere/biobert", "./biobert", "biobert", "a/b/c"])
def test_folder_that_is_not_there_never_asks_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(tokenizer_files, "snapshot_download")
    with pytest.raises(WeightsError, match="no such folder"):
        ReportTokenizer(name)


def test_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"expected one of tokenizer.json, vocab.txt"):
        ReportTokenizer(tmp_path)


def test_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=str(tmp_path)):
        ReportTokenizer(tmp_path)


def test_vocabulary_without_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\ngrade\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="lacks cls_token, sep_token"):
        ReportTokenizer(tmp_path)


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_lengths_that_the_model_cannot_take_are_refused(folder: Path, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        ReportTokenizer(folder, max_tokens=max_tokens)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, WORDS)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 20}')
    with pytest.raises(WeightsError, match="its model has 20 tokens"):
        ReportTokenizer(tmp_path)


def test_tokenizer_in_an_object_store(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tokenizer: ReportTokenizer
) -> None:
    """Its few files are copied for as long as it loads."""
    monkeypatch.setattr(tokenizer_files.objects, "exists", lambda uri: here(uri).exists())
    monkeypatch.setattr(tokenizer_files.objects, "read_bytes", lambda uri: here(uri).read_bytes())

    def here(uri: str) -> Path:
        assert uri.startswith("s3://bucket/bert/")
        return folder / uri.rpartition("/")[2]

    assert ReportTokenizer("s3://bucket/bert").digest == tokenizer.digest


def test_config_makes_the_tokenizer(folder: Path) -> None:
    config = ReportTokenConfig(tokenizer=str(folder), max_tokens=8)
    tokenizer = ReportTokenizer.from_config(config)
    assert tokenizer.encode("grade").input_ids.shape == (8,)
    assert tokenizer.vocab_size > len(WORDS)
