"""load_vocabulary and validate_vocabulary, checked against the libraries that wrote the files.

Owns: one tokenizer of each kind, trained here on a few sentences, and what must hold for the bytes of its tokens.
Knows nothing about: masks and grammars.
Oracles: huggingface/tokenizers' own encoder, mistral-common's Tekkenizer, tiktoken's own loader.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import tiktoken.load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from maskd.errors import VocabularyError
from maskd.tokenizer_files import load_vocabulary, reading, validate_vocabulary
from maskd.vocabulary import Vocabulary

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    'A record is {"name": "Ada", "born": 1815, "languages": ["English", "French"]}.',
    "Grüße aus Köln, où l'été est court. Привет, мир! 你好,世界。",
    "Emoji: 👩‍💻 🎉 🇫🇷 and\ttabs,\n\nnew lines and   spaces.",
)
TEXTS = (
    *SENTENCES,
    "",
    " ",
    "   leading and trailing   ",
    "a\r\n\tb\u00a0c\u2028d\u3000e",
    "".join(map(chr, range(0x80))),
    "".join(map(chr, range(0x80, 0x180))),
    "👩‍👩‍👧‍👦🏳️‍🌈\U0001f9ff\U0010ffff\ufffd\ufeff",
    "Größe Ġxyz Ġ Ċ ▁ <|end|>x<tool_call>",
)
ANY_TEXT = st.text(max_size=40) | st.lists(st.sampled_from(TEXTS), max_size=3).map("".join)
TEKKEN_FILES = sorted((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json"))


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
    tokenizer.add_tokens(["<tool_call>", "Größe", "   ", "Ġxyz"])
    return tokenizer


def byte_fallback_bpe() -> Tokenizer:
    """A tokenizer as Llama 2's: trained on ▁-separated words, then given byte tokens, as the trainer cannot do it."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    data = json.loads(trained.to_str())
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained_tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"] |= {
        "vocab": {token: n for n, token in enumerate(first + trained_tokens)},
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def byte_fallback_unigram() -> Tokenizer:
    """A tokenizer as ALBERT's successors: ▁ by pre-tokenizer and decoder, every ASCII letter and byte a token."""
    letters = [(chr(code), -6.0) for code in range(0x21, 0x7F)]
    words = [("▁", -3.0), ("▁the", -2.0), ("▁quick", -2.0), ("ing", -2.0), ("ö", -4.0), ("你好", -4.0), ("▁▁▁", -2.0)]
    bytes_ = [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *bytes_, *letters, *words], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


SENTENCEPIECE_STYLE = {"bpe": byte_fallback_bpe, "unigram": byte_fallback_unigram}


def save(directory: Path, tokenizer: Tokenizer, **files: dict[str, Any]) -> Path:
    """Writes ``tokenizer`` and JSON ``files`` (by stem) as a model's directory."""
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    for stem, content in files.items():
        (directory / f"{stem}.json").write_text(json.dumps(content))
    return directory


def edited(path: Path, **changes: Any) -> Path:
    """Changes top-level fields of the tokenizer.json in ``path``; a dict is merged, anything else replaces."""
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) and isinstance(data.get(key), dict) else value
    file.write_text(json.dumps(data))
    return path


def joined(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.tokens[token_id] for token_id in ids)


@pytest.fixture(scope="module")
def byte_level_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = byte_level()
    path = save(
        tmp_path_factory.mktemp("byte_level"),
        tokenizer,
        generation_config={"eos_token_id": tokenizer.token_to_id("<|end|>")},
    )
    return tokenizer, load_vocabulary(path)


@pytest.fixture(scope="module", params=SENTENCEPIECE_STYLE)
def sentencepiece_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = SENTENCEPIECE_STYLE[request.param]()
    return tokenizer, load_vocabulary(
        save(tmp_path_factory.mktemp("sp"), tokenizer, special_tokens_map={"eos_token": "</s>"})
    )


def sentencepiece_text(text: str) -> bytes:
    """What SentencePiece keeps of a text: one more space at its start, and no difference between ▁ and space."""
    return (" " + text).replace("▁", " ").encode()


# --- Hugging Face: bytes of tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_when_joined_then_spell_the_text(
    byte_level_pair: tuple[Tokenizer, Vocabulary], text: str
) -> None:
    """Whatever the library encodes, the bytes of its ids are the text."""
    tokenizer, vocabulary = byte_level_pair
    assert joined(vocabulary, tokenizer.encode(text).ids) == text.encode()


def test_byte_token_names_when_byte_level_then_are_plain_text(byte_level_pair: tuple[Tokenizer, Vocabulary]) -> None:
    """<0x41> is a byte only where the decoder says so."""
    tokenizer, vocabulary = byte_level_pair
    assert joined(vocabulary, tokenizer.encode("<0x41>").ids) == b"<0x41>"


@given(text=ANY_TEXT)
def test_byte_level_tokens_when_any_text_then_spell_it(
    byte_level_pair: tuple[Tokenizer, Vocabulary], text: str
) -> None:
    """The same for every text there is, added tokens included."""
    tokenizer, vocabulary = byte_level_pair
    assert joined(vocabulary, tokenizer.encode(text).ids) == text.encode()


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_sentencepiece_tokens_when_joined_then_spell_the_text(
    sentencepiece_pair: tuple[Tokenizer, Vocabulary], text: str
) -> None:
    """The bytes of the ids are the text with the one space that SentencePiece puts before it."""
    tokenizer, vocabulary = sentencepiece_pair
    text = text.lstrip() or "x"  # a Metaspace adds no space where there is one
    assert joined(vocabulary, tokenizer.encode(text).ids) == sentencepiece_text(text)


@given(text=st.text(min_size=1, max_size=40))
def test_sentencepiece_tokens_when_any_text_then_spell_it(
    sentencepiece_pair: tuple[Tokenizer, Vocabulary], text: str
) -> None:
    """The same for every text that does not start with a space."""
    tokenizer, vocabulary = sentencepiece_pair
    text = "x" + text
    assert joined(vocabulary, tokenizer.encode(text).ids) == sentencepiece_text(text)


@given(ids=st.lists(st.integers(3, 300), max_size=20))
def test_sentencepiece_tokens_when_any_ids_then_read_as_the_library_decodes(
    sentencepiece_pair: tuple[Tokenizer, Vocabulary], ids: list[int]
) -> None:
    """Where the bytes are UTF-8, the library's decoder prints the same, less a space at the start."""
    tokenizer, vocabulary = sentencepiece_pair
    raw = joined(vocabulary, ids)
    try:
        expected = raw.decode()
    except UnicodeDecodeError:
        return  # the library prints U+FFFD there
    assert tokenizer.decode(ids, skip_special_tokens=False) in (expected, expected.removeprefix(" "))


def test_byte_tokens_when_byte_fallback_then_are_single_bytes(sentencepiece_pair: tuple[Tokenizer, Vocabulary]) -> None:
    """<0x00> to <0xFF> are the 256 bytes, also those that no UTF-8 has."""
    tokenizer, vocabulary = sentencepiece_pair
    assert [vocabulary.tokens[tokenizer.token_to_id(f"<0x{byte:02X}>")] for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]


def test_unknown_token_when_only_the_model_names_it_then_is_special(
    sentencepiece_pair: tuple[Tokenizer, Vocabulary],
) -> None:
    """The unknown token never stands for its own name."""
    tokenizer, vocabulary = sentencepiece_pair
    assert tokenizer.token_to_id("<unk>") in vocabulary.special_token_ids


def test_added_tokens_when_special_then_keep_their_name_and_others_are_text(
    byte_level_pair: tuple[Tokenizer, Vocabulary],
) -> None:
    """special=true goes to special_token_ids; special=false is ordinary text, plain and not in the byte alphabet."""
    tokenizer, vocabulary = byte_level_pair
    ids = {
        text: tokenizer.token_to_id(text)
        for text in ("<|begin|>", "<|end|>", "<|turn|>", "<tool_call>", "Größe", "   ", "Ġxyz")
    }
    assert {text: vocabulary.tokens[token_id] for text, token_id in ids.items()} == {
        text: text.encode() for text in ids
    }
    assert set(vocabulary.special_token_ids) == {ids["<|begin|>"], ids["<|end|>"], ids["<|turn|>"]}


def test_added_token_when_trained_as_well_then_keeps_its_bytes(tmp_path: Path) -> None:
    """To list the token of the space among the added ones makes it no other token: the model still writes spaces with
    it."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["Ġ"])
    vocabulary = load_vocabulary(save(tmp_path, tokenizer), stop_token_ids=[0])
    assert (
        vocabulary.tokens[tokenizer.token_to_id("Ġ")] == b" " == tokenizer.decode([tokenizer.token_to_id("Ġ")]).encode()
    )


def test_added_token_when_sentencepiece_then_reads_as_the_decoder_prints(tmp_path: Path) -> None:
    """Gemma adds runs of ▁ as tokens: they are runs of spaces."""
    tokenizer = byte_fallback_bpe()
    tokenizer.add_tokens([AddedToken("▁▁▁▁", normalized=False)])
    vocabulary = load_vocabulary(save(tmp_path, tokenizer), stop_token_ids=[2])
    assert vocabulary.tokens[tokenizer.token_to_id("▁▁▁▁")] == b"    "


def test_decoder_when_absent_then_is_inferred_from_the_other_parts(tmp_path: Path) -> None:
    """A file without a decoder still says how it spells spaces and bytes."""
    for n, make in enumerate((byte_level, byte_fallback_bpe, byte_fallback_unigram)):
        path = save(tmp_path / str(n), make())
        expected = load_vocabulary(path, stop_token_ids=[2])
        assert load_vocabulary(edited(path, decoder=None), stop_token_ids=[2]).tokens == expected.tokens


def test_model_when_it_has_no_type_then_is_told_by_its_fields(tmp_path: Path) -> None:
    """GPT-2's own tokenizer.json has no model.type."""
    for n, make in enumerate((byte_level, byte_fallback_unigram)):
        path = save(tmp_path / str(n), make())
        expected = load_vocabulary(path, stop_token_ids=[2])
        assert load_vocabulary(edited(path, model={"type": None}), stop_token_ids=[2]) == expected


def test_ids_when_there_are_holes_then_have_empty_bytes(tmp_path: Path) -> None:
    """An id that no file mentions stands for nothing, and is not special."""
    path = save(tmp_path, byte_level())
    added = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    added.append(added[-1] | {"id": 1000, "content": "<last>"})
    vocabulary = load_vocabulary(edited(path, added_tokens=added), stop_token_ids=[1000])
    assert (len(vocabulary.tokens), vocabulary.tokens[999], vocabulary.tokens[1000]) == (1001, b"", b"<last>")
    assert 999 not in vocabulary.special_token_ids


# --- Hugging Face: the files beside tokenizer.json -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": 7}}, (7,)),
        ({"generation_config": {"eos_token_id": [9, 7]}}, (7, 9)),
        ({"generation_config": {"eos_token_id": 7}, "config": {"eos_token_id": 8}}, (7,)),
        ({"generation_config": {}, "config": {"eos_token_id": 8}}, (8,)),
        ({"config": {"text_config": {"eos_token_id": [8]}}}, (8,)),
        ({"tokenizer_config": {"eos_token": "<|end|>"}}, ("<|end|>",)),
        ({"tokenizer_config": {"eos_token": {"content": "<|end|>", "special": True}}}, ("<|end|>",)),
        ({"special_tokens_map": {"eos_token": "<|turn|>"}}, ("<|turn|>",)),
        ({"generation_config": {"eos_token_id": 7}, "tokenizer_config": {"eos_token": "<|end|>"}}, (7, "<|end|>")),
    ],
)
def test_stop_tokens_when_files_name_them_then_are_taken_in_order(
    tmp_path: Path, files: dict[str, dict[str, Any]], expected: tuple[int | str, ...]
) -> None:
    """The generation config goes before the model's config; the tokenizer's own eos_token always counts."""
    tokenizer = byte_level()
    ids = tuple(tokenizer.token_to_id(item) if isinstance(item, str) else item for item in expected)
    assert load_vocabulary(save(tmp_path, tokenizer, **files)).stop_token_ids == ids


def test_stop_tokens_when_the_caller_gives_them_then_replace_those_in_files(tmp_path: Path) -> None:
    """The caller has the last word."""
    path = save(tmp_path, byte_level(), generation_config={"eos_token_id": 7})
    assert load_vocabulary(path, stop_token_ids=[5, 4, 5]).stop_token_ids == (4, 5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vocab_size": 512}, 512),
        ({"text_config": {"vocab_size": 640}}, 640),
        ({"vocab_size": 512, "text_config": {"vocab_size": 640}}, 640),
        ({}, None),
    ],
)
def test_vocab_size_when_config_has_it_then_is_the_width_of_the_logits(
    tmp_path: Path, config: dict[str, Any], expected: int | None
) -> None:
    """Logits are often padded; the tail stands for no token."""
    tokenizer = byte_level()
    path = save(tmp_path, tokenizer, config=config)
    vocabulary = load_vocabulary(path, stop_token_ids=[0])
    assert len(vocabulary.tokens) == tokenizer.get_vocab_size()
    assert vocabulary.vocab_size == (expected or tokenizer.get_vocab_size())
    assert load_vocabulary(path, stop_token_ids=[0], vocab_size=700).vocab_size == 700


def test_vocab_size_when_below_added_tokens_then_drops_them(tmp_path: Path) -> None:
    """No logit can choose a token beyond the width; trained tokens beyond it mean the wrong tokenizer."""
    tokenizer = byte_level()
    path = save(tmp_path, tokenizer)
    width = tokenizer.token_to_id("<tool_call>")
    vocabulary = load_vocabulary(path, stop_token_ids=[0], vocab_size=width)
    assert (len(vocabulary.tokens), vocabulary.vocab_size) == (width, width)
    with pytest.raises(VocabularyError, match="do not belong together"):
        load_vocabulary(path, stop_token_ids=[0], vocab_size=300)


def test_tokenizer_config_when_it_adds_tokens_then_they_count(tmp_path: Path) -> None:
    """added_tokens_decoder adds tokens and decides whether they are special; named tokens are special as well."""
    tokenizer = byte_level()
    tool, new = tokenizer.token_to_id("<tool_call>"), tokenizer.get_vocab_size()
    config = {
        "added_tokens_decoder": {
            str(tool): {"content": "<tool_call>", "special": True},
            str(new): {"content": "<é>", "special": False},
        },
        "eos_token": "<|end|>",
        "pad_token": None,
        "additional_special_tokens": ["Größe", {"content": "<not there>"}],
        "extra_special_tokens": {"image_token": "the"},
    }
    vocabulary = load_vocabulary(save(tmp_path, tokenizer, tokenizer_config=config))
    assert vocabulary.tokens[new] == "<é>".encode()
    assert new not in vocabulary.special_token_ids
    assert {tool, *map(tokenizer.token_to_id, ("Größe", "the"))} <= set(vocabulary.special_token_ids)


def test_file_path_when_given_then_reads_that_file_only(tmp_path: Path) -> None:
    """Files beside a file count only if their directory was asked for."""
    path = save(tmp_path / "model", byte_level(), generation_config={"eos_token_id": 7}, config={"vocab_size": 512})
    with pytest.raises(VocabularyError, match="no stop token is known; give stop_token_ids"):
        load_vocabulary(path / "tokenizer.json")
    alone = load_vocabulary(str(path / "tokenizer.json"), stop_token_ids=[7])
    assert (alone.vocab_size, alone.name, load_vocabulary(path).name) == (len(alone.tokens), "tokenizer.json", "model")
    assert load_vocabulary(path, name="mine").name == "mine"


# --- tekken and tiktoken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEKKEN_FILES, ids=lambda path: path.stem)
def test_tekken_when_read_then_agrees_with_mistral_common(path: Path) -> None:
    """Every id has the bytes, or the special name, that mistral-common gives it."""
    oracle, vocabulary = Tekkenizer.from_file(path), load_vocabulary(path)
    assert vocabulary.vocab_size == len(vocabulary.tokens) == oracle.n_words
    assert vocabulary.stop_token_ids == (oracle.eos_id,)
    assert set(vocabulary.special_token_ids) == oracle.special_ids
    for token_id, token in enumerate(vocabulary.tokens):
        assert token == (
            oracle.id_to_piece(token_id).encode() if oracle.is_special(token_id) else oracle.id_to_byte_piece(token_id)
        )
    assert joined(vocabulary, oracle.encode(TEXTS[2], bos=False, eos=False)) == TEXTS[2].encode()
    assert validate_vocabulary(vocabulary) == ()


def tekken(**changes: Any) -> dict[str, Any]:
    """A tekken file of 256 bytes, one unused rank and 4 special tokens, 3 of them listed."""
    names = ("<unk>", "<s>", "</s>")
    return {
        "config": {"pattern": ".", "default_vocab_size": 260, "default_num_special_tokens": 4, "version": "v13"},
        "vocab": [
            {"rank": n, "token_bytes": base64.b64encode(bytes([n % 256])).decode(), "token_str": None}
            for n in range(257)
        ],
        "special_tokens": [{"rank": n, "token_str": name, "is_control": True} for n, name in enumerate(names)],
    } | changes


def test_tekken_when_it_lists_special_tokens_then_takes_and_fills_them(tmp_path: Path) -> None:
    """Newer files list their special tokens; the rest up to the count gets mistral-common's filler names. A directory
    works too."""
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 288}))
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.tokens == (b"<unk>", b"<s>", b"</s>", b"<SPECIAL_3>", *(bytes([n]) for n in range(256)))
    assert (vocabulary.stop_token_ids, vocabulary.special_token_ids, vocabulary.vocab_size) == ((2,), (0, 1, 2, 3), 288)


def test_tiktoken_when_read_then_agrees_with_tiktoken(tmp_path: Path) -> None:
    """Ids are ranks; stop tokens beyond the ranks become special tokens with a made-up name, and ids between are
    holes."""
    contents = [bytes([byte]) for byte in range(256)] + [b"the", "é".encode(), b"\xf0\x9f", b"   "]
    file = tmp_path / "small.tiktoken"
    file.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(contents)))
    vocabulary = load_vocabulary(file, stop_token_ids=[262])
    assert tiktoken.load.load_tiktoken_bpe(str(file)) == {token: n for n, token in enumerate(vocabulary.tokens[:260])}
    assert vocabulary.tokens[260:] == (b"", b"", b"<SPECIAL_262>")
    assert (vocabulary.vocab_size, vocabulary.special_token_ids) == (263, (262,))
    assert load_vocabulary(file, stop_token_ids=[256], vocab_size=320).special_token_ids == (256,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 261}')
    assert load_vocabulary(tmp_path).stop_token_ids == (261,)


def test_tiktoken_when_no_stop_token_is_given_then_asks_for_one(tmp_path: Path) -> None:
    """The file cannot say it."""
    (tmp_path / "x.tiktoken").write_bytes(b"YQ== 0\r\nYg== 1\r\n")
    with pytest.raises(VocabularyError, match="give stop_token_ids"):
        load_vocabulary(tmp_path / "x.tiktoken")


# --- what is refused -----------------------------------------------------------------------------------------------


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def decoded_by(decoder: decoders.Decoder) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (wordpiece(), "the model is WordPiece"),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "the model is WordLevel"),
        (Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")), "end_of_word_suffix"),
        (Tokenizer(models.BPE({"a": 0}, [])), "there is no decoder"),
        (decoded_by(decoders.CTC()), "decoder 'CTC'"),
        (decoded_by(decoders.Strip(" ", 1, 0)), "decoder 'Strip'"),
        (decoded_by(decoders.Replace(Regex("a+"), " ")), "regular expression"),
        (decoded_by(decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])), "after joining"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokenizer_when_its_tokens_have_no_bytes_then_is_unsupported(
    tmp_path: Path, tokenizer: Tokenizer, message: str
) -> None:
    """What a token reads as must not depend on its neighbours; the message says why and what to use."""
    with pytest.raises(VocabularyError, match="unsupported tokenizer") as caught:
        load_vocabulary(save(tmp_path, tokenizer), stop_token_ids=[0])
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "of no known format"),
        (b"{", "not JSON"),
        (b'{"a": 1}', "it has ['a']"),
        (b"[1]", "of no known format"),
        (b'{"model": []}', "model is list, not an object"),
        (b'{"model": ' + b"[" * 100_000, "not JSON"),
        (b'{"model": {"type": "BPE"}, "decoder": {"type": "Fuse"}}', "model.vocab is missing"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": true}, "merges": []}, "decoder": {"type": "Fuse"}}',
            "is bool, not an integer",
        ),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}}, "decoder": {"type": "Fuse"}}', "is -1; token ids are"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}}, "decoder": {"type": "Fuse"}}',
            "token ids are from 0",
        ),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}}, "decoder": {"type": "Fuse"}}',
            "gives id 1 to two tokens",
        ),
        (b'{"model": {"type": "BPE", "vocab": {"\\ud800": 1}}, "decoder": {"type": "Fuse"}}', "surrogate"),
        (b'{"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "Fuse"}}', "no tokens in it"),
        (b'{"model": {"type": "Unigram", "vocab": [[]]}, "decoder": {"type": "Fuse"}}', "model.vocab[0][0] is missing"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 7}}, "decoder": {"type": "Sequence"}}',
            "the list of a Sequence is missing",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x0a\x0e\x0a\x05<unk>", "SentencePiece model"),
        (b"YQ== 0\nYg==\n", "line 2 is not 'base64 rank'"),
        (b"YQ== 0\nYg== 0\n", "rank 0 a second time"),
        (b"YQ== 0\nY!== 1\n", "line 2 is not base64"),
        (b"YQ== 0\nYg== 99999999\n", "token ids are from 0"),
        (json.dumps(tekken(special_tokens=None)).encode(), "needs a special_tokens list"),
        (json.dumps(tekken(vocab=[])).encode(), "vocab has 0"),
        (json.dumps(tekken(vocab=tekken()["vocab"][::-1])).encode(), "ranks rise by one"),
        (json.dumps(tekken(special_tokens=tekken()["special_tokens"] * 2)).encode(), "twice or not below 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_when_malformed_then_says_what_and_where(tmp_path: Path, content: bytes, message: str) -> None:
    """The message has the file and the problem, and is one of ours."""
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(file, stop_token_ids=[0])
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{file}: ")
    assert caught.value.metadata["file"] == str(file)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {"vocab_size": "many"}}, "config.json: vocab_size is str"),
        ({"config": {"vocab_size": 0, "eos_token_id": 7}}, "vocab_size is 0"),
        ({"config": {"text_config": 3}}, "text_config is int"),
        ({"generation_config": {"eos_token_id": [None]}}, "generation_config.json: eos_token_id is missing"),
        ({"generation_config": {"eos_token_id": 5000}}, "stop_token_ids holds 5000"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"x": {}}}},
            "tokenizer_config.json: added_tokens_decoder['x'] is str",
        ),
        ({"tokenizer_config": {"eos_token": "<nowhere>"}}, "no stop token is known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sibling_when_malformed_then_is_named(tmp_path: Path, files: dict[str, dict[str, Any]], message: str) -> None:
    """A wrong file beside the tokenizer is as bad as a wrong tokenizer."""
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(save(tmp_path, byte_level(), **files))
    assert message in caught.value.message


def test_path_when_nothing_readable_is_there_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, empty, not a file, too large: each is a VocabularyError, and none of them waits."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "Qwen" / "Qwen3", tmp_path / "pipe", tmp_path / "empty", Path("a\0b")):
        with pytest.raises(VocabularyError):
            load_vocabulary(path, stop_token_ids=[0])
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1 << 10)
    with pytest.raises(VocabularyError, match="is it a tokenizer file"):
        load_vocabulary(save(tmp_path / "large", byte_level()), stop_token_ids=[0])


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
SMALL_TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "▁": 1, "<0x41>": 2}, "unk_token": "a", "byte_fallback": True},
    "added_tokens": [{"id": 3, "content": "</s>", "special": True}],
    "decoder": {
        "type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}],
    },
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
}
SMALL_UNIGRAM = SMALL_TOKENIZER | {
    "model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", 0.0]], "unk_id": 0},
    "decoder": None,
}
SMALL_TEKKEN = {
    "config": {"default_vocab_size": 4, "default_num_special_tokens": 3, "version": "v3"},
    "vocab": [{"rank": 0, "token_bytes": "YQ=="}],
    "special_tokens": [{"rank": 2, "token_str": "</s>"}],
}
SMALL_CONFIG = {
    "eos_token": {"content": "</s>"},
    "eos_token_id": [3],
    "vocab_size": 8,
    "text_config": {"vocab_size": 8},
    "added_tokens_decoder": {"4": {"content": "x", "special": False}},
    "extra_special_tokens": ["x"],
}


def places(value: Any) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, inner in items for rest in [(), *places(inner)]]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    which=st.sampled_from([SMALL_TOKENIZER, SMALL_UNIGRAM, SMALL_TEKKEN, SMALL_CONFIG]),
    value=JSON_VALUE,
)
def test_json_when_any_value_is_replaced_then_only_vocabulary_errors_leave(
    tmp_path: Path, data: st.DataObject, which: dict[str, Any], value: Any
) -> None:
    """One arbitrary value anywhere gives a vocabulary or a VocabularyError, nothing else."""
    changed = json.loads(json.dumps(which))
    *way, last = data.draw(st.sampled_from(places(which)))
    target = changed
    for key in way:
        target = target[key]
    target[last] = value
    is_config = which is SMALL_CONFIG
    (tmp_path / "tokenizer.json").write_text(json.dumps(SMALL_TOKENIZER if is_config else changed))
    for stem in ("config", "tokenizer_config"):
        (tmp_path / f"{stem}.json").write_text(json.dumps(changed if is_config else {}))
    try:
        vocabulary = load_vocabulary(tmp_path)
    except VocabularyError as error:
        assert str(tmp_path) in error.message
    else:
        validate_vocabulary(vocabulary)


@given(content=st.binary(max_size=60) | st.from_regex(rb"([A-Za-z0-9+/=]{0,6} \d{0,3}\n){1,4}"))
def test_bytes_when_arbitrary_then_only_vocabulary_errors_leave(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """So does any content of the file."""
    file = tmp_path_factory.getbasetemp() / "arbitrary"
    file.write_bytes(content)
    try:
        load_vocabulary(file, stop_token_ids=[0])
    except VocabularyError as error:
        assert str(file) in error.message


def test_loading_when_imported_then_brings_in_no_model_library() -> None:
    """The daemon starts in a fraction of a second and needs no tokenizer library for this."""
    code = (
        "import sys, maskd.tokenizer_files; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- the report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "stop_token_ids", "expected"),
    [
        ((), 257, (0,), ()),
        (
            (b"", b""),
            259,
            (0,),
            ("2 tokens (257, 258) stand for no bytes and are not special; they are never allowed",),
        ),
        (
            (b"a", b"b"),
            259,
            (0,),
            ("2 tokens (257, 258) repeat the bytes of a lower id; a grammar allows either or both",),
        ),
        ((b"x" * 2049,), 258, (0,), ("1 token (257) have more than 2048 bytes",)),
        ((b"<a>", b"<b>"), 259, (0, 257, 258), ("3 stop tokens end a sequence: 3 tokens (0, 257, 258)",)),
        ((), 264, (0,), ("7 of 264 logits stand for no token; this tail is never allowed",)),
        (
            (),
            257,
            (0, 1),
            ("2 stop tokens", "1 of 256 bytes are no token of their own (0x00); some texts may be out of reach"),
        ),
    ],
)
def test_report_when_something_is_odd_then_says_it(
    tokens: tuple[bytes, ...], vocab_size: int, stop_token_ids: tuple[int, ...], expected: tuple[str, ...]
) -> None:
    """One sentence for each oddity, and none for a plain vocabulary of </s> and 256 bytes."""
    vocabulary = Vocabulary([b"</s>", *(bytes([byte]) for byte in range(256)), *tokens], vocab_size, stop_token_ids)
    warnings = validate_vocabulary(vocabulary)
    assert len(warnings) == len(expected)
    assert all(warning.startswith(start) for warning, start in zip(warnings, expected, strict=True))


def test_report_when_many_tokens_are_odd_then_shows_a_few() -> None:
    """A vocabulary with a hundred thousand duplicates gives a line, not a page."""
    warnings = validate_vocabulary(Vocabulary([b"</s>"] + [b"a"] * 10_000, 10_001, (0,)))
    assert warnings[0].startswith("9999 tokens (2, 3, 4, 5, 6, …) repeat")
    assert all(len(warning) < 200 for warning in warnings)
