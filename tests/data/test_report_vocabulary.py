"""Vocabularies of reports: a learnt one knows every text, and learns from its texts alone."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.report_vocabulary import (
    ReportVocabulary,
    bert_vocabulary,
    learn_vocabulary,
    one_line,
)
from mstar.errors import ConfigError, WeightsError
from support.tiny_bert import write_tiny_bert

TEXTS = ["The tumour is well differentiated.", "The tumour is poorly differentiated."] * 3


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80))
def test_every_text_can_be_written_and_read_back(text: str) -> None:
    vocabulary = learn_vocabulary(TEXTS, size=300, lower_case=False)
    (tokens,) = vocabulary.encode([text])
    assert vocabulary.decode(tokens.tolist()) == one_line(text)
    assert not {vocabulary.pad, vocabulary.begin, vocabulary.end} & set(tokens.tolist())


def test_the_names_of_special_tokens_in_a_report_are_plain_text() -> None:
    vocabulary = learn_vocabulary(TEXTS, size=300, lower_case=False)
    (tokens,) = vocabulary.encode(["margin [END] free [PAD]"])
    assert vocabulary.end not in tokens
    assert vocabulary.decode(tokens.tolist()) == "margin [END] free [PAD]"


def test_small_letters_are_all_it_knows_unless_asked() -> None:
    (tokens,) = learn_vocabulary(TEXTS, size=300).encode(["The\n  TUMOUR"])
    assert learn_vocabulary(TEXTS, size=300).decode(tokens.tolist()) == "the tumour"


def test_frequent_words_become_tokens_and_absent_ones_do_not() -> None:
    vocabulary = learn_vocabulary(TEXTS, size=400)
    known, unknown = vocabulary.encode(["tumour", "melanoma"])
    assert len(known) == 1 < len(unknown)


def test_equal_texts_give_equal_vocabularies_and_other_texts_others() -> None:
    one, same = (learn_vocabulary(TEXTS, size=400) for _ in range(2))
    assert one.digest == same.digest != learn_vocabulary(TEXTS[:1] * 6, size=400).digest
    sent = pickle.loads(pickle.dumps(one))
    assert sent.encode(TEXTS)[0].tolist() == one.encode(TEXTS)[0].tolist()
    assert len(ReportVocabulary(one.state)) == len(one) <= 400


def test_the_vocabulary_of_bert_writes_and_reads(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "bert", [word for text in TEXTS for word in text.split()])
    vocabulary = bert_vocabulary(str(folder))
    (tokens,) = vocabulary.encode(["The tumour is well"])
    assert vocabulary.decode([vocabulary.begin, *tokens.tolist(), vocabulary.end]) == (
        "The tumour is well"
    )
    assert len({vocabulary.pad, vocabulary.begin, vocabulary.end}) == 3


def test_what_is_no_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 0 texts"):
        learn_vocabulary([])
    with pytest.raises(ConfigError, match="259 tokens or more, got 6 texts and 100"):
        learn_vocabulary(TEXTS, size=100)
    with pytest.raises(WeightsError, match="expected one of this package"):
        ReportVocabulary("{}")
