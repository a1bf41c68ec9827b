"""Vocabularies on their way into the daemon: uploaded in pieces, or loaded before it listens."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import mistral_common
import pytest

from maskd.bitmask import allowed_token_ids
from maskd.client import Client
from maskd.errors import CapacityError, InvalidRequestError, MaskdError, VocabularyError
from maskd.grammar import GrammarSpec
from maskd.rpc.status import from_rpc_error
from maskd.step import Action, Item
from maskd.tokenizer_files import load_vocabulary
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

TEKKEN = Path(mistral_common.__file__).parent / "data/tekken_240911.json"


def large(size: int = 131_072) -> Vocabulary:
    """A vocabulary of the size of today's models: bytes, then words of letters, then <stop>."""
    pick = random.Random(1)
    words = dict.fromkeys(bytes([b]) for b in range(256))
    while len(words) < size - 1:
        words[bytes(pick.choices(b"abcdefghijklmnopqrstuvwxyz ", k=pick.randint(2, 9)))] = None
    return Vocabulary([*words, b"<stop>"], size, (size - 1,), (), "large")


def first_row(client: Client, fingerprint: bytes, vocab_size: int, regex: str) -> list[int]:
    with client.open_session(fingerprint, vocab_size=vocab_size, row_capacity=1) as session:
        grammar = session.create_grammar(GrammarSpec("regex", regex))
        reply = session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)], timeout_seconds=60)
        return [int(token_id) for token_id in allowed_token_ids(reply.rows[0])]


@pytest.fixture
def upload(daemon: Any) -> Iterator[Callable[..., bytes]]:
    """Uploads raw messages; raises what the daemon raised."""
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]

        def send(*parts: pb.UploadVocabularyRequest) -> bytes:
            try:
                return bytes(stub.UploadVocabulary(iter(parts), timeout=60).vocabulary.fingerprint)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None

        yield send


def header(
    vocab_size: int = 10, stops: tuple[int, ...] = (0,), special: tuple[int, ...] = ()
) -> pb.UploadVocabularyRequest:
    return pb.UploadVocabularyRequest(
        header=pb.UploadVocabularyRequest.Header(
            name="raw", vocab_size=vocab_size, stop_token_ids=stops, special_token_ids=special
        )
    )


def tokens(*some: bytes) -> pb.UploadVocabularyRequest:
    return pb.UploadVocabularyRequest(tokens=some)


def test_upload_when_the_vocabulary_is_large_then_it_comes_in_pieces_once_and_masks_are_right(
    start_daemon: Callable[..., Any],
) -> None:
    """131,072 tokens in pieces; the second upload changes nothing; another client finds it."""
    daemon, vocabulary = start_daemon(), large()
    with Client.connect(daemon.target) as client:
        fingerprint = client.upload_vocabulary(vocabulary)
        assert fingerprint == vocabulary.fingerprint == client.upload_vocabulary(vocabulary)
        info = client.info().vocabularies
        assert [(v.fingerprint, v.vocab_size, v.token_count, v.stop_token_ids) for v in info] == [
            (fingerprint, 131_072, 131_072, (131_071,))
        ]
        expected = [i for i, token in enumerate(vocabulary.tokens[:-1]) if token and b"hello".startswith(token)]
        assert first_row(client, fingerprint, 131_072, "hello") == expected


def test_upload_when_cut_anywhere_then_the_fingerprint_is_the_contents(upload: Callable[..., bytes]) -> None:
    """How the tokens are cut into messages, and their name, are no part of the content."""
    every = tuple(bytes([b]) for b in range(256))
    one = upload(header(300), tokens(*every))
    assert one == Vocabulary(every, 300, (0,)).fingerprint
    assert upload(header(300), *(tokens(token) for token in every)) == one
    first = header(300)
    first.tokens.extend(every[:100])
    assert upload(first, tokens(), tokens(*every[100:])) == one


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((), InvalidRequestError),
        ((tokens(b"a"),), InvalidRequestError),
        ((header(), header(), tokens(b"a")), InvalidRequestError),
        ((header(),), VocabularyError),
        ((header(stops=()), tokens(b"a")), VocabularyError),
        ((header(stops=(5,)), tokens(b"a")), VocabularyError),
        ((header(stops=(-1,)), tokens(b"a")), VocabularyError),
        ((header(special=(7,)), tokens(b"a")), VocabularyError),
        ((header(vocab_size=1), tokens(b"a", b"b")), VocabularyError),
        ((header(vocab_size=-1), tokens(b"a")), VocabularyError),
        ((header(vocab_size=1 << 30), tokens(b"a")), VocabularyError),
        ((header(), tokens(b"x" * 70_000)), VocabularyError),
        ((header(), tokens(b"x" * (5 << 20))), CapacityError),
    ],
)
def test_upload_when_it_is_wrong_then_typed(
    upload: Callable[..., bytes], parts: tuple[pb.UploadVocabularyRequest, ...], error: type[MaskdError]
) -> None:
    """Order of messages, ids, sizes: each mistake has its class."""
    with pytest.raises(error):
        upload(*parts)


def test_upload_when_the_daemon_is_full_then_capacity_and_known_ones_still_work(
    start_daemon: Callable[..., Any],
) -> None:
    """vocabularies_limit counts contents, not uploads."""
    daemon = start_daemon("--vocabularies-limit", "2")
    base = tuple(bytes([b]) for b in range(256))
    with Client.connect(daemon.target) as client:
        for extra in (b"one", b"two"):
            client.upload_vocabulary(Vocabulary((*base, extra), 300, (0,)))
        with pytest.raises(CapacityError) as caught:
            client.upload_vocabulary(Vocabulary((*base, b"three"), 300, (0,)))
        assert caught.value.metadata["limit"] == "vocabularies_limit"
        kept = client.upload_vocabulary(Vocabulary((*base, b"two"), 300, (0,)))
        assert first_row(client, kept, 300, "two")[-1] == 256


def tiktoken(path: Path) -> Path:
    """A ranks file: every byte and a few words."""
    words = [bytes([b]) for b in range(256)] + [b"Paris", b"London"]
    path.write_bytes(b"".join(base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(words)))
    return path


def test_vocabulary_when_named_on_the_command_line_then_it_is_there_before_the_first_client(
    start_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    """--vocabularies as JSON with what the file does not say; a client uploads nothing."""
    source = {
        "path": str(tiktoken(tmp_path / "words.tiktoken")),
        "name": "words",
        "vocab_size": 264,
        "stop_token_ids": [0],
    }
    daemon = start_daemon("--vocabularies", json.dumps([source]))
    with Client.connect(daemon.target) as client:
        (info,) = client.info().vocabularies
        assert (info.name, info.vocab_size, info.stop_token_ids) == ("words", 264, (0,))
        assert first_row(client, info.fingerprint, 264, "Paris|London")[-2:] == [256, 257]
        daemon.kill_worker()
    daemon.kill()
    daemon.restart()
    with Client.connect(daemon.target) as client:
        assert client.info().vocabularies == (info,)


def test_vocabulary_when_it_is_a_bundled_tokenizer_directory_then_the_fingerprint_is_the_files(
    start_daemon: Callable[..., Any],
) -> None:
    """A Hugging Face directory on the command line gives the vocabulary that load_vocabulary reads."""
    directory = Path(__file__).parents[2] / "engine_adapter/bundled"
    daemon = start_daemon("--vocabularies", str(directory))
    expected = load_vocabulary(str(directory))
    with Client.connect(daemon.target) as client:
        (info,) = client.info().vocabularies
        assert (info.fingerprint, info.vocab_size) == (expected.fingerprint, expected.vocab_size)
        assert first_row(client, info.fingerprint, info.vocab_size, "[0-9]+")


def test_vocabulary_when_it_is_a_tekken_file_then_a_real_model_is_served(start_daemon: Callable[..., Any]) -> None:
    """131,072 ids of a published tokenizer, from its file."""
    daemon = start_daemon("--vocabularies", str(TEKKEN))
    with Client.connect(daemon.target) as client:
        (info,) = client.info().vocabularies
        assert info.vocab_size == 131_072
        tokens_of = load_vocabulary(str(TEKKEN)).tokens
        allowed = first_row(client, info.fingerprint, info.vocab_size, "Paris")
        assert {tokens_of[token_id] for token_id in allowed} >= {b"P", b"Paris"}
