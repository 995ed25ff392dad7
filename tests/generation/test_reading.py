"""What the model says of finished texts is of one precision, whoever asks."""

import pytest
import torch
from torch import Tensor

from ctrlgen.controls.template import NO_WORD
from ctrlgen.diffusion import precision
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.blame import blame
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Draws
from ctrlgen.settings import Guidance, Settings


def test_the_network_runs_in_bfloat16_and_the_guides_do_not(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: True)
    request = generator.request(["pos: DET NOUN VERB DET NOUN PUNCT"], n=2)
    batch = Batch(generator.reader, Draws(generator.model, [request]).first())
    (term,) = batch.terms
    in_network, in_guide = [], []
    forward, log_prob = generator.model.denoiser.forward, term.classifier.log_prob

    def network(*given: Tensor, **more: Tensor) -> Denoised:
        in_network.append(torch.is_autocast_enabled("cpu"))
        return forward(*given, **more)

    def guide(*given: Tensor) -> Tensor:
        in_guide.append(torch.is_autocast_enabled("cpu"))
        return log_prob(*given)

    monkeypatch.setattr(generator.model.denoiser, "forward", network)
    monkeypatch.setattr(term.classifier, "log_prob", guide)
    ids = torch.tensor([generator.model.tokenizer.ids("the cat sees a dog .".split())] * 2)
    joint = generator.reader.joint(ids, None, batch.terms)
    assert torch.equal(joint, generator.reader.controls(ids, None, batch.terms)[:, 0])
    generator.reader.hidden(ids, None, batch.terms)
    generator.reader.bound(ids, None)
    blame(generator.model, ids, None, batch.terms)
    generator.generate([request], Settings(steps=3))
    generator.generate([request], Settings(steps=3, guidance=Guidance(method="paper")))
    assert set(in_network) == {True}
    assert set(in_guide) == {False}


def test_the_bound_takes_texts_of_several_lengths_as_each_alone(generator: Generator) -> None:
    texts = ["the cat sees a dog .", "a small cat sees the dog ."]
    ids = [generator.model.tokenizer.ids(text.split()) for text in texts]
    rows = torch.tensor([ids[0] + [generator.model.tokenizer.pad_id], ids[1]])
    together = generator.reader.bound(rows, torch.tensor([6, 7]))
    alone = torch.cat([generator.reader.bound(torch.tensor([of]), None) for of in ids])
    torch.testing.assert_close(together, alone)


def test_each_word_is_read_from_the_others(generator: Generator) -> None:
    reader, tokenizer = generator.reader, generator.model.tokenizer
    ids = torch.tensor([tokenizer.ids(["the", "cat", "sees", "."])])  # no longer than STRIDE: each is hidden alone
    found = reader.given_others(ids, None)[0]
    for place, word in enumerate(ids[0].tolist()):
        alone = ids.clone()
        alone[0, place] = NO_WORD
        torch.testing.assert_close(found[place], reader.hidden(alone, None)[0, place, word])
    rows = torch.tensor([[*ids[0].tolist(), tokenizer.unk_id], tokenizer.ids("the cat sees a dog".split())])
    together = reader.given_others(rows, torch.tensor([4, 5]))
    torch.testing.assert_close(together[0, :4], found)
    assert together[0, 4] == 0
    assert (together[1] < 0).all()
