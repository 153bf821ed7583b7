"""Images in prompts: computed where they stand, kept as wholes, and a request's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from forkyard_llm.engines.generation import Generation
from forkyard_llm.engines.media import Piece
from forkyard_llm.engines.request import Request, Token, reusable, stretches
from forkyard_llm.engines.scheduler import Scheduler
from forkyard_llm.errors import EngineError, PromptTooLong, UsageError
from forkyard_llm.sampling import SamplingParams

from .fake_session import FakeSession

GREEDY = SamplingParams(temperature=0)
Owner = Generation | Scheduler


def seeing(*parts: int | Piece, **more: object) -> Request:
    """A request whose prompt is made of tokens and images."""
    prompt: list[int] = []
    pieces = {}
    for part in parts:
        if isinstance(part, Piece):
            pieces[len(prompt)] = part
            prompt += [part.number] * part.positions
        else:
            prompt.append(part)
    return Request(prompt, GREEDY, pieces=pieces, **more)  # type: ignore[arg-type]


def image(number: int, positions: int = 3, cells: int = 3, *, whole: bool = False) -> Piece:
    return Piece(None, number, positions, cells, whole, None)


A, B = image(-1), image(-2)


@pytest.fixture(params=["one", "many"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[FakeSession], Owner]]:
    made: list[Owner] = []

    def owner(session: FakeSession) -> Owner:
        if request.param == "one":
            made.append(Generation(session, reuse=True, name="m.gguf"))
        else:
            made.append(Scheduler(session, parallel=1, limit=9, name="m.gguf"))
        return made[-1]

    yield owner
    for one in made:
        one.close()


def first(stream: Iterator[Token], count: int = 1) -> list[int]:
    found = [next(stream).id for _ in range(count)]
    stream.close()  # type: ignore[attr-defined]
    return found


def test_an_image_is_computed_where_it_stands(make: Callable[[FakeSession], Owner]):
    session = FakeSession(n_ctx=32)
    owner = make(session)
    told: list[tuple[int, int]] = []
    request = seeing(1, 2, A, B, 3, A, 7, progress=lambda done, total: told.append((done, total)))
    assert first(owner.tokens(request), 2) == [8, 9]
    assert session.decoded[:6] == [[1, 2], [-1], [-2], [3], [-1], [7]]
    assert told == [(2, 13), (5, 13), (8, 13), (9, 13), (12, 13), (13, 13)]
    assert request.history == [1, 2, 3, 7]


def test_what_a_prompt_shares_is_kept_but_no_part_of_an_image(make: Callable[[FakeSession], Owner]):
    session = FakeSession(n_ctx=32)
    owner = make(session)
    first(owner.tokens(seeing(1, A, 5, limit=1)))
    session.decoded.clear()
    first(owner.tokens(seeing(1, A, 6, limit=1)))
    assert session.decoded == [[6]]
    session.decoded.clear()
    first(owner.tokens(seeing(1, B, 6, limit=1)))
    assert session.decoded == [[-2], [6]]


def test_an_image_that_cannot_be_computed_ends_its_request_alone(make: Callable[[FakeSession], Owner]):
    session = FakeSession(n_ctx=32)
    owner = make(session)
    session.fails_at = 2
    with pytest.raises(EngineError, match="cannot be computed"):
        next(owner.tokens(seeing(1, 2, A, 3)))
    session.fails_at = None
    assert first(owner.tokens(seeing(1, 2, A, 3))) == [4]


def test_images_take_room(make: Callable[[FakeSession], Owner]):
    owner = make(FakeSession(n_ctx=8))
    with pytest.raises(PromptTooLong, match="has 9 tokens, the context 8"):
        next(owner.tokens(seeing(1, image(-1, 2, 7), 1)))
    # Of a context of 8 the image takes 5: there is room for 2 tokens more, and the next one.
    assert [token.id for token in owner.tokens(seeing(image(-1, 2, 5), 1))] == [2, 3, 4]
    with pytest.raises(UsageError, match=r"has 6 tokens, .* a micro-batch 4: raise n_ubatch"):
        next(owner.tokens(seeing(image(-1, 6, 6, whole=True), 1)))
    with pytest.raises(UsageError, match="ends with an image"):
        next(owner.tokens(seeing(1, A)))
    with pytest.raises(UsageError, match="token -1 is outside"):
        next(owner.tokens(Request([1, -1], GREEDY)))


def test_step_by_step_an_image_is_nothing():
    session = FakeSession(n_ctx=32)
    generation = Generation(session, reuse=True, name="m.gguf")
    first(generation.tokens(seeing(1, A, 5)))
    assert generation.evaluated == ()
    assert generation.state() == ((), b"")
    generation.extend([1, 2])
    assert generation.evaluated == (1, 2)
    assert session.cache == [1, 2]


def texts(request: Request, start: int) -> Sequence[tuple[int, int, int | None]]:
    return [(begin, end, piece and piece.number) for begin, end, piece in stretches(request, start)]


def test_stretches_and_what_is_reusable():
    request = seeing(A, 5, 6, B, B, 7)
    assert texts(request, 0) == [(0, 3, -1), (3, 5, None), (5, 8, -2), (8, 11, -2), (11, 12, None)]
    assert texts(request, 4) == [(4, 5, None), (5, 8, -2), (8, 11, -2), (11, 12, None)]
    assert texts(request, 11) == [(11, 12, None)]
    kept = [reusable(request.prompt[:length], request) for length in range(13)]
    assert kept == [0, 0, 0, 3, 4, 5, 5, 5, 8, 8, 8, 11, 11]
