"""Verdicts follow from bytes with the right roots; everything else is no answer."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save

from channels.errors import OdaError, UserError
from sidechain import questions
from sidechain.answers import NO_SAMPLES, Examiner
from sidechain.model import exact, files, roots, sealed
from sidechain.model.paired import confirms
from sidechain.model.sealed import Dataset
from sidechain.params import REGTEST
from sidechain.questions import Compare, Examine, Finding, Question, Score, Subject
from sidechain.scores import PairedSums, Scored, Unusable
from tests.sidechain.directories import KEYS, Written, model, samples, trained, updated, written


@pytest.fixture
def made(tmp_path: Path) -> Written:
    return written(tmp_path / "model")


def subject(made: Written) -> Subject:
    return Subject.of(REGTEST, made.definition)


def score(made: Written, root: bytes | None = None, about: Subject | None = None) -> Finding:
    """By an examiner that remembers nothing."""
    question = Score(about or subject(made), str(made.path), root or made.model.weights_root)
    return Examiner().answer(question)


def compare(old: Written, new: Written, index: int = 0, key: bytes = KEYS[0]) -> Finding:
    roots_of = old.model.weights_root, new.model.weights_root
    return Examiner().answer(
        Compare(subject(old), str(old.path), str(new.path), *roots_of, index, key)
    )


def test_a_score_is_the_exact_one(made: Written) -> None:
    assert score(made) == Scored(made.model.score(), made.model.score_cost())


def test_the_header_of_the_file_is_no_part_of_the_question(made: Written) -> None:
    tensors = dict(made.model.weights)
    padded = save(tensors, {"name": "x" * 30_000})
    (made.path / files.WEIGHTS).write_bytes(padded)
    assert score(made) == Scored(made.model.score(), made.model.score_cost())


def test_a_cost_that_was_understated_is_found_before_scoring(made: Written) -> None:
    about = msgspec.structs.replace(subject(made), score_cost=1)
    assert score(made, about=about) == Scored(0, made.model.score_cost())


@pytest.mark.parametrize("name", [files.WEIGHTS, files.PUBLIC])
def test_bytes_with_other_roots_are_no_answer(made: Written, name: str) -> None:
    data = bytearray((made.path / name).read_bytes())
    data[-1] ^= 1
    (made.path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        score(made)
    assert caught.value.reason == "wrong-root"


@pytest.mark.parametrize("name", [files.WEIGHTS, files.PUBLIC])
@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 100])
def test_bytes_that_cannot_be_read_are_no_answer(made: Written, name: str, data: bytes) -> None:
    (made.path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        score(made)
    assert caught.value.reason == "wrong-root"


def test_missing_bytes_are_no_answer(made: Written) -> None:
    (made.path / files.WEIGHTS).unlink()
    with pytest.raises(UserError) as caught:
        score(made)
    assert caught.value.reason == "bad-file"


def test_a_file_that_is_longer_than_any_model_is_not_read(made: Written) -> None:
    with (made.path / files.WEIGHTS).open("r+b") as file:
        file.truncate(REGTEST.model_bytes + (1 << 16) + 1)
    with pytest.raises(UserError) as caught:
        score(made)
    assert caught.value.reason == "bad-file"


@pytest.mark.parametrize("change", ["name", "shape", "type", "more", "fewer"])
def test_tensors_of_another_architecture_are_a_verdict(made: Written, change: str) -> None:
    tensors = dict(made.model.weights)
    name = sorted(tensors)[0]
    if change == "name":
        tensors["other"] = tensors.pop(name)
    elif change == "shape":
        tensors[name] = tensors[name].reshape(-1, 1)
    elif change == "type":
        tensors[name] = tensors[name].float()
    elif change == "more":
        tensors["more"] = torch.zeros(3, dtype=torch.int16)
    else:
        del tensors[name]
    (made.path / files.WEIGHTS).write_bytes(save(tensors))
    kinds = {torch.int16: "I16", torch.float32: "F32"}
    root = roots.weights_root(
        roots.TensorRoot(
            each, kinds[t.dtype], tuple(t.shape), roots.bep52_root(t.numpy().tobytes())
        )
        for each, t in tensors.items()
    )
    assert score(made, root) == Unusable("bad-weights")


@pytest.mark.parametrize("field", ["architecture", "objective"])
def test_what_is_not_in_the_registry_is_a_verdict(made: Written, field: str) -> None:
    about = msgspec.structs.replace(subject(made), **{field: b'{"type":"oracle"}'})
    assert score(made, about=about) == Unusable("bad-architecture")
    assert Examiner().answer(Examine(about)) == Unusable("bad-architecture")


def test_a_model_that_is_larger_than_the_network_allows_is_a_verdict(made: Written) -> None:
    about = msgspec.structs.replace(subject(made), model_bytes=100)
    assert Examiner().answer(Examine(about)) == Unusable("bad-architecture")
    assert Examiner().answer(Examine(subject(made))) is None


@pytest.mark.parametrize("public", [b"no samples", b"oda-data\x01\x00text that no mlp reads"])
def test_data_that_does_not_fit_is_a_verdict(made: Written, public: bytes) -> None:
    (made.path / files.PUBLIC).write_bytes(public)
    shard = (made.path / "shard-00.oda").read_bytes()
    about = msgspec.structs.replace(subject(made), dataset_root=roots.dataset_root(public, [shard]))
    assert score(made, about=about) == Unusable("bad-dataset")


def test_a_pair_is_compared_sample_by_sample(made: Written, tmp_path: Path) -> None:
    new = updated(tmp_path / "new", made)
    losses = [
        exact.sample_losses(each.model.architecture, each.model.objective, each.model.weights, part)
        for each in (made, new)
        for part in (samples(40, 1),)
    ]
    found = compare(made, new)
    assert isinstance(found, PairedSums)
    assert found.n == 40 and found.total == sum(losses[0]) - sum(losses[1])
    assert found.passes(32) and confirms(*losses)
    back = compare(new, made)
    assert back == replace(found, total=-found.total)


def test_a_shard_that_cannot_be_read_has_no_samples(made: Written, tmp_path: Path) -> None:
    new = updated(tmp_path / "new", made)
    assert compare(made, new, key=KEYS[1]) == NO_SAMPLES
    assert compare(made, new, index=1, key=KEYS[1]) == NO_SAMPLES


def test_a_shard_with_more_samples_than_the_public_part_has_none(tmp_path: Path) -> None:
    dataset = sealed.seal(samples(30, 0), [samples(31, 1)], KEYS[:1])
    old = written(tmp_path / "old", replace(model(), dataset=dataset))
    new = updated(tmp_path / "new", old)
    assert compare(old, new) == NO_SAMPLES


def test_a_shard_of_another_kind_has_no_samples(tmp_path: Path) -> None:
    from sidechain.model.parts import Text

    dataset = sealed.seal(samples(80, 0), [Text(b"text" * 40)], KEYS[:1])
    old = written(tmp_path / "old", replace(model(), dataset=dataset))
    assert compare(old, updated(tmp_path / "new", old)) == NO_SAMPLES


def test_data_is_kept_for_the_next_update(made: Written, tmp_path: Path) -> None:
    examiner = Examiner()
    examiner.answer(Score(subject(made), str(made.path), made.model.weights_root))
    other = replace(made.model, weights=trained(steps=2))
    new = written(tmp_path / "new", other)
    (new.path / files.PUBLIC).unlink()
    answer = examiner.answer(Score(subject(made), str(new.path), new.model.weights_root))
    assert answer == Scored(other.score(), other.score_cost())


@pytest.mark.parametrize(
    "answer",
    [
        Scored(0, 1 << 62),
        Unusable("bad-weights"),
        PairedSums(3, -5, 1 << 90),
        None,
        UserError("wrong-root", "It is another."),
    ],
)
def test_replies_are_read_back(answer: Finding | OdaError) -> None:
    data = questions.encode_reply(answer)
    if isinstance(answer, OdaError):
        with pytest.raises(UserError) as caught:
            questions.decode_reply(data)
        assert (caught.value.reason, str(caught.value)) == ("wrong-root", "It is another.")
    else:
        assert questions.decode_reply(data) == answer


def test_questions_are_read_back(made: Written) -> None:
    about = subject(made)
    asked: list[Question] = [
        Examine(about),
        Score(about, "/a", bytes(32)),
        Compare(about, "/a", "/b", bytes(32), bytes(32), 3, bytes(32)),
    ]
    for question in asked:
        assert questions.decode_question(msgspec.msgpack.encode(question)) == question


def test_no_dataset_is_read_twice_as_another(made: Written) -> None:
    """What is kept is kept by its root: data of another root is looked at again."""
    examiner = Examiner()
    examiner.answer(Score(subject(made), str(made.path), made.model.weights_root))
    other = Dataset(made.model.dataset.public)
    about = msgspec.structs.replace(subject(made), dataset_root=other.root)
    with pytest.raises(UserError) as caught:
        examiner.answer(Score(about, str(made.path), made.model.weights_root))
    assert caught.value.reason == "wrong-root"
