import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidechain.model.architecture import ByteTransformer, ByteTransformerModule
from sidechain.model.generate import Generation, seen_prompt, uniform, window_start

CONTEXT = 16


@pytest.fixture(scope="module")
def module() -> ByteTransformerModule:
    torch.manual_seed(0)
    return ByteTransformer(width=32, blocks=2, heads=2, context=CONTEXT).build().eval()


def tokens(
    module: ByteTransformerModule,
    count: int,
    already: list[int] | None = None,
    prompt: bytes = b"abc",
    temperature: float = 1.0,
    seed: int = 1,
) -> list[int]:
    generation = Generation(module, prompt, temperature, seed, already or [])
    return [generation.next() for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60), st.sampled_from([0.0, 0.8, 2.0]), st.integers())
def test_generation_goes_on_from_any_prefix(
    module: ByteTransformerModule, prompt: bytes, cut: int, temperature: float, seed: int
) -> None:
    seed = seed % (1 << 64) - (1 << 63)
    whole = tokens(module, 60, None, prompt, temperature, seed)
    assert tokens(module, 60 - cut, whole[:cut], prompt, temperature, seed) == whole[cut:]


def test_greedy_generation_takes_the_likeliest_byte(module: ByteTransformerModule) -> None:
    read = bytearray(b"abc")
    for token in tokens(module, CONTEXT - 3, temperature=0):
        logits = module(torch.tensor([list(read)]))[0, -1]
        # Not argmax itself: the two ways of computing may round a tie apart.
        assert logits[token] >= logits.max() - 1e-4
        read.append(token)


def test_sampling_follows_the_model(module: ByteTransformerModule) -> None:
    with torch.inference_mode():
        wanted = module(torch.tensor([list(b"abc")]))[0, -1].softmax(0)
    drawn = torch.bincount(
        torch.tensor([tokens(module, 1, seed=seed)[0] for seed in range(1500)]), minlength=256
    )
    # 256 expected values; the sum of absolute differences of 1500 fair draws stays near 0.33.
    assert float((drawn / 1500 - wanted).abs().sum()) < 0.45


def test_the_window_slides_by_half(module: ByteTransformerModule) -> None:
    starts = [window_start(length, 16) for length in range(42)]
    assert starts == [0] * 17 + [8] * 8 + [16] * 8 + [24] * 8 + [32]


def test_only_the_window_is_seen(module: ByteTransformerModule) -> None:
    long = bytes(range(64, 128))
    assert tokens(module, 20, prompt=long) == tokens(module, 20, prompt=long[-CONTEXT:])
    assert tokens(module, 5, prompt=b"") == tokens(module, 5, prompt=b"\n")
    assert seen_prompt(long, CONTEXT) == long[-CONTEXT:]


def test_a_long_prompt_is_read_in_pieces() -> None:
    wide = ByteTransformer(width=16, blocks=1, heads=4, context=64).build()
    generation = Generation(wide, b"x" * 40, 1.0, 1)
    assert [generation.step() is None for _ in range(4)] == [True, True, False, False]


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1 << 32))
def test_random_numbers_are_below_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_a_number_for_each_seed_and_position() -> None:
    drawn = {uniform(seed, position) for seed in range(-50, 50) for position in range(50)}
    assert len(drawn) == 5000
    assert 0.48 < sum(drawn) / len(drawn) < 0.52


def test_tokens_that_are_no_bytes_are_refused(module: ByteTransformerModule) -> None:
    with pytest.raises(ValueError, match="range"):
        tokens(module, 1, [256])
